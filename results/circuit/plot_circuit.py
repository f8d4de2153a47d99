"""Figure 2: a small circuit drawn as a graph, layers upwards.

The width of a line is the size of an edge's score, its colour the sign. Lines into a head end at
the q, k or v that is written in its box.
"""

import eap_circuits
from eap import figures
from eap.errors import UserError
from eap.figures import style, tables
from eap.studies import shell


def main() -> None:
    """Draw results/circuit/<model>/{png,pdf}/<task>_circuit."""
    parser = shell.figure_parser(__doc__, tasks=("ioi",))
    parser.add_argument(
        "--edges", type=shell.positive, default=40, help="to select, before pruning"
    )
    parser.add_argument("--graph", default="task", help="scores: vanilla, task or kl")
    args = parser.parse_args()
    results = tables.Results(args.output, args.model)
    for task in args.tasks:
        try:
            graph = figures.graphs.find_graph(results, f"{task}_{args.graph}")
        except FileNotFoundError as error:
            command = results.command("pareto.py", f"--task {task}")
            raise UserError(f"no {error}; make it with: {command}") from None
        n = min(args.edges, graph.n_edges)
        circuit = graph.greedy(n).prune()
        if not circuit.count_edges():
            raise UserError(
                f"no path from the input to the logits among the best {args.edges} edges of "
                f"{task}; try a larger --edges"
            )
        counts = f"{circuit.count_edges()} of {circuit.n_edges:,} edges"
        figure = figures.circuit.draw_circuit(
            circuit,
            title=f"{style.typed_name(task)}: {counts}",
            selection=f"{n} edges selected greedily by magnitude, then pruned",
        )
        style.save_figure(figure, results.folder("circuit"), f"{task}_circuit")


if __name__ == "__main__":
    eap_circuits.run(main)

"""Figure 2: a small circuit drawn as a graph, with the first layer at the bottom.

Draws the smallest circuit that does the task, according to the curve that pareto.py measured, or a
circuit of a given size, with its faithfulness. The width of a line shows the size of an edge's
score, and its colour the sign. Lines into a head end at the q, k or v in the head's box.
"""

from collections.abc import Mapping

import eap_circuits
from eap import figures
from eap.figures import style, tables
from eap.runtime.errors import UserError
from eap.runtime.ranges import Range
from eap.studies import shell

READABLE_EDGES = 200  # largest circuit whose lines can be distinguished in a picture
UNMEASURED_EDGES = 40  # size of the circuit if none was measured


def main() -> None:
    """Draw results/circuit/<model>/{png,pdf}/<task>_circuit."""
    parser = shell.figure_parser(__doc__, tasks=("ioi",))
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--faithfulness",
        type=shell.Number(Range(0, 10), float, "a faithfulness"),
        help="draw the smallest measured circuit of at least this faithfulness (default: "
        f"{tables.DOES_TASK}, if a circuit of up to {READABLE_EDGES} edges reaches it)",
    )
    size.add_argument("--edges", type=shell.positive, help="number of edges to select")
    parser.add_argument("--graph", default="task", help="graph of scores: vanilla, task or kl")
    args = parser.parse_args()
    results = tables.Results(args.output, args.model)
    for task in args.tasks:
        try:
            graph = figures.graphs.find_graph(results, f"{task}_{args.graph}")
        except FileNotFoundError as error:
            command = results.command("pareto.py", f"--task {task}")
            raise UserError(f"no {error}; make it with: {command}") from None
        circuits = figures.measured.read_measured(results, f"{task}_{args.graph}", graph)
        n = args.edges or size_of(circuits, task, args.faithfulness)
        n = min(n, graph.n_edges)
        circuit = graph.greedy(n).prune()
        if not circuit.count_edges():
            raise UserError(
                f"no path from the input to the logits among the best {n} edges of "
                f"{task}; try a larger --edges"
            )
        drawn = circuits.get(n)
        figure = figures.circuit.draw_circuit(
            circuit,
            title=f"{style.typed_name(task)}: a circuit",
            selection=f"{n} edges selected greedily by magnitude, then pruned",
            faithfulness=None if drawn is None else (drawn.value, drawn.error),
        )
        style.save_figure(figure, results.folder("circuit"), f"{task}_circuit")


def size_of(
    circuits: "Mapping[int, figures.measured.Measured]", task: str, faithfulness: float | None
) -> int:
    """Number of edges to select for the smallest circuit that is faithful enough.

    If `faithfulness` is None and no readable circuit does the task, the number is that of the
    largest readable circuit that was measured.

    Raises:
        UserError: no measured circuit has the requested faithfulness.
    """
    minimum = tables.DOES_TASK if faithfulness is None else faithfulness
    n = figures.measured.smallest_faithful(circuits, minimum)
    if n is not None and (faithfulness is not None or circuits[n].n_edges <= READABLE_EDGES):
        return n
    largest = max(circuits.values(), key=lambda circuit: circuit.value, default=None)
    known = "none was measured" if largest is None else f"the best has {largest}"
    if faithfulness is not None:
        raise UserError(
            f"no circuit of {task} with a faithfulness of {minimum:g} is known ({known}); give "
            "--edges, or measure other sizes: pareto.py --sizes"
        )
    print(f"note: no circuit of {task} of up to {READABLE_EDGES} edges is known to do the task")
    readable = [n for n in circuits if 0 < circuits[n].n_edges <= READABLE_EDGES / 2]
    return max(readable, default=UNMEASURED_EDGES)


if __name__ == "__main__":
    eap_circuits.run(main)

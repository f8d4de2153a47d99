"""Figure 6: precision and recall of found circuits against one that people found by hand.

What ioi_overlap.py and greater_than_overlap.py share.
"""

import pandas as pd

from eap import cli, plotting
from eap.compare import edge_overlap, node_overlap
from eap.errors import UserError
from eap.manual import manual_circuit

GRAPHS = {"EAP": "vanilla", "EAP-IG": "task"}
MEASURES = [(kind, share) for kind in ("node", "edge") for share in ("precision", "recall")]


def run(description: str | None, name: str, task: str) -> None:
    """Write the table and the figure of one hand-made circuit."""
    parser = plotting.make_parser(description)
    parser.add_argument(
        "--published-wiring", action="store_true", help="with the mistakes of the published one"
    )
    args = parser.parse_args()
    try:
        graphs = {
            method: plotting.find_graph(args, f"{task}_{suffix}")
            for method, suffix in GRAPHS.items()
        }
    except FileNotFoundError as error:
        command = f"python pareto.py --model {args.model} --task {task}"
        raise UserError(f"no {error}; make it with: {command}") from None

    rows = []
    by_hand = manual_circuit(graphs["EAP"], name, published_wiring=args.published_wiring)
    sizes = [*range(30, 100, 10), *range(100, 1001, 100)]
    for size in sizes:
        row: dict[str, float] = {"edges": size}
        for method, graph in graphs.items():
            circuit = graph.greedy(min(size, graph.n_edges)).prune()
            overlaps = {
                "node": node_overlap(circuit, by_hand), "edge": edge_overlap(circuit, by_hand)
            }  # fmt: skip
            for kind, share in MEASURES:
                row[f"{method}_{kind}_{share}"] = getattr(overlaps[kind], share)
        rows.append(row)
    table = pd.DataFrame(rows)
    folder = plotting.model_folder(args, "manual_overlap")
    cli.save_csv(table, folder / "csv" / f"{task}_node_edge_precision_recall.csv")

    plotting.set_style()
    figure, axes = plotting.panels(2, columns=2, height=2.6)
    for ax, kind in zip(axes, ("node", "edge"), strict=True):
        for method in GRAPHS:
            label, colour, _, marker = plotting.METHODS[method]
            for share, line in (("precision", "-"), ("recall", "--")):
                ax.plot(
                    table["edges"], table[f"{method}_{kind}_{share}"], line,
                    color=colour, marker=marker, label=f"{label} {share}",
                )  # fmt: skip
        ax.set_title(f"{plotting.display_name(task)}: {kind}s")
        ax.set_xlabel(plotting.edges_label(graphs["EAP"].n_edges))
        ax.set_ylabel("precision, recall")
        ax.set_ylim(-0.03, 1.03)
    plotting.shared_legend(figure, axes)
    plotting.save_figure(figure, folder, f"{task}_precision_recall")

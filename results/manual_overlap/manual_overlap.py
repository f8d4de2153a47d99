"""Figure 6: precision and recall of found circuits against one that people found by hand.

What ioi_overlap.py and greater_than_overlap.py share.
"""

import pandas as pd

from eap.compare import edge_overlap, node_overlap
from eap.errors import UserError
from eap.figures import style
from eap.hand_made import load_manual_circuit
from eap.studies import shell

GRAPHS = {"EAP": "vanilla", "EAP-IG": "task"}
SIZES = range(1, 200)


def run(description: str | None, task: str) -> None:
    """Write the table and the figure of one hand-made circuit."""
    parser = style.make_parser(description, tasks=[task])
    parser.add_argument(
        "--published_wiring",
        action="store_true",
        help="compare with the circuit as the paper did, with the mistakes of its wiring",
    )
    args = parser.parse_args()
    try:
        graphs = {
            method: style.find_graph(args, f"{task}_{suffix}") for method, suffix in GRAPHS.items()
        }
    except FileNotFoundError as error:
        command = f"python pareto.py --model {args.model} --task {task}"
        raise UserError(f"no {error}; make it with: {command}") from None
    by_hand = load_manual_circuit(graphs["EAP"], task, published_wiring=args.published_wiring)

    # The n edges with the highest absolute scores, against the circuit's.
    rows = []
    for size in SIZES:
        row: dict[str, float] = {"edges": size}
        for method, graph in graphs.items():
            found = graph.top_n(size)
            for kind, compare in (("node", node_overlap), ("edge", edge_overlap)):
                overlap = compare(found, by_hand.graph, include_mlps=by_hand.include_mlps)
                row[f"{method}_{kind}_precision"] = overlap.precision
                row[f"{method}_{kind}_recall"] = overlap.recall
        rows.append(row)
    table = pd.DataFrame(rows)
    folder = style.model_folder(args, "manual_overlap")
    shell.save_csv(table, folder / "csv" / f"{task}_node_edge_precision_recall.csv")
    shell.say(f"the hand-made circuit: {by_hand.source}")

    style.set_style()
    figure, (ax,) = style.panels(1, height=2.9)
    for method in GRAPHS:
        label, colour, _, _ = style.METHODS[method]
        for kind, line in (("node", "-"), ("edge", ":")):
            ax.plot(
                table[f"{method}_{kind}_recall"],
                table[f"{method}_{kind}_precision"],
                line,
                color=colour,
                label=f"{label}, {kind}s",
            )
    ax.set_xlabel(f"recall of the hand-made circuit (top 1 to {SIZES[-1]} edges)")
    ax.set_ylabel("precision")
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(-0.03, 1.05)
    ax.set_title(style.display_name(task))
    style.shared_legend(figure, [ax], columns=2)
    style.save_figure(figure, folder, f"{task}_precision_recall")

"""Figure 6: precision and recall of scored circuits, compared with a circuit found by hand.

Shared code of ioi_overlap.py and greater_overlap.py.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

import eap
from eap import figures
from eap.figures import style, tables
from eap.studies import shell

GRAPHS = {"EAP": "vanilla", "EAP-IG": "task"}
SIZES = range(1, 200)
COLUMNS = [
    f"{method}_{kind}_{what}"
    for method in GRAPHS
    for kind in ("node", "edge")
    for what in ("precision", "recall")
]


def run(description: str | None, task: str) -> None:
    """Write the table and the figure of one circuit found by hand.

    If the graphs are missing, the figure is drawn from the existing table.
    """
    parser = shell.figure_parser(description, tasks=[task])
    parser.add_argument(
        "--published_wiring",
        action="store_true",
        help="compare with the circuit as wired in the paper, including the wiring's mistakes",
    )
    args = parser.parse_args()
    results = tables.Results(args.output, args.model)
    path = results.csv("manual_overlap", f"{task}_node_edge_precision_recall")
    command = results.command("pareto.py", f"--task {task}")
    try:
        graphs = {
            method: figures.graphs.find_graph(results, f"{task}_{suffix}")
            for method, suffix in GRAPHS.items()
        }
    except FileNotFoundError as error:
        if not path.exists():
            tables.required_table(path, f"{command} (there is no {error}), and this script")
        shell.say(f"no {error}: drawing the existing {shell.shown(path)}")
    else:
        figures.graphs.check_comparable(graphs)
        origin = figures.graphs.origin_of(
            {task: list(graphs.values())}, method="overlap with a circuit found by hand"
        )
        shell.save_csv(compare(graphs, task, args.published_wiring), path, origin)
    table = tables.required_table(path, command, needs=["edges", *COLUMNS])
    figure = draw(table, task)
    style.save_figure(figure, results.folder("manual_overlap"), f"{task}_precision_recall")


def compare(graphs: dict[str, eap.Graph], task: str, published_wiring: bool) -> pd.DataFrame:
    """Precision and recall of the n edges with the highest absolute scores, n = 1 .. 199."""
    by_hand = eap.hand_made.load_manual_circuit(
        graphs["EAP"], task, published_wiring=published_wiring
    )
    rows = []
    for size in SIZES:
        row: dict[str, float] = {"edges": size}
        for method, graph in graphs.items():
            circuit = graph.top_n(size)
            for kind, overlap_of in (
                ("node", eap.compare.node_overlap),
                ("edge", eap.compare.edge_overlap),
            ):
                overlap = overlap_of(circuit, by_hand.graph, include_mlps=by_hand.include_mlps)
                row[f"{method}_{kind}_precision"] = overlap.precision
                row[f"{method}_{kind}_recall"] = overlap.recall
        rows.append(row)
    shell.say(f"circuit found by hand: {by_hand.source}")
    return pd.DataFrame(rows)


@style.styled
def draw(table: tables.Table, task: str) -> Figure:
    """Draw precision over recall, with one line for nodes and one for edges of each method."""
    frame = table.frame
    figure, (ax,) = style.panels(1, height=2.9)
    for method in GRAPHS:
        label, colour, _, _ = style.METHODS[method]
        for kind, line in (("node", "-"), ("edge", ":")):
            ax.plot(
                frame[f"{method}_{kind}_recall"],
                frame[f"{method}_{kind}_precision"],
                line,
                color=colour,
                label=f"{label}, {kind}s",
            )
    largest = int(frame["edges"].max())
    ax.set_xlabel(f"recall of the hand-made circuit (top 1 to {largest} edges)")
    ax.set_ylabel("precision")
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(-0.03, 1.05)
    ax.set_title(style.display_name(task))
    style.shared_legend(figure, [ax], columns=2)
    style.add_note(figure, tables.origin_note([table]))
    return figure

"""How alike circuits of resampled examples are, by size: the task, a null task, and chance."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import eap_circuits
from eap.data.tasks import TASKS
from eap.figures import style, tables
from eap.studies import shell

LINES = {
    "jaccard": ("the task", style.SKY, "-o"),
    "null": ("answers shuffled", style.ORANGE, "--s"),
    "chance": ("random circuits", style.GREY, ":"),
}


def draw(ax: Axes, frame: pd.DataFrame, *, what: str) -> None:
    """Mean Jaccard similarity of edges, or of nodes (`what`), against the size selected."""
    columns = {"jaccard": f"{what}_jaccard", "null": f"null_{what}_jaccard"}
    columns["chance"] = f"{what}_chance"
    for key, (label, colour, line) in LINES.items():
        if columns[key] in frame:
            ax.plot(frame["size"], frame[columns[key]], line, color=colour, label=label)
    ax.set_xscale("log")
    ax.set_xticks(frame["size"], [f"{size:,}" for size in frame["size"]])
    ax.minorticks_off()
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("edges selected")


def main() -> None:
    """Draw results/stability/<model>/{png,pdf}/{edges,nodes}."""
    args = shell.figure_parser(__doc__, tasks=list(TASKS)).parse_args()
    results = tables.Results(args.output, args.model)
    found = tables.read_tasks(
        results,
        "stability",
        args.tasks,
        results.command("stability.py", "--task {task}"),
        needs=["size", "edge_jaccard", "edge_chance", "node_jaccard", "node_chance"],
    )
    tables.check_comparable(found.values())
    for what in ("edge", "node"):
        style.save_figure(draw_all(found, what), results.folder("stability"), f"{what}s")


@style.styled
def draw_all(found: dict[str, tables.Table], what: str) -> Figure:
    """A panel per task."""
    figure, axes = style.panels(len(found))
    for ax, (task, table) in zip(axes, found.items(), strict=True):
        draw(ax, table.frame, what=what)
        ax.set_title(style.display_name(task))
    style.label_y(axes, f"Jaccard similarity of {what}s")
    style.shared_legend(figure, axes)
    style.add_note(figure, tables.origin_note(found.values()))
    return figure


if __name__ == "__main__":
    eap_circuits.run(main)

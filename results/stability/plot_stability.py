"""Similarity of circuits found on resampled examples, by size: task, null task, and chance."""

from functools import partial

from matplotlib.axes import Axes

import eap_circuits
from eap.data.tasks import TASKS
from eap.figures import curves, style, tables
from eap.studies import shell

LINES = {
    "jaccard": ("the task", style.SKY, "-o"),
    "null": ("answers shuffled", style.ORANGE, "--s"),
    "chance": ("random circuits", style.GREY, ":"),
}


def draw(ax: Axes, table: tables.Table, *, what: str) -> None:
    """Draw the mean Jaccard similarity of edges or nodes (`what`) over the selected size."""
    frame = table.frame
    columns = {"jaccard": f"{what}_jaccard", "null": f"null_{what}_jaccard"}
    columns["chance"] = f"{what}_chance"
    for key, (label, colour, line) in LINES.items():
        if columns[key] in frame:
            ax.plot(frame["size"], frame[columns[key]], line, color=colour, label=label)
    ax.set_xscale("log")
    ax.set_xticks(frame["size"], [f"{size:,}" for size in frame["size"]])
    ax.minorticks_off()
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("edges selected (log scale)")


def main() -> None:
    """Draw results/stability/<model>/{png,pdf}/{edges,nodes}."""
    args = shell.figure_parser(__doc__, tasks=list(TASKS)).parse_args()
    results = tables.Results(args.output, args.model)
    command = results.command("stability.py", "--task {task}")
    needs = ["size", "edge_jaccard", "edge_chance", "node_jaccard", "node_chance"]
    found = tables.read_tasks(results, "stability", args.tasks, command, needs=needs)
    tables.check_comparable(found.values())
    for what in ("edge", "node"):
        figure = curves.task_panels(
            found, partial(draw, what=what), y_label=f"Jaccard similarity of {what}s"
        )
        style.save_figure(figure, results.folder("stability"), f"{what}s")


if __name__ == "__main__":
    eap_circuits.run(main)

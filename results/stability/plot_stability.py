"""How alike circuits of resampled examples are, by size: the task, a null task, and chance."""

import pandas as pd
from matplotlib.axes import Axes

from eap.data.tasks import TASKS
from eap.figures import style
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
    ax.set_ylim(0, 1.02)
    ax.set_xlabel("edges selected")


def main() -> None:
    """Draw results/stability/<model>/{png,pdf}/{edges,nodes}."""
    parser = style.make_parser(__doc__, tasks=list(TASKS))
    args = parser.parse_args()
    style.set_style()
    frames = style.read_tasks(
        args,
        "stability",
        f"python stability.py --model {args.model} --task {{task}}",
        needs=["size", "edge_jaccard", "edge_chance", "node_jaccard", "node_chance"],
    )
    for what in ("edge", "node"):
        figure, axes = style.panels(len(frames))
        for ax, (task, frame) in zip(axes, frames.items(), strict=True):
            draw(ax, frame, what=what)
            ax.set_title(style.display_name(task))
        style.label_y(axes, f"Jaccard similarity of {what}s")
        style.shared_legend(figure, axes)
        style.save_figure(figure, style.model_folder(args, "stability"), f"{what}s")


if __name__ == "__main__":
    shell.run(main)

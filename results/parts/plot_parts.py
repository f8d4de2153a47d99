"""Faithfulness of circuits whose nodes keep only their best hidden units, channels or features."""

from matplotlib.axes import Axes

import eap_circuits
from eap.data.tasks import TASKS
from eap.figures import curves, style, tables
from eap.runtime.errors import UserError
from eap.studies import shell

LOOKS = {
    "hidden units": (style.BLUE, "o"),
    "channels": (style.ORANGE, "s"),
    "features": (style.GREEN, "^"),
    "coordinates": (style.PURPLE, "D"),
}


def draw(ax: Axes, table: tables.Table) -> None:
    """Draw normalised faithfulness over the share of parts kept, for each kind of part."""
    if "parts" not in table.texts:
        raise UserError(f"{shell.shown(table.path)}: no column 'parts' that names kinds of parts")
    frame = table.frame.assign(parts=list(table.texts["parts"]))
    for y, line in ((1, "-"), (0, ":")):
        ax.axhline(y, color=style.GREY, linewidth=0.8, linestyle=line, zorder=0)
    for kind, rows in frame.groupby("parts", sort=False):
        colour, marker = LOOKS.get(str(kind), (style.BLACK, "v"))
        kept = rows[rows["kept"] > 0]
        ax.errorbar(
            100 * kept["share"], kept["faithfulness"], 1.96 * kept["standard_error"],
            color=colour, marker=marker, elinewidth=0.8, label=style.plain(str(kind)),
        )  # fmt: skip
        ax.plot(
            100 * kept["share"], kept["random"], "--", color=colour, linewidth=0.8,
            label=style.plain(f"as many {kind}, drawn at random"),
        )  # fmt: skip
    ax.set_xscale("log")
    ax.set_xlabel("% of parts kept, log scale")


def main() -> None:
    """Draw results/parts/<model>/{png,pdf}/parts."""
    args = shell.figure_parser(__doc__, tasks=list(TASKS)).parse_args()
    results = tables.Results(args.output, args.model)
    command = results.command("parts.py", "--task {task}")
    needs = ["kept", "share", "faithfulness", "standard_error", "random"]
    by_task = tables.read_tasks(results, "parts", args.tasks, command, needs=needs)
    tables.check_comparable(by_task.values())
    figure = curves.task_panels(by_task, draw, y_label="normalised faithfulness")
    style.save_figure(figure, results.folder("parts"), "parts")


if __name__ == "__main__":
    eap_circuits.run(main)

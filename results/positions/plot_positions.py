"""Faithfulness of circuits with edges at spans of the prompt, and of circuits without spans."""

from functools import partial

import numpy as np
from matplotlib.axes import Axes

import eap_circuits
from eap.data.tasks import TASKS
from eap.figures import curves, style, tables
from eap.runtime.errors import UserError
from eap.studies import shell

LINES = {
    "pairs": ("edges at spans", style.SKY, "-o"),
    "edges": ("edges everywhere", style.ORANGE, "--s"),
}
VERIFIED = {"verified": ("edges at spans, best exact", style.GREEN, ":^")}


def draw(ax: Axes, table: tables.Table, *, x: str) -> None:
    """Draw normalised faithfulness, with its 95% interval, over the size of the circuit."""
    kinds = np.array(table.texts.get("circuits", ()))
    if not set(LINES) <= set(kinds):
        raise UserError(f"{shell.shown(table.path)} has no column circuits of pairs and edges")
    present = LINES | {kind: look for kind, look in VERIFIED.items() if kind in kinds}
    for kind, (label, colour, line) in present.items():
        frame = table.frame[kinds == kind].sort_values(x)
        height = 1.96 * frame["stderr_share"]
        share = frame["normalised"]
        ax.plot(frame[x], share, line, color=colour, label=label, markersize=3)
        ax.fill_between(
            frame[x], share - height, share + height, color=colour, alpha=0.2, linewidth=0
        )
    ax.axhline(1, color=style.GREY, linewidth=0.8)
    ax.set_xscale("log")
    ax.set_xlabel("pairs, log scale" if x == "n_pairs" else "share of pairs, log scale")


def main() -> None:
    """Draw results/positions/<model>/{png,pdf}/{pairs,shares}."""
    args = shell.figure_parser(__doc__, tasks=list(TASKS)).parse_args()
    results = tables.Results(args.output, args.model)
    command = results.command("positions.py", "--task {task}")
    needs = ["n_pairs", "share_pairs", "normalised", "stderr_share"]
    found = tables.read_tasks(results, "positions", args.tasks, command, needs=needs)
    tables.check_comparable(found.values())
    for x, name in (("n_pairs", "pairs"), ("share_pairs", "shares")):
        figure = curves.task_panels(found, partial(draw, x=x), y_label="normalised faithfulness")
        style.save_figure(figure, results.folder("positions"), name)


if __name__ == "__main__":
    eap_circuits.run(main)

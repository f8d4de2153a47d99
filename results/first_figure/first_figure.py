"""Figure 1: why integrated gradients help, with results on Country-Capital.

Left: if GELU is flat at the clean input, the gradient at that input (EAP) predicts that corrupting
the input changes nothing; the mean gradient along the path (EAP-IG) predicts the change. Right:
faithfulness of circuits on Country-Capital (results of pareto.py).
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.special import ndtr

import eap_circuits
from eap.figures import curves, style, tables
from eap.studies import shell

TASK = "fact-retrieval-comma"
CLEAN, CORRUPTED = -3.0, 1.5
POINTS = 5


def main() -> None:
    """Draw results/first_figure/<model>/{png,pdf}/first_figure."""
    parser = shell.figure_parser(__doc__, tasks=(TASK,), sizes=True)
    args = parser.parse_args()
    if len(args.tasks) != 1:
        parser.error(f"--tasks: this figure shows one task, not {len(args.tasks)}")
    results = tables.Results(args.output, args.model)
    command = results.command("pareto.py", "--task {task}")
    found = tables.read_tasks(results, "pareto", args.tasks, command)
    (task, table), *_ = found.items()
    figure = draw(task, table, model=args.model, linear=args.linear)
    style.save_figure(figure, results.folder("first_figure"), "first_figure")


@style.styled
def draw(task: str, table: tables.Table, *, model: str, linear: bool) -> Figure:
    """Draw both panels."""
    figure, (left, right) = style.panels(2, columns=2, height=2.6)
    draw_gelu(left)
    bands = tables.read_bands(table)
    methods = ["EAP", "EAP-IG"]
    sizes = curves.draw_curves(right, table.frame, bands=bands, methods=methods, linear=None)
    logarithmic = style.scale_sizes([right], sizes, linear=linear)
    curves.limit_outliers(right)
    right.set_title(f"Faithfulness of circuits: {style.display_name(task)}")
    total = curves.total_edges(model, table.frame, bands)
    right.set_xlabel(curves.edges_label(total, logarithmic=logarithmic))
    right.set_ylabel("normalised faithfulness")
    right.legend(loc="lower right")
    style.add_note(figure, tables.origin_note([table]))
    return figure


def draw_gelu(ax: Axes) -> None:
    """Draw GELU from a clean input, where it is flat, to a corrupted input, and both estimates."""
    x = np.linspace(-4.2, 2.2, 200)
    ax.plot(x, gelu(x), color=style.BLACK, label="GELU")
    ends = np.array([CLEAN, CORRUPTED])
    clean, corrupted = gelu(ends)
    # The paper's rule: points k/m of the way from the corrupted to the clean input, k = 1..m.
    path = CORRUPTED + np.arange(1, POINTS + 1) / POINTS * (CLEAN - CORRUPTED)
    for method, points in (("EAP", np.array([CLEAN])), ("EAP-IG", path)):
        label, colour, _, marker = style.METHODS[method]
        slope = gelu_slope(points).mean()
        n = f"{len(points)} point{'s' if len(points) > 1 else ''}"
        ax.plot(
            ends, [clean, clean + slope * (CORRUPTED - CLEAN)], "--", color=colour,
            marker=marker, markevery=[1], markersize=5, label=f"estimate of {label} ({n})",
        )  # fmt: skip
    ax.plot(ends, [clean, corrupted], "o", color=style.BLACK, markersize=5)
    ax.plot(path, gelu(path), "|", color=style.METHODS["EAP-IG"][1], markersize=7)
    ax.text(CLEAN, clean - 0.16, "clean", ha="center", va="top")
    ax.text(CORRUPTED - 0.15, corrupted, "corrupted", ha="right", va="bottom")
    ax.set_ylim(-0.6, 2.9)
    ax.set_xlabel("activation")
    ax.set_ylabel("metric")
    ax.set_title("Gradient at one point, and along the path")
    ax.legend(loc="upper left")


def gelu(x: np.ndarray) -> np.ndarray:
    """The Gaussian error linear unit."""
    return x * ndtr(x)


def gelu_slope(x: np.ndarray) -> np.ndarray:
    """The derivative of the Gaussian error linear unit."""
    return ndtr(x) + x * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)


if __name__ == "__main__":
    eap_circuits.run(main)

"""Figure 1: why integrated gradients help, and that they do, on Country-Capital.

Left: where GELU is flat at the clean input, its gradient there says that corrupting the input
changes nothing; the mean gradient along the path says how much it does. Right: faithfulness of
circuits on Country-Capital.
"""

import torch
from matplotlib.axes import Axes
from torch.nn import functional as F

from eap import cli, curve_plots, plotting
from eap.attribute import RULES

TASK = "fact-retrieval-comma"
CLEAN, CORRUPTED = -3.0, 1.5


def main() -> None:
    """Draw results/first_figure/<model>/{png,pdf}/first_figure."""
    args = plotting.make_parser(__doc__, tasks=(TASK,)).parse_args()
    plotting.set_style()
    command = f"python pareto.py --model {args.model} --task {{task}}"
    frames = plotting.read_tasks(args, "pareto", command)
    (task, frame), *_ = frames.items()
    bands = curve_plots.read_bands(args, "pareto", [task]).get(task)
    figure, (left, right) = plotting.panels(2, columns=2, height=2.8)
    draw_gelu(left)
    curve_plots.draw_curves(right, frame, bands=bands)
    curve_plots.limit_outliers(right)
    right.set_title(plotting.display_name(task))
    right.set_xlabel(curve_plots.edges_label(curve_plots.total_edges(args.model, frame, bands)))
    right.set_ylabel("normalised faithfulness")
    plotting.shared_legend(figure, [right])
    plotting.save_figure(figure, plotting.model_folder(args, "first_figure"), "first_figure")


def draw_gelu(ax: Axes) -> None:
    """GELU between a clean input where it is flat and a corrupted one, and both estimates."""
    x = torch.linspace(-4.2, 2.4, 200)
    ax.plot(x, F.gelu(x), color=plotting.BLACK)
    ends = torch.tensor([CLEAN, CORRUPTED], dtype=torch.float64)
    clean, corrupted = F.gelu(ends).tolist()
    ax.annotate(
        "", xy=(2.15, corrupted), xytext=(2.15, clean), arrowprops={"arrowstyle": "<->", "lw": 0.8}
    )
    ax.text(2.25, (clean + corrupted) / 2, "true\nchange", va="center", fontsize="small")
    points = {"EAP": [(1.0, 1.0)], "EAP-IG": RULES["paper"](5)}
    for method, own in points.items():
        _, colour, _, _ = plotting.METHODS[method]
        slope = sum(weight * gelu_slope(CORRUPTED + t * (CLEAN - CORRUPTED)) for t, weight in own)
        ax.plot(
            ends, [clean, clean + slope * (CORRUPTED - CLEAN)], "--", color=colour, linewidth=1.2
        )
        ax.text(
            CORRUPTED + 0.05, clean + slope * (CORRUPTED - CLEAN) - 0.2, method, color=colour,
            ha="right", va="top", fontsize="small",
        )  # fmt: skip
    ax.plot(ends, [clean, corrupted], "o", color=plotting.BLACK)
    ax.text(CLEAN, clean + 0.12, "clean", ha="center", fontsize="small")
    ax.text(CORRUPTED - 0.1, corrupted + 0.08, "corrupted", ha="right", fontsize="small")
    ax.set_xlim(-4.2, 3.2)
    ax.set_ylim(-0.6, 2.0)
    ax.set_xlabel("input")
    ax.set_ylabel("GELU")
    ax.set_title("Gradient at one point, and along the path")


def gelu_slope(x: float) -> float:
    """The derivative of GELU."""
    at = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(F.gelu(at), at)
    return float(slope)


if __name__ == "__main__":
    cli.run(main)

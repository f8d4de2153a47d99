"""Figure 1: why integrated gradients help, and that they do, on Country-Capital.

Left: where GELU is flat at the clean input, its gradient there says that corrupting the input
changes nothing (EAP); the mean gradient along the path says how much it does (EAP-IG). Right:
faithfulness of circuits on Country-Capital (results of pareto.py).
"""

import torch
from matplotlib.axes import Axes
from torch.nn import functional as F

from eap.figures import curves, style
from eap.methods import RULES
from eap.studies import shell

TASK = "fact-retrieval-comma"
CLEAN, CORRUPTED = -3.0, 1.5


def main() -> None:
    """Draw results/first_figure/<model>/{png,pdf}/first_figure."""
    args = style.make_parser(__doc__, tasks=(TASK,)).parse_args()
    style.set_style()
    command = f"python pareto.py --model {args.model} --task {{task}}"
    frames = style.read_tasks(args, "pareto", command)
    (task, frame), *_ = frames.items()
    bands = curves.read_bands(args, "pareto", [task]).get(task)
    figure, (left, right) = style.panels(2, columns=2, height=2.6)
    draw_gelu(left)
    curves.draw_curves(right, frame, bands=bands, methods=["EAP", "EAP-IG"])
    curves.limit_outliers(right)
    right.set_title(f"Faithfulness of circuits: {style.display_name(task)}")
    right.set_xlabel(curves.edges_label(curves.total_edges(args.model, frame, bands)))
    right.set_ylabel("normalised faithfulness")
    right.legend()
    style.save_figure(figure, style.model_folder(args, "first_figure"), "first_figure")


def draw_gelu(ax: Axes) -> None:
    """GELU between a clean input where it is flat and a corrupted one, and both estimates."""
    x = torch.linspace(-4.2, 2.2, 200)
    ax.plot(x, F.gelu(x), color=style.BLACK, label="GELU")
    ends = torch.tensor([CLEAN, CORRUPTED], dtype=torch.float64)
    clean, corrupted = F.gelu(ends).tolist()
    for method, points in (("EAP", [(1.0, 1.0)]), ("EAP-IG", RULES["paper"](5))):
        label, colour, _, marker = style.METHODS[method]
        slope = sum(
            weight * gelu_slope(CORRUPTED + t * (CLEAN - CORRUPTED)) for t, weight in points
        )
        ax.plot(
            ends, [clean, clean + slope * (CORRUPTED - CLEAN)], "--", color=colour,
            marker=marker, markevery=[1], markersize=5, label=f"change estimated by {label}",
        )  # fmt: skip
    ax.plot(ends, [clean, corrupted], "o", color=style.BLACK, markersize=5)
    ax.text(CLEAN, clean - 0.16, "clean", ha="center", va="top")
    ax.text(CORRUPTED - 0.15, corrupted, "corrupted", ha="right", va="bottom")
    ax.set_ylim(-0.6, 2.8)
    ax.set_xlabel("activation")
    ax.set_ylabel("metric")
    ax.set_title("Gradient at one point, and along the path")
    ax.legend(loc="upper left")


def gelu_slope(x: float) -> float:
    """The derivative of GELU."""
    at = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(F.gelu(at), at)
    return float(slope)


if __name__ == "__main__":
    shell.run(main)

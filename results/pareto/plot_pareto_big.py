"""Normalised faithfulness against the share of all edges, a panel per task (of pareto_big.py)."""

from matplotlib.ticker import PercentFormatter

from eap.figures import curves, style
from eap.studies import shell


def main() -> None:
    """Draw results/pareto/<model>/{png,pdf}/pareto_big."""
    args = style.make_parser(__doc__).parse_args()
    style.set_style()
    command = f"python pareto_big.py --model {args.model} --task {{task}}"
    frames = style.read_tasks(args, "pareto", command)
    bands = curves.read_bands(args, "pareto", list(frames))
    figure, axes = style.panels(len(frames))
    for ax, (task, frame) in zip(axes, frames.items(), strict=True):
        total = curves.total_edges(args.model, frame, bands.get(task)) or frame["edges"].max()
        curves.draw_curves(ax, frame, bands=bands.get(task))
        curves.limit_outliers(ax)
        ax.xaxis.set_major_formatter(PercentFormatter(xmax=total, decimals=None))
        ax.set_title(style.display_name(task))
        ax.set_xlabel(f"share of all {total:,} edges")
    style.label_y(axes, "normalised faithfulness")
    style.shared_legend(figure, axes)
    style.save_figure(figure, style.model_folder(args, "pareto"), "pareto_big")


if __name__ == "__main__":
    shell.run(main)

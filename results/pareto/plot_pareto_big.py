"""Normalised faithfulness against the share of all edges, a panel per task (of pareto_big.py)."""

from matplotlib.ticker import PercentFormatter

from eap import cli, curve_plots, plotting


def main() -> None:
    """Draw results/pareto/<model>/{png,pdf}/pareto_big."""
    args = plotting.make_parser(__doc__).parse_args()
    plotting.set_style()
    command = f"python pareto_big.py --model {args.model} --task {{task}}"
    frames = plotting.read_tasks(args, "pareto", command)
    bands = curve_plots.read_bands(args, "pareto", list(frames))
    figure, axes = plotting.panels(len(frames))
    for ax, (task, frame) in zip(axes, frames.items(), strict=True):
        total = curve_plots.total_edges(args.model, frame, bands.get(task)) or frame["edges"].max()
        curve_plots.draw_curves(ax, frame, bands=bands.get(task))
        curve_plots.limit_outliers(ax)
        ax.xaxis.set_major_formatter(PercentFormatter(xmax=total, decimals=None))
        ax.set_title(plotting.display_name(task))
        ax.set_xlabel(f"share of all {total:,} edges")
    plotting.label_y(axes, "normalised faithfulness")
    plotting.shared_legend(figure, axes)
    plotting.save_figure(figure, plotting.model_folder(args, "pareto"), "pareto_big")


if __name__ == "__main__":
    cli.run(main)

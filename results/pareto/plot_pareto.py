"""The metric of circuits against their size, a panel per task (results of pareto.py)."""

from eap import cli, curve_plots, plotting


def main() -> None:
    """Draw results/pareto/<model>/{png,pdf}/pareto."""
    args = plotting.make_parser(__doc__).parse_args()
    plotting.set_style()
    frames = plotting.read_tasks(
        args, "pareto", f"python pareto.py --model {args.model} --task {{task}}"
    )
    bands = curve_plots.read_bands(args, "pareto", list(frames))
    figure = curve_plots.curve_figure(frames, bands, normalise=False, model=args.model)
    plotting.save_figure(figure, plotting.model_folder(args, "pareto"), "pareto")


if __name__ == "__main__":
    cli.run(main)

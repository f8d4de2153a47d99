"""Figure 10: normalised faithfulness for a few tasks alone (default: greater-than variants)."""

from eap import cli, curve_plots, plotting

TASKS = ("greater-than-price", "greater-than-sequence")


def main() -> None:
    """Draw results/pareto/<model>/{png,pdf}/pareto_normalized_<tasks>."""
    args = plotting.make_parser(__doc__, tasks=TASKS).parse_args()
    plotting.set_style()
    frames = plotting.read_tasks(
        args, "pareto", f"python pareto.py --model {args.model} --task {{task}}"
    )
    bands = curve_plots.read_bands(args, "pareto", list(frames))
    figure = curve_plots.curve_figure(frames, bands, normalise=True, model=args.model, columns=2)
    name = f"pareto_normalized_{'_'.join(frames)}"
    plotting.save_figure(figure, plotting.model_folder(args, "pareto"), name)


if __name__ == "__main__":
    cli.run(main)

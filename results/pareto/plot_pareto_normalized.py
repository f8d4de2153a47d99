"""Normalised faithfulness of circuits against their size, a panel per task (of pareto.py)."""

from eap import cli, curve_plots, plotting, published


def main() -> None:
    """Draw results/pareto/<model>/{png,pdf}/pareto_normalized."""
    parser = plotting.make_parser(__doc__)
    parser.add_argument(
        "--compare-paper",
        action="store_true",
        help="print the numbers beside the paper's of GPT-2 small, those of the comparison with "
        "exact values included",
    )
    args = parser.parse_args()
    plotting.set_style()
    frames = plotting.read_tasks(
        args, "pareto", f"python pareto.py --model {args.model} --task {{task}}"
    )
    bands = curve_plots.read_bands(args, "pareto", list(frames))
    figure = curve_plots.curve_figure(frames, bands, normalise=True, model=args.model)
    plotting.save_figure(figure, plotting.model_folder(args, "pareto"), "pareto_normalized")
    if args.compare_paper:
        cli.say(published.compare(args))


if __name__ == "__main__":
    cli.run(main)

"""Normalised faithfulness of circuits against their size, a panel per task (of pareto.py)."""

from eap.figures import curves, published, style
from eap.studies import shell


def main() -> None:
    """Draw results/pareto/<model>/{png,pdf}/pareto_normalized."""
    parser = style.make_parser(__doc__)
    parser.add_argument(
        "--compare-paper",
        action="store_true",
        help="print the numbers beside the paper's of GPT-2 small, those of the comparison with "
        "exact values included",
    )
    args = parser.parse_args()
    style.set_style()
    frames = style.read_tasks(
        args, "pareto", f"python pareto.py --model {args.model} --task {{task}}"
    )
    bands = curves.read_bands(args, "pareto", list(frames))
    figure = curves.curve_figure(frames, bands, normalise=True, model=args.model)
    style.save_figure(figure, style.model_folder(args, "pareto"), "pareto_normalized")
    if args.compare_paper:
        shell.say(published.compare(args))


if __name__ == "__main__":
    shell.run(main)

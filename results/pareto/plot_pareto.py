"""The metric of circuits against their size, a panel per task (results of pareto.py)."""

from eap.figures import curves, style
from eap.studies import shell


def main() -> None:
    """Draw results/pareto/<model>/{png,pdf}/pareto."""
    args = style.make_parser(__doc__).parse_args()
    style.set_style()
    frames = style.read_tasks(
        args, "pareto", f"python pareto.py --model {args.model} --task {{task}}"
    )
    bands = curves.read_bands(args, "pareto", list(frames))
    figure = curves.curve_figure(frames, bands, normalise=False, model=args.model)
    style.save_figure(figure, style.model_folder(args, "pareto"), "pareto")


if __name__ == "__main__":
    shell.run(main)

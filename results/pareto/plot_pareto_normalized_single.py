"""Figure 10: normalised faithfulness for a few tasks alone (default: greater-than variants)."""

from eap.figures import curves, style
from eap.studies import shell

TASKS = ("greater-than-price", "greater-than-sequence")


def main() -> None:
    """Draw results/pareto/<model>/{png,pdf}/pareto_normalized_<tasks>."""
    args = style.make_parser(__doc__, tasks=TASKS).parse_args()
    style.set_style()
    frames = style.read_tasks(
        args, "pareto", f"python pareto.py --model {args.model} --task {{task}}"
    )
    bands = curves.read_bands(args, "pareto", list(frames))
    figure = curves.curve_figure(frames, bands, normalise=True, model=args.model, columns=2)
    name = f"pareto_normalized_{'_'.join(frames)}"
    style.save_figure(figure, style.model_folder(args, "pareto"), name)


if __name__ == "__main__":
    shell.run(main)

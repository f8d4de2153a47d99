"""Figure 7: what the number of steps of integrated gradients does to faithfulness."""

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from eap.figures import curves, style
from eap.studies import shell


def draw(ax: Axes, frame: pd.DataFrame) -> None:
    """A line per number of steps, darker with more steps; and EAP."""
    clean, corrupted = curves.baselines(frame)
    names = [name.removeprefix("results_") for name in frame if name.startswith("results_")]
    steps = sorted((name for name in names if name.isdigit()), key=int)
    colours = sns.color_palette("crest", len(steps))
    for name, colour in [("vanilla", style.ORANGE), *zip(steps, colours, strict=True)]:
        if name not in names:
            continue
        ax.plot(
            frame[f"n_edges_{name}"],
            curves.normalised(frame[f"results_{name}"], clean, corrupted),
            "--" if name == "vanilla" else "-",
            color=colour,
            label="EAP" if name == "vanilla" else f"{name} steps",
        )
    for share, line in ((1, "-"), (0, ":")):
        ax.axhline(share, color=style.GREY, linewidth=0.8, linestyle=line, zorder=0)
    curves.limit_outliers(ax)


def main() -> None:
    """Draw results/ig_test/<model>/{png,pdf}/ig_test."""
    parser = style.make_parser(__doc__, tasks=["ioi", "greater-than", "gender-bias"])
    parser.add_argument("--eval_metric", help="of faithfulness (default: each task's own)")
    args = parser.parse_args()
    style.set_style()
    frames = style.read_tasks(
        args,
        "ig_test",
        f"python test_ig_iterations.py --model {args.model} --task {{task}}",
        name_of=lambda task: f"{task}_{args.eval_metric or style.metric_of(task)}_ig_test",
        needs=["n_edges", "baseline"],
    )
    folder = style.model_folder(args, "ig_test") / "csv"
    figure, axes = style.panels(len(frames), height=2.6)
    for ax, (task, frame) in zip(axes, frames.items(), strict=True):
        if "corrupted_baseline" not in frame:  # one of the published tables lacks it
            path = style.model_folder(args, "pareto") / "csv" / f"{task}.csv"
            pareto = style.read_table(path, needs=["corrupted_baseline"])
            frame["corrupted_baseline"] = pareto["corrupted_baseline"].iloc[0]
        draw(ax, frame)
        metric = args.eval_metric or style.metric_of(task)
        path = folder / f"{task}_{metric}_ig_test_bands.csv"
        bands = style.read_table(path) if path.exists() else None
        ax.set_title(style.display_name(task))
        ax.set_xlabel(curves.edges_label(curves.total_edges(args.model, frame, bands)))
    style.label_y(axes, "normalised faithfulness")
    style.shared_legend(figure, axes, columns=5)
    style.save_figure(figure, style.model_folder(args, "ig_test"), "ig_test")


if __name__ == "__main__":
    shell.run(main)

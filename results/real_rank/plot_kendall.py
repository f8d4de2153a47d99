"""Figure 8: differences and rank agreement of estimates with exact values (of compare_real.py)."""

import matplotlib.pyplot as plt

from eap.figures import style
from eap.studies import shell


def main() -> None:
    """Draw results/real_rank/<model>/{png,pdf}/kendall_difference."""
    parser = style.make_parser(__doc__)
    parser.add_argument("--metric", help="that was given to compare_real.py, if any")
    args = parser.parse_args()
    style.set_style()
    command = f"python results/real_rank/compare_real.py --model {args.model}"
    correlations, tasks = style.read_correlations(args, command)

    # Differences of logits and of probabilities are no common scale: a panel for each metric.
    by_metric: dict[str, list[str]] = {}
    for task in tasks:
        by_metric.setdefault(args.metric or style.metric_of(task), []).append(task)
    widths = [len(own) for own in by_metric.values()] + [len(tasks)]
    figure, axes = plt.subplots(
        1, len(widths), figsize=(style.PAPER_WIDTH, 2.9), width_ratios=widths, squeeze=False
    )
    *differences, last = axes.flat
    for ax, (metric, own) in zip(differences, by_metric.items(), strict=True):
        style.draw_method_bars(ax, correlations, own, suffix="_diff")
        ax.set_ylabel(style.METRIC_NAMES.get(metric, metric))
        ax.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
        ax.set_title("Mean |difference|")
    style.draw_method_bars(last, correlations, tasks, suffix="_kendall")
    last.set_ylabel("Kendall's tau")
    last.set_title("Ranks of absolute scores")
    style.shared_legend(figure, list(axes.flat))
    style.save_figure(figure, style.model_folder(args, "real_rank"), "kendall_difference")


if __name__ == "__main__":
    shell.run(main)

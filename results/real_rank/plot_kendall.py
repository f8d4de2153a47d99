"""Figure 8: difference and rank agreement of estimates and exact values (from compare_real.py)."""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

import eap_circuits
from eap.figures import bars, published, style, tables
from eap.studies import shell
from eap.studies.settings import default_metric


def main() -> None:
    """Draw results/real_rank/<model>/{png,pdf}/kendall_difference."""
    parser = shell.figure_parser(__doc__)
    parser.add_argument(
        "--metric", help="metric of the y axis (default: the metric that compare_real.py compared)"
    )
    args = parser.parse_args()
    results = tables.Results(args.output, args.model)
    command = results.command("results/real_rank/compare_real.py")
    correlations, tasks = tables.read_correlations(results, args.tasks, command)
    overlaps = tables.required_table(results.csv("real_rank", "all-overlap"), command)
    compared = published.compared_metrics(results)
    metrics = {task: args.metric or compared.get(task) or default_metric(task) for task in tasks}
    figure = draw(correlations, metrics)
    style.add_note(figure, tables.origin_note([overlaps]))
    style.save_figure(figure, results.folder("real_rank"), "kendall_difference")


@style.styled
def draw(correlations: dict[str, float], metrics: dict[str, str]) -> Figure:
    """Draw differences in one panel per metric, because the scales differ, and rank agreement."""
    tasks = list(metrics)
    by_metric: dict[str, list[str]] = {}
    for task, metric in metrics.items():
        by_metric.setdefault(metric, []).append(task)
    widths = [len(group) for group in by_metric.values()] + [len(tasks)]
    figure, axes = plt.subplots(
        1, len(widths), figsize=(style.PAPER_WIDTH, 2.9), width_ratios=widths, squeeze=False
    )
    *differences, last = axes.flat
    for ax, (metric, group) in zip(differences, by_metric.items(), strict=True):
        bars.draw_method_bars(ax, correlations, group, suffix="_diff")
        ax.set_ylabel(style.metric_name(metric))
        ax.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
        ax.set_title("Mean |difference|")
    bars.draw_method_bars(last, correlations, tasks, suffix="_kendall")
    last.set_ylabel("Kendall's tau")
    last.set_title("Ranks of absolute scores")
    style.shared_legend(figure, list(axes.flat))
    return figure


if __name__ == "__main__":
    eap_circuits.run(main)

"""Figure 4: agreement of EAP and EAP-IG with exact values (results of compare_real.py)."""

from matplotlib.figure import Figure

import eap_circuits
from eap.figures import bars, style, tables
from eap.studies import shell

LINES = {"EAP": "vanilla", "EAP-IG": "ig"}


def main() -> None:
    """Draw results/real_rank/<model>/{png,pdf}/correlation_overlap."""
    args = shell.figure_parser(__doc__).parse_args()
    results = tables.Results(args.output, args.model)
    command = results.command("results/real_rank/compare_real.py")
    correlations, tasks = tables.read_correlations(results, args.tasks, command)
    needs = ["depth", *(f"{task}_{column}" for task in tasks for column in LINES.values())]
    overlaps = tables.required_table(results.csv("real_rank", "all-overlap"), command, needs=needs)
    figure = draw(correlations, overlaps, tasks)
    style.save_figure(figure, results.folder("real_rank"), "correlation_overlap")


@style.styled
def draw(correlations: dict[str, float], overlaps: tables.Table, tasks: list[str]) -> Figure:
    """Draw bars of correlations on the left, and overlap by depth on the right."""
    figure, (left, right) = style.panels(2, columns=2, height=2.9)
    bars.draw_method_bars(left, correlations, tasks, suffix="")
    left.set_ylabel("Pearson's r")
    left.set_title("Absolute scores against exact ones")
    bars.draw_task_lines(right, overlaps.frame, tasks, LINES, start=4)
    right.set_xlabel("n edges with the highest absolute scores")
    right.set_ylabel("average overlap")
    right.set_title("Overlap with the exact top n")
    style.shared_legend(figure, [left, right], columns=4)
    style.add_note(figure, tables.origin_note([overlaps]))
    return figure


if __name__ == "__main__":
    eap_circuits.run(main)

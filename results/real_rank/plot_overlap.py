"""Figure 4: how EAP's and EAP-IG's scores agree with exact ones (results of compare_real.py)."""

from eap.figures import style
from eap.studies import shell


def main() -> None:
    """Draw results/real_rank/<model>/{png,pdf}/correlation_overlap."""
    args = style.make_parser(__doc__).parse_args()
    style.set_style()
    command = f"python results/real_rank/compare_real.py --model {args.model}"
    folder = style.model_folder(args, "real_rank")
    correlations, tasks = style.read_correlations(args, command)
    overlaps = style.required_table(folder / "csv" / "all-overlap.csv", command, needs=["depth"])

    figure, (left, right) = style.panels(2, columns=2, height=2.9)
    style.draw_method_bars(left, correlations, tasks, suffix="")
    left.set_ylabel("Pearson's r")
    left.set_title("Absolute scores against exact ones")
    style.draw_task_lines(right, overlaps, tasks, {"EAP": "vanilla", "EAP-IG": "ig"}, start=4)
    right.set_xlabel("n edges with the highest absolute scores")
    right.set_ylabel("average overlap")
    right.set_title("Overlap with the exact top n")
    style.shared_legend(figure, [left, right], columns=4)
    style.save_figure(figure, folder, "correlation_overlap")


if __name__ == "__main__":
    shell.run(main)

"""Figure 9: overlap of circuits from estimates with those from exact values, by size.

Results of compare_real.py. A line begins where the first of the two circuits is not empty.
"""

from eap.figures import style
from eap.studies import shell


def main() -> None:
    """Draw results/real_rank/<model>/{png,pdf}/node_edge_overlap."""
    args = style.make_parser(__doc__).parse_args()
    style.set_style()
    command = f"python results/real_rank/compare_real.py --model {args.model}"
    folder = style.model_folder(args, "real_rank")
    figure, axes = style.panels(2, columns=2, height=2.9)
    for ax, kind in zip(axes, ("node", "edge"), strict=True):
        path = folder / "csv" / f"{kind}-overlap.csv"
        table = style.required_table(path, command, needs=["depth"])
        tasks = [task for task in args.tasks if f"{task}_real_EAP" in table]
        style.draw_task_lines(ax, table, tasks, {"EAP": "real_EAP", "EAP-IG": "real_EAP-IG"})
        ax.set_ylim(-0.03, 1.03)
        ax.set_xlabel("edges selected (before pruning)")
        ax.set_ylabel("intersection over union")
        ax.set_title(f"{kind.capitalize()}s shared with the exact circuit")
    style.shared_legend(figure, axes, columns=4)
    style.save_figure(figure, folder, "node_edge_overlap")


if __name__ == "__main__":
    shell.run(main)

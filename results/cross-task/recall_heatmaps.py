"""Appendix I: recall of the tasks' circuits beside how well each does the other tasks.

Recall: the share of a task's circuit (row) that is in another task's circuit (column).
"""

from eap.figures import style
from eap.figures.cross_task import read_faithfulness, read_square
from eap.studies import shell


def main() -> None:
    """Draw results/cross-task/<model>/{png,pdf}/recall."""
    args = style.make_parser(__doc__, tasks=()).parse_args()
    style.set_style()
    _, of_own = read_faithfulness(args)
    figure, axes = style.heatmap_row(
        {
            "Node recall": read_square(args, "node_overlap"),
            "Edge recall": read_square(args, "edge_overlap"),
            "Cross-task / own circuit's": of_own,
        }
    )
    axes[0].set_ylabel("share of this circuit")
    for ax in axes[:2]:
        ax.set_xlabel("found in this circuit")
    axes[2].set_xlabel("whose circuit")
    axes[2].set_ylabel("tested on")
    style.save_figure(figure, style.model_folder(args, "cross-task"), "recall")


if __name__ == "__main__":
    shell.run(main)

"""Appendix I: recall of the tasks' circuits beside how well each does the other tasks.

Recall: the share of a task's circuit (row) that is in another task's circuit (column).
"""

from eap import cli, plotting
from eap.crosstask import read_faithfulness, read_square


def main() -> None:
    """Draw results/cross-task/<model>/{png,pdf}/recall."""
    args = plotting.make_parser(__doc__, tasks=()).parse_args()
    plotting.set_style()
    _, of_own = read_faithfulness(args)
    figure, axes = plotting.heatmap_row(
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
    plotting.save_figure(figure, plotting.model_folder(args, "cross-task"), "recall")


if __name__ == "__main__":
    cli.run(main)

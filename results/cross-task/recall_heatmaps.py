"""Appendix I: how much of one task's circuit another task's circuit has (recall)."""

import pandas as pd

from eap import cli, plotting
from eap.compare import edge_overlap, node_overlap
from eap.errors import UserError
from eap.tasks import TASKS


def main() -> None:
    """Draw results/cross-task/<model>/{png,pdf}/recall."""
    args = plotting.make_parser(__doc__, tasks=tuple(TASKS)).parse_args()
    plotting.set_style()
    command = f"python overlap_heatmaps.py --model {args.model}"
    circuits = {}
    for task in args.tasks:
        try:
            circuits[task] = plotting.find_graph(args, f"{task}_circuit")
        except FileNotFoundError as error:
            print(f"left out: no {error}; make it with: {command}")
    if not circuits:
        raise UserError(f"no circuits of {args.model}; begin with: {command}")
    figure, axes = plotting.panels(2, columns=2, height=3.4)
    figure.set_size_inches(1.4 * plotting.PAPER_WIDTH, 4.8)
    for ax, kind, compare in zip(axes, ("Node", "Edge"), (node_overlap, edge_overlap), strict=True):
        table = pd.DataFrame(
            {
                column: {row: compare(first, second).recall for row, first in circuits.items()}
                for column, second in circuits.items()
            }
        )
        plotting.draw_heatmap(ax, table, title=f"{kind} recall")
        ax.set_xlabel("of this task's circuit")
        ax.set_ylabel("found in this task's circuit")
    plotting.save_figure(figure, plotting.model_folder(args, "cross-task"), "recall")


if __name__ == "__main__":
    cli.run(main)

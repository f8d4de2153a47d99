"""Appendix I: recall of the tasks' circuits, and their faithfulness on the other tasks.

Recall is the share of one task's circuit (row) that is in another task's circuit (column).
"""

import eap_circuits
from eap.figures import cross_task, heatmaps, style, tables
from eap.studies import shell


def main() -> None:
    """Draw results/cross-task/<model>/{png,pdf}/recall."""
    args = shell.figure_parser(__doc__, tasks=()).parse_args()
    results = tables.Results(args.output, args.model)
    found = cross_task.read_squares(results, "node_overlap", "edge_overlap")
    tables.check_comparable(found)
    (nodes, edges), metric = cross_task.align_done(*found, tasks=args.tasks)
    own = "Cross-task / own circuit's"
    panels = {"Node recall": nodes, "Edge recall": edges}
    if metric is not None:
        panels[own] = cross_task.share_of_own(metric)
    figure = heatmaps.heatmap_row(
        panels,
        labels={
            "Node recall": ("found in this circuit", "share of this circuit"),
            "Edge recall": ("found in this circuit", ""),
            own: ("whose circuit", "tested on"),
        },
    )
    style.add_note(figure, tables.origin_note(found))
    style.save_figure(figure, results.folder("cross-task"), "recall")


if __name__ == "__main__":
    eap_circuits.run(main)

"""Figure 5: overlap of the tasks' circuits, and their faithfulness on the other tasks.

Draws cross_task (faithfulness as a share of the whole model's faithfulness) and cross_task_own (as
a share of the faithfulness of the task's own circuit), and prints how well overlap predicts the
second share.
"""

import eap_circuits
from eap.figures import cross_task, heatmaps, style, tables
from eap.studies import shell


def main() -> None:
    """Draw results/cross-task/<model>/{png,pdf}/{cross_task,cross_task_own}."""
    args = shell.figure_parser(__doc__, tasks=()).parse_args()
    results = tables.Results(args.output, args.model)
    found = cross_task.read_squares(results, "node_ious", "edge_ious")
    tables.check_comparable(found)
    for name, title, own in (
        ("cross_task", "Cross-task faithfulness", False),
        ("cross_task_own", "Cross-task / own circuit's", True),
    ):
        (nodes, edges), metric = cross_task.align_done(*found, tasks=args.tasks, own=own)
        share = cross_task.share_of_own if own else cross_task.share_of_model
        overlaps = {"node IoU": nodes, "edge IoU": edges}
        panels = {"Node IoU": nodes, "Edge IoU": edges}
        if metric is not None:
            panels[title] = share(metric)
        figure = heatmaps.heatmap_row(
            panels,
            labels={title: ("whose circuit", "tested on")},
            sizes=cross_task.circuit_sizes(found[1]),
        )
        style.add_note(figure, tables.origin_note(found))
        style.save_figure(figure, results.folder("cross-task"), name)
    if title in panels:
        shell.say(cross_task.summary(overlaps, panels[title]))


if __name__ == "__main__":
    eap_circuits.run(main)

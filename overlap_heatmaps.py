"""How much the circuits of the tasks overlap: IoU of edges and nodes, and how likely by chance.

Writes results/jaccard/<model>/csv/{edge,node}_{ious,iou_ps,overlap}.csv (a row and a column per
task; overlap is the share of the row's circuit that the column's has), and heat maps of them.
"""

import pandas as pd

from eap.compare import edge_overlap, node_overlap
from eap.figures import heatmaps, style
from eap.runtime import distributed
from eap.studies import shell
from eap.studies.task_circuits import task_circuit

TABLES = {
    "ious": ("IoU", lambda overlap: overlap.iou),
    "iou_ps": ("P(overlap this large by chance)", lambda overlap: overlap.p_value),
    "overlap": ("share of the row's circuit", lambda overlap: overlap.precision),
}


def main() -> None:
    """Run the experiment that the command line describes."""
    parser = shell.make_parser(__doc__, tasks=True)
    shell.add_ig_arguments(parser)
    args = parser.parse_args()

    model = shell.load_model_of(args)
    datasets = shell.load_tasks(args, model)
    circuits = {task: task_circuit(args, model, task, own) for task, own in datasets.items()}

    for kind, compare in (("edge", edge_overlap), ("node", node_overlap)):
        for name, (title, measure) in TABLES.items():
            table = pd.DataFrame(
                {
                    column: {
                        row: measure(compare(first, second)) for row, first in circuits.items()
                    }
                    for column, second in circuits.items()
                }
            )
            path = shell.csv_path(args, "jaccard", model, f"{kind}_{name}")
            shell.save_csv(table, path, index=True)
            if distributed.is_first():
                figure = heatmaps.heatmap_figure(
                    table, title=f"{kind}s: {title}", probabilities=name == "iou_ps"
                )
                style.save_figure(figure, path.parent.parent, f"{kind}_{name}")
    shell.say("\nedge IoU:")
    shell.say(
        pd.DataFrame(
            {b: {a: edge_overlap(circuits[a], circuits[b]).iou for a in circuits} for b in circuits}
        )
        .round(2)
        .to_string()
    )


if __name__ == "__main__":
    shell.run(main)

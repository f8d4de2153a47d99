"""Overlap of the tasks' circuits: IoU of edges and nodes, and its probability by chance.

Writes results/jaccard/<model>/csv/{edge,node}_{ious,iou_ps,overlap}.csv, with one row and one
column per task, and a heat map of each table. In the overlap tables, a value is the share of the
row's circuit that is also in the column's circuit.
"""

import eap_circuits
from eap import figures, studies
from eap.data.tasks import get_task
from eap.runtime import processes
from eap.studies import shell

TITLES = {
    "ious": "IoU",
    "iou_ps": "P(overlap this large by chance)",
    "overlap": "share of the row's circuit",
}


def main() -> None:
    """Run the experiment that the command line describes."""
    parser = shell.make_parser(__doc__, tasks=True)
    shell.add_ig_arguments(parser)
    args = parser.parse_args()

    # 1. Find the circuit of every task.
    settings = shell.settings_of(args)
    model = studies.load_model_of(settings)
    datasets = studies.load_tasks(settings, model)
    circuits = studies.find_circuits(settings, model, datasets)

    # 2. Compare the circuits in pairs, and save the tables.
    tables = studies.compare_circuits(circuits)
    origin = studies.describe(
        settings, model, datasets,
        by_task={
            task: {
                "attribution_metric": get_task(task).metric,
                "n_edges": circuits[task].count_edges(),
                "circuit": studies.circuit_identity(circuits[task]),
            }
            for task in datasets
        },
        method="overlap of circuits",
        options={"ig_steps": args.ig_steps, "ig_rule": args.ig_rule},
    )  # fmt: skip
    folder = studies.paths.study_folder(args.output, "jaccard", args.model)
    for name, table in tables.items():
        studies.save_csv(table, folder / "csv" / f"{name}.csv", origin, index=True)
        if processes.is_first():
            kind, _, measure = name.partition("_")
            sizes = {
                task: circuit.count_edges()
                if kind == "edge"
                else len({*circuit.nodes_in_graph()} - {"input", "logits"})
                for task, circuit in circuits.items()
            }
            figure = figures.heatmaps.heatmap_figure(
                table, title=f"{kind}s: {TITLES[measure]}",
                probabilities=measure == "iou_ps", sizes=sizes,
            )  # fmt: skip
            figures.style.save_figure(figure, folder, name)

    # 3. Print the results.
    shell.say(f"\nedge IoU:\n{tables['edge_ious'].round(2).to_string()}")
    command = studies.next_experiment("all_cross_task_faithfulness.py", settings=settings)
    shell.say(f"\n{shell.shown(folder)} is written; measure the circuits on other tasks: {command}")


if __name__ == "__main__":
    eap_circuits.run(main)

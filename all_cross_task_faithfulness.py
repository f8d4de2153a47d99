"""Cross-task faithfulness: the metric of every task under the circuit of every task.

Writes results/cross-task/<model>/csv/faithfulness.csv, with one row per task tested, one column per
task whose circuit is used, and two columns of baselines. Values are means of the metric of the
row's task.
"""

import eap_circuits
from eap import studies
from eap.data.tasks import get_task
from eap.statistics import measures
from eap.studies import shell


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

    # 2. Measure every circuit on every task.
    table = studies.cross_task_table(settings, model, circuits, datasets)
    origin = studies.describe(
        settings, model, datasets,
        by_task={
            task: {
                "metric": get_task(task).cross_task_metric,
                "attribution_metric": get_task(task).metric,
                "circuit": studies.circuit_identity(circuits[task]),
            }
            for task in datasets
        },
        method="circuits on other tasks",
        options={"ig_steps": args.ig_steps, "ig_rule": args.ig_rule},
    )  # fmt: skip
    csv = studies.paths.table_file(args.output, "cross-task", args.model, "faithfulness")
    studies.save_csv(table, csv, origin, index=True)

    # 3. Print the results.
    shares = table[list(circuits)].apply(
        lambda column: measures.normalised(column, table["baseline"], table["corrupted_baseline"])
    )
    shell.say("\nnormalised faithfulness (row: task tested, column: task of the circuit):")
    shell.say(shares.round(2).to_string())
    script = "results/cross-task/make_all_heatmaps.py"
    studies.say_next(csv, "draw it with", script, settings=settings)


if __name__ == "__main__":
    eap_circuits.run(main)

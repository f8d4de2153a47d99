"""Does the circuit of one task do another? The metric of every task under every task's circuit.

Writes results/cross-task/<model>/csv/faithfulness.csv: a row per task tested on, a column per task
whose circuit is used, then the baselines of the row's task. Values are means of its metric.
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

    # 1. The circuit of every task.
    settings = shell.settings_of(args)
    model = studies.load_model_of(settings)
    datasets = studies.load_tasks(settings, model)
    circuits = studies.find_circuits(settings, model, datasets)

    # 2. Every circuit on every task.
    table = studies.cross_task_table(settings, model, circuits, datasets)
    origin = studies.describe(
        settings, model, datasets,
        by_task={
            task: {
                "metric": get_task(task).cross_task_metric,
                "attribution_metric": get_task(task).metric,
            }
            for task in datasets
        },
        method="circuits on other tasks",
        options={"ig_steps": args.ig_steps, "ig_rule": args.ig_rule},
    )  # fmt: skip
    csv = studies.paths.table_file(args.output, "cross-task", args.model, "faithfulness")
    studies.save_csv(table, csv, origin, index=True)

    # 3. Say what came out.
    shares = table[list(circuits)].apply(
        lambda column: measures.normalised(column, table["baseline"], table["corrupted_baseline"])
    )
    shell.say("\nnormalised faithfulness (row: task, column: whose circuit):")
    shell.say(shares.round(2).to_string())
    command = studies.next_command("results/cross-task/make_all_heatmaps.py", settings=settings)
    shell.say(f"\n{shell.shown(csv)} is written; draw it with: {command}")


if __name__ == "__main__":
    eap_circuits.run(main)

"""Does the circuit of one task do another? The metric of every task under every task's circuit.

Writes results/cross-task/<model>/csv/faithfulness.csv: a row per task tested on, a column per task
whose circuit is used, then the baselines of the row's task. Values are means of its metric.
"""

import pandas as pd

from eap.circuits import evaluate, evaluate_baselines
from eap.data.tasks import get_task
from eap.measures import normalised
from eap.studies import shell
from eap.studies.task_circuits import task_circuit


def main() -> None:
    """Run the experiment that the command line describes."""
    parser = shell.make_parser(__doc__, tasks=True)
    shell.add_ig_arguments(parser)
    args = parser.parse_args()

    model = shell.load_model_of(args)
    datasets = shell.load_tasks(args, model)
    circuits = {task: task_circuit(args, model, task, own) for task, own in datasets.items()}

    rows = {}
    for task, dataset in datasets.items():
        metric = get_task(task).cross_task_metric
        shell.say(f"{task} by {metric}, under the circuits of {len(circuits)} tasks")
        options = {
            "metrics": [metric],
            "batch_size": args.batch_size,
            "memory_budget": args.memory,
        }
        clean, corrupted = evaluate_baselines(model, dataset, **options)
        values = evaluate(model, list(circuits.values()), dataset, quiet=False, **options)[metric]
        rows[task] = {
            **dict(zip(circuits, values.mean(1).tolist(), strict=True)),
            "baseline": float(clean[metric].mean()),
            "corrupted_baseline": float(corrupted[metric].mean()),
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    shell.save_csv(table, shell.csv_path(args, "cross-task", model, "faithfulness"), index=True)
    shares = table[list(circuits)].apply(
        lambda column: normalised(column, table["baseline"], table["corrupted_baseline"])
    )
    shell.say("\nnormalised faithfulness (row: task, column: whose circuit):")
    shell.say(shares.round(2).to_string())


if __name__ == "__main__":
    shell.run(main)

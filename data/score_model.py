"""Clean and corrupted metric and accuracy of a model on every task, as a table.

    python data/score_model.py --model toy
    python data/score_model.py --model path/to/hf-directory --head 200

Accuracy is the share of pairs whose correct answers are more probable than the incorrect answers.
"""

import pandas as pd

from eap.circuits import evaluate_baselines
from eap.data.tasks import get_task
from eap.studies import shell
from eap.studies.scoring import load_model_of, load_tasks


def main() -> None:
    """Print one row per task, in Markdown."""
    parser = shell.make_parser(__doc__, tasks=True)
    args = parser.parse_args()
    settings = shell.settings_of(args)
    model = load_model_of(settings)
    rows = []
    for name, dataset in load_tasks(settings, model).items():
        task = get_task(name)
        clean, corrupted = evaluate_baselines(
            model, dataset, metrics=[task.metric, "accuracy"], **settings.resources
        )
        rows.append(
            {
                "task": task.name,
                "pairs": len(dataset),
                "accuracy": f"{float(clean['accuracy'].mean()):.3f}",
                "metric": task.metric,
                "clean": f"{float(clean[task.metric].mean()):.3f}",
                "corrupted": f"{float(corrupted[task.metric].mean()):.3f}",
            }
        )
    shell.say()
    shell.say(as_markdown(pd.DataFrame(rows)))


def as_markdown(table: pd.DataFrame) -> str:
    """Format a table as Markdown."""
    lines = [list(table.columns), ["---"] * table.shape[1], *table.astype(str).to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    shell.run(main)

"""Which method ranks best? CPR, CMD and accuracy areas of all of them: docs/method-areas.md.

    python benchmarks/areas.py --model toy --learned

Every method scores the edges (and, where it has them, the nodes) on the first pairs of each task,
and is judged on other pairs. Learned rankings (MAttr) are trained on the same first pairs, with the
metric as their loss and with |1 - faithfulness|.
"""

import argparse
import time
import warnings
from pathlib import Path

import pandas as pd

import eap
from eap.data.dataset import Dataset
from eap.data.tasks import PARETO_TASKS, TASKS
from eap.errors import UserError
from eap.methods import METHODS
from eap.runtime.atomic import write_atomically
from eap.runtime.code import command

LEARNED = {"MAttr (metric)": "metric", "MAttr (faithfulness)": "faithfulness"}
"""Losses of learned rankings, by the names of their rows."""

OVERSHOOT = 1.02
"""A ranking overshoots where its CPR's whole interval is above this."""

PAGE = Path(__file__).resolve().parent.parent / "docs" / "method-areas.md"
INTRODUCTION = """# Areas of every method

Written by `python benchmarks/{command}`.
Model `{model}`; every method scored the first {pairs} pairs of a task and was judged on the next
{judged}; metric: each task's own.

**CPR** is the area under normalised faithfulness for circuits of the most helpful edges (or nodes),
.999 for a ranking whose every circuit is the whole model; above 1 it overshoots, which is no
virtue. **CMD** is the area between faithfulness and 1 for circuits of the edges with the largest
magnitudes: 0 is best. **Accuracy** is the mean share of pairs decided right over the logarithm of
the size. 95% intervals over pairs in brackets; the best of a column is bold (for CPR, that nearest
to .999). **Edges left** is what pruning leaves of the most helpful edges, size by size. Edges are
selected by top-n; those of a method that asks for no metric (IFR) greedily from the logits, because
its best edges are not connected.
"""


def main() -> None:
    """Score, judge, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--model", default="toy")
    add("--tasks", nargs="+", default=list(PARETO_TASKS))
    add("--pairs", type=int, default=100, help="number of pairs that methods score")
    add("--judged", type=int, default=200, help="others, on which they are judged")
    add("--steps", type=int, default=5, help="number of points, for methods that integrate")
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    add("--levels", nargs="+", choices=("edge", "node"), default=["edge", "node"])
    add("--learned", action="store_true", help="MAttr as well (minutes a task)")
    add(
        "--learning_steps",
        type=int,
        help="optimizer steps of MAttr (default: 5000 for edges, 500 for nodes)",
    )
    add("--page", type=Path, default=PAGE)
    add("--csv", type=Path, help="a table of the numbers, too")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")

    model = eap.load_model(args.model)
    parts = [
        INTRODUCTION.format(
            command=command(),
            model=model.short_name,
            pairs=args.pairs,
            judged=args.judged,
        )
    ]
    records = []
    for task in args.tasks:
        data = eap.load_dataset(task, model.tokenizer, head=args.pairs + args.judged)
        first, others = split(data, args.pairs)
        metric = TASKS[task].metric
        for level in args.levels:
            rows = []
            for name in [*args.methods, *(LEARNED if args.learned else ())]:
                begun = time.perf_counter()
                try:
                    graph = score(model, first, name, metric, level, args)
                except UserError:  # the method has no scores of this level, or no such gradient
                    continue
                seconds = time.perf_counter() - begun
                found = eap.areas(model, graph, others, metric=metric, level=level)
                rows.append((name, found, seconds))
                records.append(record(task, level, name, found, seconds))
                print(f"{task} {level} {name}: {found} ({seconds:.1f} s)", flush=True)
            parts.append(table(f"{TASKS[task].display_name}, {metric}, {level}s", rows))
    parts.insert(1, summary(pd.DataFrame(records)))
    with write_atomically(args.page) as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf8")
    print(f"wrote {args.page}")
    if args.csv:
        with write_atomically(args.csv) as temporary:
            pd.DataFrame(records).to_csv(temporary, index=False)
        print(f"wrote {args.csv}")


def record(
    task: str, level: str, name: str, found: eap.Areas, seconds: float
) -> dict[str, str | float]:
    """A row of the table of numbers."""
    row: dict[str, str | float] = {"task": task, "level": level, "method": name}
    for column in ("cpr", "cmd", "accuracy"):
        area = getattr(found, column)
        row |= {column: area.value, f"{column}_low": area.low, f"{column}_high": area.high}
    return {**row, "seconds": seconds}


def summary(frame: pd.DataFrame) -> str:
    """What wins where, and what overshoots: in how many tasks."""
    lines = ["## What wins, and what overshoots", ""]
    for level, rows in frame.groupby("level", sort=False):
        by_task = rows.groupby("task", sort=False)
        for column, words in (("cmd", "lowest CMD"), ("accuracy", "highest accuracy")):
            best = by_task[column].idxmin() if column == "cmd" else by_task[column].idxmax()
            wins = rows.loc[best, "method"].value_counts()
            counted = ", ".join(f"{name} {n}" for name, n in wins.items())
            lines.append(f"- {level}s, {words}: {counted} (of {len(by_task)} tasks).")
        above = rows[rows["cpr_low"] > OVERSHOOT]["method"].value_counts()
        counted = ", ".join(f"{name} {n}" for name, n in above.items()) or "none"
        lines.append(f"- {level}s, CPR above {OVERSHOOT} with 95% confidence: {counted}.")
    return "\n".join(lines)


def split(data: Dataset, n: int) -> tuple[Dataset, Dataset]:
    """The first n pairs, and the others."""
    others = Dataset(data.task, data.examples[n:], data.prepend_bos, data.provenance)
    return data.head(n), others


def score(
    model: eap.Model, data: Dataset, name: str, metric: str, level: str, args: argparse.Namespace
) -> eap.Graph:
    """One method's ranking."""
    if name in LEARNED:
        return eap.learn_ranking(
            model,
            data,
            metric=metric,
            level=level,
            recipe=eap.Recipe(steps=args.learning_steps, loss=LEARNED[name]),
        )
    method = METHODS[name]
    asked = metric if method.uses_metric else None
    options = {"steps": args.steps} if method.integrates else {}
    return eap.attribute(model, data, method=name, metric=asked, level=level, **options)


def table(title: str, rows: list[tuple[str, eap.Areas, float]]) -> str:
    """A task's methods side by side."""
    best = {
        "cpr": min(abs(found.cpr.value - 0.999) for _, found, _ in rows),
        "cmd": min(found.cmd.value for _, found, _ in rows),
        "accuracy": max(found.accuracy.value for _, found, _ in rows),
    }
    lines = [
        f"## {title}",
        "",
        "| method | CPR | CMD | accuracy | edges left | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for name, found, seconds in rows:
        cells = []
        for column, winner in best.items():
            area = getattr(found, column)
            value = abs(area.value - 0.999) if column == "cpr" else area.value
            cells.append(f"**{area}**" if value == winner else str(area))
        left = " ".join(map(str, found.helpful.n_edges))
        lines.append(f"| {name} | {' | '.join(cells)} | {left} | {seconds:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

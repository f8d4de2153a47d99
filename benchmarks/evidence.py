"""Certificates and second circuits: does a circuit stay if examples change, and is it the only one?

    python benchmarks/evidence.py --model toy --size 200 --csv results/gallery/toy/evidence.csv

For each task, a greedy circuit of EAP-IG's scores on every other pair is certified (`eap.certify`),
and a second circuit of its size is searched for (`eap.second_circuit`); faithfulness is measured on
the pairs between them. A task that the table has already is not run again.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

import eap
from eap.data.tasks import PARETO_TASKS
from eap.studies import save_csv, shell
from eap.studies.provenance import differences, read_metadata

Row = dict[str, str | float]


def main() -> None:
    """Write a row per task."""
    parser = shell.OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="toy", help="name, directory or GGUF file of the model")
    add("--tasks", nargs="+", choices=PARETO_TASKS, default=list(PARETO_TASKS), help="tasks")
    add("--pairs", type=shell.positive, default=100, help="number of pairs of each task")
    add("--size", type=shell.positive, default=200, help="number of edges of the circuit")
    add("--subsets", type=shell.positive, default=1000, help="number of subsets that certify")
    add("--steps", type=shell.positive, default=1000, help="steps of the search, at each price")
    add("--prices", type=float, nargs="+", default=[0.35], help="prices of the first circuit")
    add("--csv", type=Path, required=True, help="table to write")
    args = parser.parse_args()
    model = eap.load_model(args.model)
    settings = {
        name: getattr(args, name) for name in ("pairs", "size", "subsets", "steps", "prices")
    }
    origin = {"model": model.short_name, **settings, "version": eap.__version__}
    rows: list[Any] = []
    if args.csv.exists():
        if other := differences(read_metadata(args.csv) or {}, origin):
            shell.fail(
                f"{shell.shown(args.csv)} was measured with other settings ({', '.join(other)}); "
                "write another table, or delete this one"
            )
        rows = pd.read_csv(args.csv).to_dict("records")
    done = {row["task"] for row in rows}
    for task in args.tasks:
        if task not in done:
            rows.append(row_of(model, task, **settings))
            save_csv(pd.DataFrame(rows), args.csv, origin)


def row_of(
    model: eap.Model, task: str, *, pairs: int, size: int, subsets: int, steps: int,
    prices: list[float],
) -> Row:  # fmt: skip
    """One task's certificate and second circuit, with the seconds that both took."""
    dataset = eap.load_dataset(task, model.tokenizer, head=pairs)
    found_on, measured_on = (
        replace(dataset, examples=dataset.examples[first::2]) for first in (0, 1)
    )
    begun = time.perf_counter()
    certificate = eap.certify(
        model, found_on, size, n_subsets=subsets, measured_on=measured_on, quiet=True
    )
    certified = time.perf_counter()
    recipe = eap.Recipe(steps, loss="faithfulness", k="log", pairs=4)
    search = eap.second_circuit(
        model, found_on, certificate.plain, recipe=recipe, prices=prices, measured_on=measured_on,
        quiet=True,
    )  # fmt: skip
    shell.say(f"{task}: {certificate}; {search}")
    row: Row = {"model": model.short_name, "task": task, "edges": search.first.count_edges()}
    for level, counts in certificate.summary().set_index("level").iterrows():
        for name in ("in", "abstains", "median_radius"):
            row[f"{level}_{name}"] = counts[name]
    names, errors = ("certified", "plain"), certificate.faithfulness.standard_error
    for name, value, error in zip(names, certificate.faithfulness.normalised, errors, strict=True):
        row |= {name: float(value), f"stderr_{name}": float(error)}
    row["verdict"] = search.verdict
    for level, overlap in (("edge", search.edges), ("node", search.nodes)):
        if overlap is not None:
            row |= {f"{level}_iou": overlap.iou, f"{level}_chance": overlap.chance}
    for name, value in search.faithfulness.items():
        row |= {name: value, f"stderr_{name}": search.standard_errors[name]}
    searched = time.perf_counter()
    return row | {"seconds_certified": certified - begun, "seconds_searched": searched - certified}


if __name__ == "__main__":
    shell.run(main)

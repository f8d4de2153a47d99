"""Comparison of a run with the paper's numbers for GPT-2 small, and known errors of these numbers.

The published numbers are in `data/published/gpt2.json`.
"""

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from eap.figures.style import METRIC_NAMES
from eap.figures.tables import Results, of_tasks, read_correlations, read_table
from eap.runtime.errors import UserError
from eap.runtime.shipped import data_folder
from eap.statistics.measures import normalised
from eap.studies.paths import shown
from eap.studies.provenance import read_metadata

SIZES = ("200", "500", "1000")

Number = tuple[str, str, float, float]
"""Task, name of the number, value of the run, published value."""


def compare(results: Results, tasks: Sequence[str]) -> str:
    """A table of the run's and the published numbers, with their differences, as text.

    Raises:
        UserError: there are no results to compare.
    """
    published = json.loads((data_folder() / "published" / "gpt2.json").read_text(encoding="utf8"))
    rows, notes = faithfulness_rows(results, tasks, published)
    agreement, more_notes = agreement_rows(results, tasks, published)
    rows += agreement
    notes += more_notes
    if not rows:
        raise UserError(
            " ".join(notes)
            or f"no results of {results.model} to compare with the paper's; begin with: "
            + results.command("pareto.py", "--task ioi")
        )
    table = pd.DataFrame(rows, columns=["task", "number", "run", "published"])
    table["difference"] = table["run"] - table["published"]
    parts = [f"published: {published['source']}"]
    if results.folder("pareto").name != "gpt2":
        parts.append(f"note: these are numbers of {results.model}, not of GPT-2 small")
    parts += [f"note: {note}" for note in notes]
    parts.append(table.to_string(index=False, float_format=lambda x: f"{x:.3f}"))
    compared = list(dict.fromkeys(table["task"]))
    for title, key in (
        ("published numbers that were scored in another way:", "scored_otherwise"),
        ("known errors of the published files:", "known_errors"),
    ):
        lines = [
            f"  {task}: {line}"
            for task in ("all", *compared)
            for line in published[key].get(task, [])
        ]
        parts += [title, *lines] if lines else []
    return "\n".join(parts)


def faithfulness_rows(
    results: Results, tasks: Sequence[str], published: dict[str, Any]
) -> tuple[list[Number], list[str]]:
    """Baselines, and normalised faithfulness of circuits of 200, 500 and 1000 selected edges.

    Returns:
        The numbers, and notes on numbers that are missing or uncertain.
    """
    rows: list[Number] = []
    notes: list[str] = []
    for task, theirs in published["faithfulness"].items():
        path = results.csv("pareto", task)
        if task not in tasks or not path.exists():
            continue
        table = read_table(path, needs=["edges", "baseline", "corrupted_baseline"])
        frame, (clean, corrupted) = table.frame, table.baselines
        metric = theirs["metric"]
        if table.metric is None:
            notes.append(f"{task}: {shown(path)} does not say its metric; the paper's is {metric}")
        elif table.metric != metric:
            notes.append(
                f"{task} is not compared: the run is measured by "
                f"{METRIC_NAMES.get(table.metric, table.metric)}, the paper by "
                f"{METRIC_NAMES[metric]}"
            )
            continue
        for name, value, expected in zip(
            ("clean", "corrupted"), (clean, corrupted), theirs["baselines"], strict=True
        ):
            rows.append((task, f"{name} {metric}", value, expected))
        for size in SIZES:
            at = frame[frame["edges"] == int(size)]
            for method, expected in zip(published["methods"], theirs[size], strict=True):
                if at.empty or f"loss_{method}" not in frame:
                    continue
                value = float(at[f"loss_{method}"].iloc[0])
                faithfulness = normalised(value, clean, corrupted)
                rows.append((task, f"{method}, {size} edges", faithfulness, expected))
    return rows, notes


def agreement_rows(
    results: Results, tasks: Sequence[str], published: dict[str, Any]
) -> tuple[list[Number], list[str]]:
    """Pearson's r and Kendall's tau of absolute estimates with exact values."""
    if not (results.folder("real_rank") / "correlations.json").exists():
        return [], []
    command = results.command("results/real_rank/compare_real.py")
    try:
        numbers, _ = read_correlations(results, tasks, command)
    except UserError as error:
        return [], [str(error)]
    metrics = compared_metrics(results)
    rows: list[Number] = []
    notes: list[str] = []
    for task, theirs in published["agreement"].items():
        metric = published["faithfulness"][task]["metric"]
        if task in tasks and metrics.get(task, metric) != metric:
            notes.append(
                f"agreement on {task} is not compared: the run's scores are by {metrics[task]}, "
                f"the paper's by {metric}"
            )
            continue
        for what, suffix in (("pearson", ""), ("kendall", "_kendall")):
            for method, key, expected in zip(
                ("EAP", "EAP-IG"), ("vanilla", "ig"), theirs[what], strict=True
            ):
                value = numbers.get(f"{task}_{key}{suffix}")
                if task in tasks and value is not None:
                    rows.append((task, f"{what}, {method}", value, expected))
    return rows, notes


def compared_metrics(results: Results) -> dict[str, str]:
    """Metric of the scores that compare_real.py compared, by task, if the metadata records it."""
    path = results.csv("real_rank", "all-overlap")
    return of_tasks(read_metadata(path) if path.exists() else None, "metric", str)

"""The paper's numbers for GPT-2 small beside a run of one's own, and what is known to be wrong.

The numbers are data, `data/published/gpt2.json`.
"""

import argparse
import json
from typing import Any

import pandas as pd

from eap.data.dataset import DATA
from eap.errors import UserError
from eap.figures import curves, style

SIZES = ("200", "500", "1000")


def compare(args: argparse.Namespace) -> str:
    """A table of every published number of the tasks that have results: own, published, difference.

    Raises:
        UserError: nothing to compare has been run.
    """
    published = json.loads((DATA / "published" / "gpt2.json").read_text(encoding="utf8"))
    rows = [*faithfulness_rows(args, published), *agreement_rows(args, published)]
    if not rows:
        raise UserError(
            f"no results of {args.model} to compare with the paper's; begin with: "
            f"python pareto.py --model {args.model} --task ioi"
        )
    table = pd.DataFrame(rows, columns=["task", "number", "own", "published"])
    table["difference"] = table["own"] - table["published"]
    parts = [f"published: {published['source']}"]
    if style.model_folder(args, "pareto").name != "gpt2":
        parts.append(f"note: these are numbers of {args.model}, not of GPT-2 small")
    parts.append(table.to_string(index=False, float_format=lambda x: f"{x:.3f}"))
    parts.append("known errors of the published files:")
    errors = published["known_errors"]
    for task in ("all", *table["task"].unique()):
        parts += [f"  {task}: {line}" for line in errors.get(task, [])]
    return "\n".join(parts)


Number = tuple[str, str, float, float]
"""Task, what it is, own value, published value."""


def faithfulness_rows(args: argparse.Namespace, published: dict[str, Any]) -> list[Number]:
    """Baselines, and normalised faithfulness of circuits of 200, 500 and 1000 selected edges."""
    rows: list[Number] = []
    for task, own in published["faithfulness"].items():
        path = style.model_folder(args, "pareto") / "csv" / f"{task}.csv"
        if task not in args.tasks or not path.exists():
            continue
        frame = style.read_table(path, needs=["edges", "baseline", "corrupted_baseline"])
        clean, corrupted = curves.baselines(frame)
        for name, value, expected in zip(
            ("clean", "corrupted"), (clean, corrupted), own["baselines"], strict=True
        ):
            rows.append((task, f"{name} {own['metric']}", value, expected))
        for size in SIZES:
            at = frame[frame["edges"] == int(size)]
            for method, expected in zip(published["methods"], own[size], strict=True):
                if at.empty or f"loss_{method}" not in frame:
                    continue
                value = float(at[f"loss_{method}"].iloc[0])
                share = curves.normalised(value, clean, corrupted)
                rows.append((task, f"{method}, {size} edges", share, expected))
    return rows


def agreement_rows(args: argparse.Namespace, published: dict[str, Any]) -> list[Number]:
    """Pearson's r and Kendall's tau of absolute estimates with exact values."""
    path = style.model_folder(args, "real_rank") / "correlations.json"
    if not path.exists():
        return []
    found = json.loads(path.read_text(encoding="utf8"))
    rows: list[Number] = []
    for task, own in published["agreement"].items():
        for what, suffix in (("pearson", ""), ("kendall", "_kendall")):
            for method, key, expected in zip(
                ("EAP", "EAP-IG"), ("vanilla", "ig"), own[what], strict=True
            ):
                value = found.get(f"{task}_{key}{suffix}")
                if task in args.tasks and value is not None:
                    rows.append((task, f"{what}, {method}", value, expected))
    return rows

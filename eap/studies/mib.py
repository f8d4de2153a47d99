"""One cell of MIB's circuit track: a model, a task and a method, scored as the benchmark does.

Edges are scored on the train split and circuits measured on the test split, with k and v counted
for every query head; the areas are `eap.areas`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import pandas as pd

from eap.analysis.rankings import Areas, areas
from eap.attribution import attribute
from eap.data.collections.mib import check_source, get_mib_task, load_mib
from eap.data.dataset import DATA, Dataset
from eap.errors import UserError
from eap.graph.graph import Graph
from eap.methods import get_method
from eap.model.model import Model
from eap.runtime.resources import ResourceOptions

# Names of models on the leaderboard, by a part of their hub name.
LEADERBOARD = {
    "gpt2": "gpt2",
    "qwen2.5-0.5b": "qwen2.5",
    "gemma-2-2b": "gemma2",
    "llama-3.1-8b": "llama3",
}

# The leaderboard skips larger files.
LARGEST_FILE = 50 * 10**6


@dataclass(frozen=True, eq=False)
class MibResult:
    """What one method gives on one task.

    Attributes:
        graph: its ranking, from the train split.
        areas: measured on the other split.
        train, test: the pairs.
    """

    graph: Graph
    areas: Areas
    train: Dataset
    test: Dataset


def mib_study(
    model: Model,
    task: str,
    *,
    method: str = "EAP-IG",
    level: str = "edge",
    source: str | Path | None = None,
    split: str = "test",
    n_train: int | None = None,
    head: int | None = None,
    steps: int = 5,
    rule: str = "paper",
    seed: int = 0,
    **resources: Unpack[ResourceOptions],
) -> MibResult:
    """Score a model's edges or nodes on one task of MIB, and take the areas of the ranking.

    Args:
        model: from `eap.load_model`.
        task: a name of `eap.data.collections.mib.MIB_TASKS`.
        method: a name of `eap.methods.METHODS`.
        level: 'edge' or 'node'.
        source: where the data are; see `eap.data.collections.mib.load_mib`.
        split: on which circuits are measured: 'test' or 'validation'.
        n_train: pairs of the train split to score on; None: 1,000 of IOI, else 100.
        head: measure on only so many pairs; None: all.
        steps: points of methods that integrate.
        rule: of integration.
        seed: of the bootstrap of examples.
        **resources: batch_size, memory_budget (bytes), quiet.

    Raises:
        UserError: unknown names, data that are not there or do not fit, or what the verbs refuse.
    """
    known, chosen = get_mib_task(task), get_method(method)
    check_source(source)
    tokenizer = model.tokenizer
    train = load_mib(task, tokenizer, source=source, head=n_train or known.n_train)
    test = load_mib(task, tokenizer, source=source, split=split, head=head)
    metric = "logit_diff" if chosen.uses_metric else None
    integration: dict[str, Any] = {"steps": steps, "rule": rule} if chosen.integrates else {}
    graph = attribute(
        model,
        train,
        method=chosen,
        metric=metric,
        level=level,
        expanded_kv=True,
        **integration,
        **resources,
    )
    found = areas(
        model,
        graph,
        test,
        level=level,
        selection="top_n" if chosen.uses_metric else "greedy",
        seed=seed,
        **resources,
    )
    return MibResult(graph, found, train, test)


def leaderboard_name(model: str) -> str:
    """What the leaderboard calls a model; of others, the name after the last slash."""
    short = Path(model).name
    return next((name for part, name in LEADERBOARD.items() if short.lower() == part), short)


def differences_from_benchmark(method: str, level: str, model: str) -> list[str]:
    """In what a result here is not the benchmark's number of the same name."""
    known = {
        "EAP-IG-activations": "here a run credits its own sublayer's edges, there all edges",
        "EAP-IG": "here the points are the paper's (k/m for k = 1..m), there k = 0..m-1 for edges",
    }
    notes = [f"{method}: {known[method]}"] if method in known else []
    if level == "node":
        notes.append("nodes: here the input is in every circuit, there it is ranked and counted")
    if "gemma" in model.lower():
        notes.append(
            "Gemma: here each head's output is normalised by the scale of its own run, there the "
            "sum of kept and patched heads by the sum's"
        )
    return notes


def published_cells(task: str, model: str) -> pd.DataFrame:
    """What has been published for a task and a model: method, CPR, CMD; empty if nothing."""
    document = json.loads((DATA / "published" / "mib.json").read_text(encoding="utf8"))
    cell = f"{task}_{leaderboard_name(model)}"
    if cell not in document["cells"]:
        return pd.DataFrame(columns=["method", "CPR", "CMD"])
    column = document["cells"].index(cell)
    rows = [
        {
            "method": method,
            "CPR": values[column],
            "CMD": document["cmd"].get(method, {}).get(cell),
        }
        for method, values in document["cpr"].items()
        if values[column] is not None
    ]
    return pd.DataFrame(rows, columns=["method", "CPR", "CMD"])


def submission_path(folder: Path, task: str, model: str, n_edges: int) -> Path:
    """Where the leaderboard looks for scores: `<folder>/<task>_<model>/scores.json` (or `.pt`).

    JSON takes about 70 bytes an edge; where that is more than 50 MB, the file is a `.pt`.
    """
    suffix = ".pt" if n_edges * 70 > LARGEST_FILE else ".json"
    return folder / f"{task}_{leaderboard_name(model)}" / f"scores{suffix}"


def submit(graph: Graph, folder: Path, task: str, model: str) -> Path:
    """Write a ranking in the leaderboard's layout.

    Raises:
        UserError: the file would be larger than the leaderboard reads, or stand beside one of
            another form.
    """
    path = submission_path(folder, task, model, graph.n_edges)
    others = [path.with_suffix(form) for form in (".json", ".pt") if form != path.suffix]
    if there := [other for other in others if other.exists()]:
        raise UserError(
            f"{there[0]} is there already, and {path.name} would stand beside it: delete it"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    graph.save(path)
    if path.stat().st_size > LARGEST_FILE:
        raise UserError(
            f"{path} has {path.stat().st_size / 10**6:.0f} MB; the leaderboard skips files of more "
            f"than {LARGEST_FILE // 10**6} MB"
        )
    return path

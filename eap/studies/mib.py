"""One cell of MIB's circuit track: a model, a task and a method, scored as in the benchmark.

Edges are scored on the train split and circuits are measured on the test split. k and v are counted
for every query head. The areas are those of `eap.areas`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Unpack

import pandas as pd

from eap.analysis.rankings import count_ranked, cut_circuits, default_selection
from eap.attribution import attribute
from eap.data.collections.mib import check_source, get_mib_task, load_mib
from eap.data.dataset import DATA, Dataset
from eap.engine.recipe import Recipe
from eap.graph.arithmetic import mean_of
from eap.graph.graph import Graph
from eap.graph.selection import By
from eap.methods import get_method
from eap.model.model import Model
from eap.runtime.errors import UserError
from eap.runtime.resources import ResourceOptions
from eap.soft.learning import learn_ranking
from eap.statistics.measures import SHARES, circuit_sizes
from eap.studies.scoring import integration

# Names of models on the leaderboard, by the last part of their hub name.
LEADERBOARD = {
    "gpt2": "gpt2",
    "qwen2.5-0.5b": "qwen2.5",
    "gemma-2-2b": "gemma2",
    "llama-3.1-8b": "llama3",
}

MATTR = "MAttr"
"""The method that is learned; all others are in `eap.methods.METHODS`."""

SUBMITTED = SHARES[:-1]
"""Sizes of the nine circuits that can be submitted instead of scores."""

# The leaderboard skips larger files.
LARGEST_FILE = 50 * 10**6


def load_mib_splits(
    task: str,
    tokenizer: Any,
    *,
    source: str | Path | None = None,
    split: str = "test",
    n_train: int | None = None,
    head: int | None = None,
) -> tuple[Dataset, Dataset]:
    """Pairs to score edges on, of the train split, and pairs to measure circuits on.

    Args:
        task: name from `eap.data.collections.mib.MIB_TASKS`.
        tokenizer: tokenizer of the model.
        source: location of the data; see `eap.data.collections.mib.load_mib`.
        split: split on which circuits are measured: 'test', 'validation' or 'train'.
        n_train: number of pairs of the train split; None: 1,000 for IOI, otherwise 100.
        head: number of pairs to measure on; None: all.

    Raises:
        UserError: a name is unknown, or data are missing or do not fit.
    """
    n_train = n_train or get_mib_task(task).n_train
    check_source(source)
    train = load_mib(task, tokenizer, source=source, head=n_train)
    return train, load_mib(task, tokenizer, source=source, split=split, head=head)


def mib_ranking(
    model: Model,
    train: Dataset,
    *,
    method: str | Sequence[str] = "EAP-IG",
    level: str = "edge",
    steps: int = 5,
    rule: str | None = None,
    recipe: Recipe | None = None,
    scaled: bool = False,
    **resources: Unpack[ResourceOptions],
) -> Graph:
    """Score a model's edges or nodes with the benchmark's settings.

    Args:
        model: loaded model (`eap.load_model`).
        train: pairs to score on.
        method: name from `eap.methods.METHODS` or 'MAttr'; the scores of several methods are
            averaged.
        level: 'edge' or 'node'.
        steps: number of points of methods that integrate.
        rule: integration rule; None: the benchmark's rule (`benchmark_rule`).
        recipe: loss, optimizer and steps of MAttr; None: `eap.Recipe()`.
        scaled: whether each method's scores are scaled to unit mean magnitude before they are
            averaged; False: raw scores, as in the ensembles of arXiv 2510.06811.
        **resources: batch_size, memory_budget (bytes), quiet.

    Raises:
        UserError: a name is unknown, or `eap.attribute` refuses the arguments.
    """
    names = [method] if isinstance(method, str) else list(method)
    recipe = recipe or Recipe()
    # Unknown names are refused before anything is scored.
    integrations = {
        name: integration(name, steps, rule or benchmark_rule(name, level))
        for name in names
        if name != MATTR
    }

    def score(name: str) -> Graph:
        options: dict[str, Any] = {"level": level, "expanded_kv": True, **resources}
        if name == MATTR:
            metric = None if recipe.loss == "kl" else "logit_diff"
            return learn_ranking(model, train, metric=metric, recipe=recipe, **options)
        metric = "logit_diff" if get_method(name).uses_metric else None
        options |= integrations[name]
        return attribute(model, train, method=name, metric=metric, **options)

    graphs = [score(name) for name in names]
    return graphs[0] if len(graphs) == 1 else mean_of(graphs, scaled=scaled)


def benchmark_rule(method: str, level: str) -> str:
    """The benchmark's rule: points k/m, with k = 0..m-1 for edges by EAP-IG, otherwise k = 1..m."""
    return "library" if method == "EAP-IG" and level == "edge" else "paper"


def leaderboard_name(model: str) -> str:
    """The leaderboard's name of a model; for other models, the name after the last slash."""
    short = Path(model).name
    return next((name for part, name in LEADERBOARD.items() if short.lower() == part), short)


def published_cells(task: str, model: str) -> pd.DataFrame:
    """Published results for a task and a model; no rows if nothing was published.

    Columns: method, level, CPR, CMD (NaN: not reported), read_in (source of the numbers) and
    differs (how the computation here differs; empty if it does not).
    """
    document = json.loads((DATA / "published" / "mib.json").read_text(encoding="utf8"))
    cell = f"{task}_{leaderboard_name(model)}"
    columns = ["method", "level", "CPR", "CMD", "read_in", "differs"]
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for row in document["rows"]:
        if cell not in row["cells"]:
            continue
        key = row["method"], row["level"]
        given = {"method": row["method"], "level": row["level"], "cell": cell}
        differs = [
            note["says"]
            for note in document["differences"]
            if all(text in given[name] for name, text in note.items() if name != "says")
        ]
        source = document["sources"][row["read_in"]]
        entry = rows.setdefault(key, {"read_in": source, "differs": "; ".join(differs)})
        entry[row["measure"]] = row["cells"][cell]
    return pd.DataFrame(
        [{"method": method, "level": level, **rest} for (method, level), rest in rows.items()],
        columns=columns,
    )


def submission_path(folder: Path, task: str, model: str, n_edges: int) -> Path:
    """The leaderboard's path for scores: `<folder>/<task>_<model>/scores.json` (or `.pt`).

    JSON takes about 70 bytes per edge; if that makes more than 50 MB, the file is a `.pt`.
    """
    suffix = ".pt" if n_edges * 70 > LARGEST_FILE else ".json"
    return folder / f"{task}_{leaderboard_name(model)}" / f"scores{suffix}"


def submit(
    graph: Graph, folder: Path, task: str, model: str, *, circuits: Sequence[Graph] = ()
) -> list[Path]:
    """Write a ranking, or nine circuits of it, in the leaderboard's layout.

    Args:
        graph: the ranking.
        folder: folder of the submission, in which a folder `<task>_<model>` is made.
        task: task of the benchmark.
        model: name of the model.
        circuits: circuits to write instead of scores (see `submitted_circuits`).

    Raises:
        UserError: a file is too large for the leaderboard, or the folder has files of another
            submission.
    """
    path = submission_path(folder, task, model, graph.n_edges)
    files = {path: graph}
    if circuits:
        names = [f"{100 * share:g}" for share in SUBMITTED]
        files = {
            path.with_name(f"{name}{path.suffix}"): circuit
            for name, circuit in zip(names, circuits, strict=True)
        }
    there = {*path.parent.glob("*.json"), *path.parent.glob("*.pt")}
    if others := sorted(there - set(files)):
        raise UserError(
            f"{others[0]} is of another submission and must not be next to {min(files).name}: "
            "delete it"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    # All files or none: an earlier submission stays if one of these is too large.
    with TemporaryDirectory(dir=path.parent) as temporary:
        for file, contents in files.items():
            contents.save(Path(temporary) / file.name)
            if (size := (Path(temporary) / file.name).stat().st_size) > LARGEST_FILE:
                raise UserError(
                    f"{file} would have {size / 10**6:.0f} MB; the leaderboard skips files larger "
                    f"than {LARGEST_FILE // 10**6} MB, so nothing is submitted"
                )
        for file in files:
            (Path(temporary) / file.name).replace(file)
    return list(files)


def submitted_circuits(
    graph: Graph, *, by: By = "helpful", level: str = "edge", rank_input: bool = False
) -> list[Graph]:
    """Pruned circuits of at most .1, .2, .5, 1, 2, 5, 10, 20 and 50% of all edges.

    Args:
        graph: ranking of edges or nodes.
        by: 'helpful' for CPR, 'magnitude' for CMD.
        level, rank_input: arguments of `eap.areas`.
    """
    selection = default_selection(graph, level)
    n_ranked = count_ranked(graph, level=level, rank_input=rank_input)
    sizes = circuit_sizes(n_ranked, SUBMITTED)
    circuits = cut_circuits(graph, sizes, level=level, selection=selection, rank_input=rank_input)
    return circuits[by]

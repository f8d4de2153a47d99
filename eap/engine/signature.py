"""Provenance of results, which every verb stores in the object that it returns.

So a graph, a table or a figure can name the model, tokens, metric, method, ablation and code that
it comes from. `eap.studies.provenance` compares the provenance of two results.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from eap.ablation import Ablation
from eap.data.dataset import Dataset
from eap.metrics.metric import Metric
from eap.model.model import Model
from eap.runtime.code import command, library_versions, package_code


def sign(
    model: Model,
    data: Dataset | Mapping[str, Dataset],
    *,
    metric: Metric | None,
    method: str,
    ablation: Ablation,
    level: str = "edge",
    expanded_kv: bool = False,
    spans: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    by_task: Mapping[str, Mapping[str, Any]] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Provenance of a result, as JSON values.

    Args:
        model: model that was run.
        data: data set, or data sets by name of the task.
        metric: metric that was measured; None if there is no metric, or one per task.
        method: name of the method.
        ablation: ablation of the edges.
        level: 'edge' or 'node'.
        expanded_kv: whether the graph has one k and v receiver per query head.
        spans: names of the spans of the prompt that edges belong to; if given, a hash of where the
            spans of all examples begin is recorded, too.
        settings: settings of the method (steps, rule, ...).
        by_task: further entries for each task (its metric, ...), for several data sets.
        more: further entries for the result. `code` is the key of the code that the result depends
            on (default: that of the whole package; graphs of scores use
            `eap.runtime.code.score_code`).
    """
    if isinstance(data, Dataset):
        name = None if metric is None else metric.name
        about: dict[str, Any] = {"task": data.task, "data": _data(data), "metric": name}
    else:
        extra = by_task or {}
        about = {
            "tasks": {
                task: {"data": _data(dataset), **extra.get(task, {})}
                for task, dataset in data.items()
            }
        }
    return {
        "model": {"name": model.name, **model.source, "dtype": str(model.dtype)},
        **about,
        "method": method,
        "settings": dict(settings or {}),
        "ablation": ablation.provenance(),
        "level": level,
        "expanded_kv": expanded_kv,
        **({"spans": list(spans), "spans_sha256": _spans_sha256(data)} if spans else {}),
        **more,
        "code": more.get("code") or package_code(),
        "versions": library_versions(),
        "command": command(),
    }


def _data(dataset: Dataset) -> dict[str, Any]:
    return {**dataset.provenance, "n_pairs": len(dataset), "tokens_sha256": dataset.tokens_sha256}


def _spans_sha256(data: Dataset | Mapping[str, Dataset]) -> str:
    """Hash of where the spans of all examples begin."""
    datasets = [data] if isinstance(data, Dataset) else list(data.values())
    starts = [[example.spans for example in dataset.examples] for dataset in datasets]
    return hashlib.sha256(repr(starts).encode()).hexdigest()[:16]

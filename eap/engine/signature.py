"""What a result was made from: every verb puts this into the object that it returns.

Whoever reads a graph, a table or a picture can so say which model, tokens, metric, method, ablation
and code it comes from. `eap.studies.provenance` compares two of these.
"""

from typing import Any

from eap.ablation import Ablation
from eap.data.dataset import Dataset
from eap.metrics.metric import Metric
from eap.model.model import Model
from eap.runtime.code import command, engine_hash, library_versions


def sign(
    model: Model,
    dataset: Dataset,
    *,
    metric: Metric | None,
    method: str,
    ablation: Ablation,
    level: str = "edge",
    expanded_kv: bool = False,
    settings: dict[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Where a result comes from, as JSON has it.

    Args:
        settings: of the method (steps, rule, ...).
        more: what else the result should say of itself.
    """
    return {
        "model": {"name": model.name, **model.source, "dtype": str(model.dtype)},
        "task": dataset.task,
        "data": {
            **dataset.provenance,
            "n_pairs": len(dataset),
            "tokens_sha256": dataset.tokens_sha256,
        },
        "metric": None if metric is None else metric.name,
        "method": method,
        "settings": dict(settings or {}),
        "ablation": ablation.provenance(),
        "level": level,
        "expanded_kv": expanded_kv,
        **more,
        "code": engine_hash(),
        "versions": library_versions(),
        "command": command(),
    }

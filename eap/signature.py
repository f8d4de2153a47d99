"""What a result was made from: every verb puts this into the object that it returns.

Whoever reads a graph, a table or a picture can so say which model, tokens, metric, method, ablation
and code it comes from. `eap.studies.provenance` compares two of these.
"""

import hashlib
import platform
import shlex
import sys
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from eap.ablation import Ablation
from eap.data.dataset import Dataset
from eap.metrics import Metric
from eap.model.model import Model

# Rooms and modules whose code decides what numbers come out; figures and studies do not.
ENGINE = ("data", "graph", "model")
ENGINE_MODULES = (
    "ablation.py",
    "attribution.py",
    "circuits.py",
    "learning.py",
    "methods.py",
    "metrics.py",
    "moments.py",
    "patching.py",
    "prepared.py",
    "receivers.py",
    "scorers.py",
)
LIBRARIES = ("torch", "transformer_lens", "transformers", "numpy")


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
        "data": {**dataset.provenance, "n_pairs": len(dataset)},
        "metric": None if metric is None else metric.name,
        "method": method,
        "settings": dict(settings or {}),
        "ablation": ablation.provenance(),
        "level": level,
        "expanded_kv": expanded_kv,
        **more,
        "code": code_hash(),
        "versions": versions(),
        "command": command(),
    }


@lru_cache(maxsize=1)
def code_hash() -> str:
    """A hash of the engine's sources: results of changed code are not mixed with earlier ones."""
    package, digest = Path(__file__).parent, hashlib.sha256()
    paths = [path for room in ENGINE for path in (package / room).rglob("*.py")]
    paths += [package / name for name in ENGINE_MODULES]
    for path in sorted(path for path in paths if path.exists()):
        digest.update(str(path.relative_to(package)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Of Python, and of the libraries that compute."""
    return {"python": platform.python_version()} | {name: _version(name) for name in LIBRARIES}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def command() -> str:
    """The command line as it was typed; in a notebook, that of its kernel."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])

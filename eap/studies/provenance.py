"""Provenance of results: written next to tables, and compared. Loads no torch.

Every graph and table records how it was made: model, data, metric, method, settings, code, versions
of libraries, and command. This module alone decides whether two results are

* the *same*: an existing result can be reused instead of computed again;
* *comparable*: both may be shown in one figure or table;
* *different*, and in which respects.

The provenance of `<name>.csv` is in `<name>.csv-metadata.json`, in the format of the W3C's "CSV on
the Web". The metadata contains the SHA-256 of the table; metadata with another hash is ignored.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from eap.runtime import processes
from eap.runtime.atomic import write_atomically
from eap.runtime.identity import model_identity
from eap.runtime.progress import say
from eap.studies.paths import shown

Provenance = Mapping[str, Any]

# Entries that do not distinguish results: command, outcome, and location of the weights.
_NOT_COMPARED = ("command", "completeness")

# Entries that must agree in one figure or table, besides the model, with their names in messages.
_OF_A_TASK = {
    "metric": "metrics",
    "ablation": "ablations",
    "level": "levels",
    "expanded_kv": "counts of edges (--expanded_kv)",
    "circuit": "circuits",
}
_DEFAULTS = {"ablation": "resample", "level": "edge", "expanded_kv": False}

# Keys of the metadata: names from Dublin Core and schema.org, as CSV on the Web recommends.
_PROVENANCE, _HASH = "dc:provenance", "schema:sha256"


# ---- comparing -----------------------------------------------------------------------------------


def same(a: Provenance, b: Provenance) -> bool:
    """Whether two provenances describe the same work, so that one result can replace the other."""
    return not differences(a, b)


def differences(a: Provenance, b: Provenance) -> list[str]:
    """Names of the entries that differ, such as `model`, `settings.steps` or `versions.torch`.

    The command and the location of the model's files are not compared.
    """
    return sorted(_differing(_comparable_form(a), _comparable_form(b)))


def tells_origin(provenance: Provenance) -> bool:
    """Whether a provenance says how the numbers were made, not only how a file was read."""
    return bool(set(provenance) - {"read_from"})


def comparable(*provenances: Provenance | None) -> str | None:
    """None if results may be shown in one figure or table, otherwise one line that says why not.

    All results must be of one model, and results on the same task must have the same tokens,
    metric, ablation and, where tables record it, circuit. None (the provenance of files from other
    programs) is ignored.
    """
    known = [provenance for provenance in provenances if provenance and tells_origin(provenance)]
    if not known:
        return None
    models = [provenance.get("model") for provenance in known]
    for model in models[1:]:
        if not _equal(model_identity(model), model_identity(models[0])):
            return f"made with different models: {_model_line(models[0])} and {_model_line(model)}"
    by_task: dict[str, Provenance] = {}
    for provenance in chain.from_iterable(map(_of_tasks, known)):
        task = str(provenance.get("task", ""))
        first = by_task.setdefault(task, provenance)
        of_task = f"{task[:60]}: " if task else ""
        if not _same_tokens(first.get("data"), provenance.get("data")):
            return (
                f"{of_task}made on different data: {_data_line(first)} and {_data_line(provenance)}"
            )
        for key, name in _OF_A_TASK.items():
            values = [origin.get(key, _DEFAULTS.get(key)) for origin in (first, provenance)]
            if None not in values and not _equal(*values):
                texts = [str(value)[:60] for value in values]
                return f"{of_task}made with different {name}: {texts[0]} and {texts[1]}"
    return None


def _of_tasks(provenance: Provenance) -> Iterator[Provenance]:
    """The provenance itself or, for a table of several tasks, the provenance of every task."""
    tasks = provenance.get("tasks")
    if not isinstance(tasks, Mapping):
        yield provenance
        return
    for task, parts in tasks.items():
        yield {**provenance, "task": task, **(parts if isinstance(parts, Mapping) else {})}


def _comparable_form(provenance: Provenance) -> dict[str, Any]:
    kept = {key: value for key, value in provenance.items() if key not in _NOT_COMPARED}
    if "model" in kept:
        kept["model"] = model_identity(kept["model"])
    return kept


def _same_tokens(a: Any, b: Any) -> bool:
    """Whether two results use the same pairs in the same order."""
    if not isinstance(a, Mapping) or not isinstance(b, Mapping):
        return _equal(a, b)
    if "tokens_sha256" not in a or "tokens_sha256" not in b:
        return _equal(a, b)
    shared = {"tokens_sha256", "prepend_bos"} | ({"n_pairs"} & {*a} & {*b})
    return all(_equal(a.get(key), b.get(key)) for key in shared)


def _differing(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key in {*a, *b}:
        first, second = a.get(key), b.get(key)
        if isinstance(first, Mapping) and isinstance(second, Mapping) and not prefix:
            if key in ("model", "data"):  # entries are hashes, which are not readable
                if not _equal(first, second):
                    yield key
            else:
                yield from _differing(first, second, f"{key}.")
        elif (key in a) != (key in b) or not _equal(first, second):
            yield f"{prefix}{key}"


def _equal(a: Any, b: Any) -> bool:
    """Whether two values are equal as JSON: tuples are lists, and the order of keys is ignored."""
    first, second = (json.dumps(value, sort_keys=True, default=str) for value in (a, b))
    return first == second


def _model_line(model: Any) -> str:
    if not isinstance(model, Mapping):
        return str(model)[:60]
    parts = [str(model.get("name", "?"))[:60]]
    parts += [str(model[key]) for key in ("dtype",) if key in model]
    parts += [
        f"{key.removesuffix('_sha256')} {str(value)[:8]}"
        for key, value in model_identity(model).items()
        if key.endswith("sha256") or key == "revision"
    ]
    return f"{parts[0]} ({', '.join(parts[1:])})" if parts[1:] else parts[0]


def _data_line(provenance: Provenance) -> str:
    data = provenance.get("data")
    if not isinstance(data, Mapping):
        return str(data)[:60]
    pairs = data.get("n_pairs", data.get("head", data.get("pairs", "?")))
    line = f"{pairs} pairs of {str(data.get('source', '?'))[-60:]}"
    return f"{line} ({str(data['tokens_sha256'])[:8]})" if "tokens_sha256" in data else line


# ---- tables --------------------------------------------------------------------------------------


def metadata_path(path: Path) -> Path:
    """`<name>.csv-metadata.json` in the folder of `<name>.csv`."""
    return path.with_name(f"{path.name}-metadata.json")


def write_table(
    frame: pd.DataFrame, path: Path, provenance: Provenance | None, *, index: bool = False
) -> None:
    """Write a table as CSV, and its provenance (if there is one) in the same folder.

    Args:
        frame: table to write.
        path: path of the CSV file.
        provenance: provenance of the numbers.
        index: whether to write the row names as the first column.
    """
    with write_atomically(path) as temporary:
        frame.to_csv(temporary, index=index)
        digest = file_hash(temporary)
    if provenance is None:
        return
    names = [str(frame.index.name or "")] if index else []
    kinds = ["string"] if index else []
    names += [str(name) for name in frame.columns]
    kinds += [_datatype(kind) for kind in frame.dtypes]
    document = {
        "@context": "http://www.w3.org/ns/csvw",
        "url": path.name,
        "tableSchema": {
            "columns": [
                {"titles" if name else "name": name or "_row", "datatype": kind}
                for name, kind in zip(names, kinds, strict=True)
            ]
        },
        _HASH: digest,
        _PROVENANCE: dict(provenance),
    }
    # A process killed here leaves the metadata of the earlier table, which has another hash.
    with write_atomically(metadata_path(path)) as temporary:
        temporary.write_text(json.dumps(document, indent=1, default=str) + "\n", encoding="utf8")


def save_csv(
    frame: pd.DataFrame, path: Path, provenance: Provenance | None = None, *, index: bool = False
) -> None:
    """Write a table atomically (in the first process), and print its path.

    If `provenance` is given, it is written in the same folder.
    """
    if processes.is_first():
        write_table(frame, path, provenance, index=index)
        say(f"wrote {shown(path)}")


def read_metadata(path: Path) -> dict[str, Any] | None:
    """The provenance of the table at `path`; None if the file is missing or of another table."""
    if not metadata_path(path).is_file():  # reading a pipe would block
        return None
    try:
        document = json.loads(metadata_path(path).read_text(encoding="utf8"))
        provenance = document[_PROVENANCE]
        if document[_HASH] != file_hash(path) or not isinstance(provenance, dict):
            return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return provenance


def _datatype(kind: Any) -> str:
    """The name of a column's type in CSV on the Web."""
    if pd.api.types.is_bool_dtype(kind):
        return "boolean"
    if pd.api.types.is_integer_dtype(kind):
        return "integer"
    return "double" if pd.api.types.is_numeric_dtype(kind) else "string"


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()

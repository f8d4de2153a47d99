"""Rows from objects in memory: frames, tables, Hugging Face data sets, lists and dicts."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from eap.data.cells import plain
from eap.data.columns import ANSWER_TEXTS, KNOWN
from eap.runtime.errors import UserError, quoted

Record = dict[str, Any]


def records_of(data: Any) -> tuple[list[Record], str]:
    """Rows of an object in Python's own types, and the kind of the object.

    Raises:
        UserError: the object has no rows that can be read.
    """
    rows, kind = _rows_of(data)
    records = []
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise _no_row(row, number, kind)
        records.append(as_record(row, f"row {number}", kind))
    if not records:
        raise UserError(f"{kind} has no rows")
    return records, kind


def as_record(row: Mapping[Any, Any], place: str, source: str) -> Record:
    """Row in Python's own types.

    Raises:
        UserError: the name of a column is not text.
    """
    if not all(isinstance(name, str) for name in row):
        raise UserError(f"{source}: {place} has a column whose name is not text")
    return {name: plain(cell) for name, cell in row.items()}


def _rows_of(data: Any) -> tuple[Iterable[Any], str]:
    if isinstance(data, pd.DataFrame):
        if not data.columns.is_unique:
            raise UserError("the data frame has two columns of one name")
        names = [str(name) for name in data.columns]
        cells = data.itertuples(index=False, name=None)
        return [dict(zip(names, row, strict=True)) for row in cells], "a data frame"
    if isinstance(data, Mapping) and hasattr(data, "column_names"):
        raise UserError(f"the data set has splits: choose one of {', '.join(map(str, data))}")
    for method, kind in (("to_pylist", "an Arrow table"), ("to_dicts", "a data frame")):
        if callable(getattr(data, method, None)) and not isinstance(data, type):
            metadata = getattr(getattr(data, "schema", None), "metadata", None) or {}
            return _with_classes(getattr(data, method)(), _classes_of(metadata)), kind
    if hasattr(data, "column_names"):  # a Hugging Face data set, without importing the library
        # A format changes the types of cells and may give columns instead of rows, so it is
        # removed; with a transform of the user ("custom"), the rows are the transformed ones.
        formatted = dict(getattr(data, "format", None) or {}).get("type")
        python = data if formatted in (None, "custom") else data.with_format(None)
        features = dict(getattr(python, "features", None) or {})
        classes = {name: getattr(kind, "names", None) for name, kind in features.items()}
        return _with_classes(python, classes), "a Hugging Face dataset"
    if isinstance(data, Mapping):
        return from_columns({str(k): plain(v) for k, v in data.items()}, "the dict"), "a dict"
    if isinstance(data, Iterable) and not isinstance(data, str | bytes | bytearray):
        return data, "a list of rows"
    raise UserError(f"data is {type(data).__name__}; {_WANTED}")


def _with_classes(rows: Iterable[Any], classes: Mapping[str, Any]) -> Iterable[Any]:
    """Replace numbers of classes by names of classes, in columns of answers."""
    named = {name: classes[name] for name in ANSWER_TEXTS if classes.get(name)}
    for row in rows:
        texts = {
            name: names[row[name]]
            for name, names in named.items()
            if isinstance(row.get(name), int) and 0 <= row[name] < len(names)
        }
        yield {**row, **texts} if texts else row


def _classes_of(metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    """Names of classes in a table's metadata, as written by Hugging Face's library."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return {name: dict(kind).get("names") for name, kind in features.items()}
    except (KeyError, TypeError, ValueError):
        return {}


_WANTED = (
    "give a file, a pandas frame, a Hugging Face dataset, or a list of dicts with clean, "
    "corrupted, correct and incorrect"
)


def _no_row(row: Any, number: int, kind: str) -> UserError:
    if hasattr(row, "clean") and hasattr(row, "correct"):
        return UserError("these are examples already: eap.Dataset(name, examples) is a data set")
    return UserError(f"{kind}: row {number} is {type(row).__name__}, not a dict; {_WANTED}")


# ---- columns -> rows -----------------------------------------------------------------------------


def from_columns(columns: Mapping[str, Any], source: str) -> list[Record]:
    """Rows from `{column: [cell, ..]}`, or from `{column: {row: cell}}` (matched by row name).

    If the columns are not such lists, the object is itself one row.

    Raises:
        UserError: none of the columns is known, or the columns differ in their rows.
    """
    columns = _by_row(columns)
    if not KNOWN & set(columns):
        splits = [name for name, rows in columns.items() if is_list_of_objects(rows) and rows]
        if len(splits) > 1:
            raise UserError(
                f"{source} has several lists of rows ({quoted(', '.join(splits))[1:-1]}): give one"
            )
        raise UserError(
            f"{source} is not a list of objects such as "
            '[{"clean": .., "corrupted": .., "correct": .., "incorrect": ..}]'
        )
    columns = {name: _encoded_rows(column) for name, column in columns.items()}
    values = list(columns.values())
    if all(isinstance(column, dict) and "input_ids" not in column for column in values):
        first, *others = columns
        for other in others:
            if alone := columns[other].keys() ^ columns[first].keys():
                row = quoted(min(alone, key=str))
                raise UserError(f"{source}: only one of {first} and {other} has a row {row}")
        return [{name: columns[name][row] for name in columns} for row in columns[first]]
    if not all(isinstance(column, list) for column in values) or _is_one_row(columns):
        return [dict(columns)]
    if len({len(column) for column in values}) > 1:
        sizes = ", ".join(f"{name} {len(column)}" for name, column in columns.items())
        raise UserError(f"{source} has columns of several lengths: {sizes[:200]}")
    return [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]


def _by_row(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Columns of a pandas document by rows (`orient="split"` or `"index"`), else the document."""
    names, rows = document.get("columns"), document.get("data")
    if isinstance(names, list) and isinstance(rows, list):
        if all(isinstance(row, list) and len(row) == len(names) for row in rows):
            return {str(name): [row[i] for row in rows] for i, name in enumerate(names)}
    elif document and all(isinstance(row, dict) and KNOWN & set(row) for row in document.values()):
        names = dict.fromkeys(name for row in document.values() for name in row)
        return {name: [row.get(name) for row in document.values()] for name in names}
    return document


def _encoded_rows(column: Any) -> Any:
    """Output of a tokenizer for many texts, as one encoding per row; else the column unchanged."""
    rows = column.get("input_ids") if isinstance(column, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        return column
    masks = column.get("attention_mask") or [None] * len(rows)
    return [
        {"input_ids": ids, "attention_mask": mask} for ids, mask in zip(rows, masks, strict=False)
    ]


def _is_one_row(columns: Mapping[str, Any]) -> bool:
    """Whether lists belong to one row, because its prompt is a list of numbers."""
    prompt = next(
        (columns[n] for n in ("clean", "clean_idx", "clean_prefix") if n in columns), None
    )
    return isinstance(prompt, list) and all(isinstance(cell, int) for cell in prompt)


def is_list_of_objects(value: Any) -> bool:
    """Whether a value is a list of dicts."""
    return isinstance(value, list) and all(isinstance(record, dict) for record in value)

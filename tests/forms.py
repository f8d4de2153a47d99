"""The same rows in every form in which people have data."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow
import torch

Rows = list[dict[str, Any]]

datasets.disable_progress_bars()


def _file(name: str, content: Callable[[Rows], str | bytes]) -> Callable[[Rows, Path], Path]:
    def write(rows: Rows, folder: Path) -> Path:
        made = content(rows)
        path = folder / name
        path.write_bytes(made if isinstance(made, bytes) else made.encode())
        return path

    return write


def _csv(**options: Any) -> Callable[[Rows], str]:
    return lambda rows: pd.DataFrame(rows).to_csv(index=False, **options)


def _quoted_with_spaces(rows: Rows) -> str:
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerow(rows[0])
    writer.writerows(row.values() for row in rows)
    return text.getvalue().replace('","', '", "')


def _columns(rows: Rows) -> dict[str, list[Any]]:
    return {name: [row.get(name) for row in rows] for name in rows[0]}


def _parquet(rows: Rows) -> bytes:
    content = io.BytesIO()
    pd.DataFrame(rows).to_parquet(content)
    return content.getvalue()


def _shuffled_keys(rows: Rows) -> str:
    """Columns whose cells are named by their row, in another order in every column."""
    columns = {}
    for number, (name, cells) in enumerate(_columns(rows).items()):
        items = list(enumerate(cells))
        columns[name] = {str(key): cell for key, cell in (items[::-1] if number % 2 else items)}
    return json.dumps(columns)


def _as_arrays(cell: Any) -> Any:
    return np.array(cell) if isinstance(cell, list) else cell


def _as_tensors(cell: Any) -> Any:
    numbers = isinstance(cell, list) and all(isinstance(item, int) for item in cell)
    return torch.tensor(cell) if numbers else cell


def _each_cell(change: Callable[[Any], Any]) -> Callable[[Rows, Path], Rows]:
    return lambda rows, folder: [{n: change(c) for n, c in row.items()} for row in rows]


def _hugging_face(kind: str | None) -> Callable[[Rows, Path], Any]:
    return lambda rows, folder: datasets.Dataset.from_list(rows).with_format(kind)


FORMS: dict[str, Callable[[Rows, Path], Any]] = {
    "rows": lambda rows, folder: rows,
    "tuple of rows": lambda rows, folder: tuple(rows),
    "generator": lambda rows, folder: (row for row in rows),
    "columns": lambda rows, folder: _columns(rows),
    "arrays": _each_cell(_as_arrays),
    "tensors": _each_cell(_as_tensors),
    "csv": _file("rows.csv", _csv()),
    "csv, every cell quoted": _file("rows.csv", _csv(quoting=csv.QUOTE_ALL)),
    "csv with spaces": _file("rows.csv", _quoted_with_spaces),
    "tsv": _file("rows.tsv", _csv(sep="\t")),
    "semicolons": _file("rows.csv", _csv(sep=";")),
    "gzipped csv": _file("rows.csv.gz", lambda rows: gzip.compress(_csv()(rows).encode())),
    "json": _file("rows.json", json.dumps),
    "json in a list": _file("rows.json", lambda rows: json.dumps({"prompts": rows})),
    "json columns": _file("rows.json", lambda rows: json.dumps(_columns(rows))),
    "json columns by row": _file("rows.json", _shuffled_keys),
    "json lines": _file("rows.jsonl", lambda rows: "\n".join(map(json.dumps, rows))),
    "parquet": _file("rows.parquet", _parquet),
    "frame": lambda rows, folder: pd.DataFrame(rows),
    "frame, shuffled index": lambda rows, folder: pd.DataFrame(rows, index=range(len(rows))[::-1]),
    "frame, pandas' own types": lambda rows, folder: pd.DataFrame(rows).convert_dtypes(),
    "arrow": lambda rows, folder: pyarrow.Table.from_pylist(rows),
    "record batch": lambda rows, folder: pyarrow.RecordBatch.from_pylist(rows),
    **{f"hugging face, {kind}": _hugging_face(kind)
       for kind in (None, "numpy", "torch", "pandas", "arrow")},
    "hugging face, streamed": lambda rows, folder: datasets.Dataset.from_list(
        rows
    ).to_iterable_dataset(),
}  # fmt: skip
"""By name: rows (of JSON's types) and a folder for files -> what `load_dataset` is given."""

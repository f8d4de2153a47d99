"""What a person has -> rows: a file (CSV, TSV, JSON, JSON lines, Parquet), a frame, a list of rows.

Nothing is known here about tasks or tokens. A file is read once, as bytes, and refused in one line
where it is not what it seems: cells that shift the columns, another encoding, a damaged archive.
"""

import bz2
import csv
import gzip
import hashlib
import io
import json
import lzma
import math
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from eap.errors import UserError, quoted
from eap.runtime.home import from_home

SEPARATORS = {",": "comma", "\t": "tab", ";": "semicolon"}
UNPACKERS = {".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress}
# Formats that people try, and what to do instead.
OTHERS = {
    **dict.fromkeys((".zip", ".tar", ".tgz", ".zst", ".7z"), "unpack it first"),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "save the sheet as a CSV"),
    **dict.fromkeys((".pkl", ".pickle", ".pt"), "save it as a CSV or JSON"),
}
Parsed = tuple[list[dict[str, Any]], list[str], str]
"""Rows, their places, and the form that they were read as."""


@dataclass(frozen=True)
class Rows:
    """Rows as they were read.

    Attributes:
        rows: all with the same columns; a cell is text, a list where the source has lists, ""
            where it has nothing.
        places: what each row is called in a message ("line 7", "row 3").
        source: of the rows, as provenance and messages have it.
        sha256: of the file's bytes, or of the rows.
        form: as what a file was read, if that is no plain CSV ("JSON", "tab-separated").
    """

    rows: tuple[dict[str, Any], ...]
    places: tuple[str, ...]
    source: str
    sha256: str
    form: str = ""

    @property
    def shown(self) -> str:
        """The source, and as what it was read: for messages."""
        return f"{self.source} ({self.form})" if self.form else self.source

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, in their order."""
        return tuple(self.rows[0])


def read_rows(data: Any, source: str | None = None) -> Rows:
    """The rows of a file or of an object.

    Args:
        data: a path; a pandas frame; a Hugging Face dataset; a list of dicts.
        source: what to call it (default: its path, or what it is).

    Raises:
        UserError: it is none of these, cannot be read, or has no rows.
    """
    if isinstance(data, (str, os.PathLike)):
        path = find_file(data)
        source = source or str(path)
        content = _unpacked(path, _read(path), source)
        digest = hashlib.sha256(content).hexdigest()
        rows, places, form = _parse(content, path, source)
    else:
        form = ""
        records, kind = _records(data)
        source = source or kind
        rows = [_as_row(record, f"row {i}", source) for i, record in enumerate(records, 1)]
        places = [f"row {i}" for i in range(1, len(rows) + 1)]
        digest = hashlib.sha256(json.dumps(rows, default=repr).encode()).hexdigest()
    if not rows:
        raise UserError(f"{source} has a header but no rows")
    columns = dict.fromkeys(name for row in rows for name in row)
    rows = [{name: row.get(name, "") for name in columns} for row in rows]
    return Rows(tuple(rows), tuple(places), source, digest, form)


def find_file(name: str | os.PathLike[str]) -> Path:
    """A regular file by name; a `UserError` says what the name is instead."""
    text = os.fspath(name)
    if not text.strip():
        raise UserError("the name of the data file is empty")
    if "\0" in text:
        raise UserError(f"{quoted(text)} is no file name: it has a NUL character")
    if "://" in text:
        raise UserError(f"{quoted(text)} is an address; download it and give the file")
    path = from_home(text)
    try:
        if path.is_file():
            return path
        what = "is a folder; give a file" if path.is_dir() else "is not a regular file"
        there = path.exists()
    except (OSError, ValueError) as error:
        raise UserError(f"{quoted(text)} cannot be read: {type(error).__name__}") from None
    raise UserError(f"{quoted(text)} {what}" if there else f"no data at {quoted(text)[1:-1]}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _unpacked(path: Path, content: bytes, source: str) -> bytes:
    suffix = path.suffix.lower()
    if suffix in OTHERS:
        raise UserError(f"{source} is not read here: {OTHERS[suffix]}")
    if suffix not in UNPACKERS:
        return content
    try:
        return UNPACKERS[suffix](content)
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error):
        raise UserError(f"{source} is not a whole {suffix} file") from None


def _parse(content: bytes, path: Path, source: str) -> Parsed:
    """Rows and places of a file: of which format, its content says."""
    if content[:4] == b"PAR1":
        return _read_parquet(content, source)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{source} is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from None
    if "\0" in text:
        raise UserError(f"{source} is not UTF-8 text: it has NUL characters")
    suffixes = {suffix.lower() for suffix in path.suffixes}
    if suffixes & {".json", ".jsonl", ".ndjson"} or text.lstrip()[:1] in ("[", "{"):
        return _read_json(text, source)
    return _read_csv(text, source)


# ---- CSV -----------------------------------------------------------------------------------------


def _read_csv(text: str, source: str) -> Parsed:
    header, separator = _read_header(text, source)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: list[dict[str, Any]] = []
    places = []
    first = True
    line = 1
    try:
        for cells in reader:
            line, start = reader.line_num + 1, line
            if not cells:
                continue
            if first:
                first = False
            elif len(cells) != len(header):
                raise UserError(
                    f"{source}: line {start} has {len(cells)} cells and the header {len(header)}; "
                    f"put texts that contain a {SEPARATORS[separator]} in double quotes"
                )
            else:
                rows.append(dict(zip(header, cells, strict=True)))
                places.append(f"line {start}")
    except csv.Error as error:
        raise UserError(f"{source}: line {reader.line_num} is not that of a CSV: {error}") from None
    return rows, places, "" if separator == "," else f"{SEPARATORS[separator]}-separated"


def _read_header(text: str, source: str) -> tuple[list[str], str]:
    """The names of the columns, and what separates them."""
    if not text.strip():
        raise UserError(f"{source} is not a CSV with a header: it is empty")
    headers = {}
    for separator in (*SEPARATORS, "|"):
        try:
            cells = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
            headers[separator] = next(row for row in cells if row)
        except (csv.Error, StopIteration):
            headers[separator] = []
    fitting = [s for s, names in headers.items() if "clean" in names and len(names) > 1]
    separator = (fitting or [","])[0]
    if separator not in SEPARATORS:
        raise UserError(
            f"{source}: its cells are separated by {separator!r}, which separates answers; "
            "use commas or tabs"
        )
    header = headers[separator]
    twice = [name for i, name in enumerate(header) if name and name in header[:i]]
    if twice:
        raise UserError(f"{source} has two columns {quoted(twice[0])}")
    return header, separator


# ---- other formats -------------------------------------------------------------------------------


def _read_json(text: str, source: str) -> Parsed:
    """A list of objects, an object that holds one, an object of columns, or an object a line."""
    try:
        records: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        return _read_json_lines(text, source, error)
    if isinstance(records, dict):
        lists = [value for value in records.values() if _is_list_of_objects(value)]
        records = lists[0] if len(lists) == 1 else _from_columns(records)
    if not _is_list_of_objects(records):
        raise UserError(
            f"{source} is JSON, but not a list of objects such as "
            '[{"clean": .., "corrupted": .., "correct": .., "incorrect": ..}]'
        )
    places = [f"row {i}" for i in range(1, len(records) + 1)]
    return [_as_row(r, p, source) for r, p in zip(records, places, strict=True)], places, "JSON"


def _read_json_lines(text: str, source: str, why: Exception) -> Parsed:
    rows, places = [], []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            reason = str(why) if number == 1 else f"line {number} is not a JSON object"
            raise UserError(f"{source} is neither JSON nor JSON lines: {reason[:100]}")
        rows.append(_as_row(record, f"line {number}", source))
        places.append(f"line {number}")
    return rows, places, "JSON lines"


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(record, dict) for record in value)


def _from_columns(columns: dict[str, Any]) -> Any:
    """Rows of `{column: {row: cell}}` or `{column: [cell, ..]}`; a single object is one row."""
    values = [list(v.values()) if isinstance(v, dict) else v for v in columns.values()]
    if not {"clean", "clean_idx"} & set(columns):
        return None
    if all(isinstance(v, list) for v in values) and len({len(v) for v in values}) == 1:
        return [dict(zip(columns, cells, strict=True)) for cells in zip(*values, strict=True)]
    return [columns]


def _read_parquet(content: bytes, source: str) -> Parsed:
    try:
        frame = pd.read_parquet(io.BytesIO(content))
    except ImportError:
        raise UserError(f"{source} is Parquet: install pyarrow to read it") from None
    except Exception as error:  # pyarrow raises its own kinds
        raise UserError(f"{source} is not whole Parquet: {type(error).__name__}") from None
    records, _ = _records(frame)
    places = [f"row {i}" for i in range(1, len(frame) + 1)]
    return [_as_row(r, p, source) for r, p in zip(records, places, strict=True)], places, "Parquet"


def _records(data: Any) -> tuple[Iterable[Mapping[str, Any]], str]:
    """The rows of an object, and what it is."""
    if isinstance(data, pd.DataFrame):
        if not data.columns.is_unique:
            raise UserError("the data frame has two columns of one name")
        return [
            dict(zip(map(str, data.columns), cells, strict=True))
            for cells in data.itertuples(index=False, name=None)
        ], "a data frame"
    if hasattr(data, "column_names"):  # a Hugging Face dataset, without importing the library
        if isinstance(data, Mapping):
            raise UserError(f"the data set has splits: choose one of {', '.join(map(str, data))}")
        return list(data), "a Hugging Face dataset"
    if isinstance(data, Sequence) and all(isinstance(record, Mapping) for record in data):
        if not data:
            raise UserError("the list of rows is empty")
        return data, "a list of rows"
    raise UserError(
        f"data is {type(data).__name__}; give a file, a pandas frame, a Hugging Face dataset, or a "
        "list of dicts with clean, corrupted, correct and incorrect"
    )


def _as_row(record: Mapping[str, Any], place: str, source: str) -> dict[str, Any]:
    if not all(isinstance(name, str) for name in record):
        raise UserError(f"{source}: {place} has a column whose name is not text")
    row = {name: _as_cell(value) for name, value in record.items()}
    for name, cell in row.items():
        for text in cell if isinstance(cell, list) else [cell]:
            if isinstance(text, str) and any("\ud800" <= letter <= "\udfff" for letter in text):
                raise UserError(f"{source}: {place} has half a character in column {quoted(name)}")
    return row


def _as_cell(value: Any) -> Any:
    """Text for text and numbers, a list for lists, "" for nothing; anything else as it is."""
    if isinstance(value, str):
        return value
    if hasattr(value, "tolist"):  # NumPy's arrays and numbers
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [item.item() if hasattr(item, "item") else item for item in value]
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():  # whole numbers beside missing ones
        return str(int(value))
    return (
        str(int(value))
        if isinstance(value, int)
        else str(value)
        if isinstance(value, float)
        else value
    )

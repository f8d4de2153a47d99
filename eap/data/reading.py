"""Reading of rows from a file (CSV, TSV, JSON, JSON lines, Parquet) or an object (`records`).

Tasks and tokens are unknown here, and cells keep their own types. A file is read once, as bytes. A
file that is not what it seems (shifted columns, another encoding, a damaged archive) is refused
with one line.
"""

import bz2
import csv
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lazy_loader
import pandas as pd

from eap.data.columns import ANSWER_TEXTS, KNOWN
from eap.data.records import Record, as_record, from_columns, is_list_of_objects, records_of
from eap.runtime.errors import UserError, quoted
from eap.runtime.first_bytes import kind_of
from eap.runtime.home import from_home

arrow = lazy_loader.load("pyarrow", error_on_import=False)

SEPARATORS = {",": "comma", "\t": "tab", ";": "semicolon"}
JSON_LINES = {".jsonl", ".ndjson"}
UNPACKERS = {".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress}
# Formats that are not supported, with advice.
OTHERS = {
    **dict.fromkeys((".zip", ".tar", ".tgz", ".zst", ".7z"), "unpack it first"),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "save the sheet as a CSV"),
    **dict.fromkeys((".pkl", ".pickle", ".pt", ".npy", ".npz"), "save it as a CSV or JSON"),
    **dict.fromkeys((".arrow", ".feather"), "save it as Parquet, or give the table itself"),
}
Parsed = tuple[list[Record], list[str], str]
"""Rows, their places, and the format that they were read as."""


@dataclass(frozen=True)
class Rows:
    """Rows of a data source.

    Attributes:
        rows: rows, all with the same columns, with cells in the form of `eap.data.cells.plain`
            (None where the source has no value).
        places: name of each row in messages ("line 7", "row 3").
        source: name of the source in provenance and messages.
        sha256: SHA-256 of the file's bytes, or of the rows.
        form: format of the file, if it is not a plain CSV ("JSON", "tab-separated").
    """

    rows: tuple[Record, ...]
    places: tuple[str, ...]
    source: str
    sha256: str
    form: str = ""

    @property
    def shown(self) -> str:
        """Name of the source with its format, for messages."""
        return f"{self.source} ({self.form})" if self.form else self.source

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, in their order."""
        return tuple(self.rows[0])


def read_rows(data: Any, source: str | None = None) -> Rows:
    """Read the rows of a file or of an object.

    Args:
        data: path of a file, pandas frame, Arrow table, Hugging Face dataset in any format, list of
            dicts, or dict of columns.
        source: name of the source; None: its path, or what kind of object it is.

    Raises:
        UserError: data of another kind, that cannot be read, or without rows.
    """
    if isinstance(data, (str, os.PathLike)):
        path = find_file(data)
        source = source or str(path)
        content = _read(path, source)
        digest = hashlib.sha256(content).hexdigest()
        rows, places, form = _parse(content, path, source)
    else:
        form = ""
        rows, kind = records_of(data)
        source = source or kind
        places = [f"row {i}" for i in range(1, len(rows) + 1)]
        digest = hashlib.sha256(json.dumps(rows, default=repr).encode()).hexdigest()
    if not rows:
        raise UserError(f"{source} has no rows")
    columns = dict.fromkeys(name for row in rows for name in row)
    rows = [{name: row.get(name) for name in columns} for row in rows]
    return Rows(tuple(rows), tuple(places), source, digest, form)


def find_file(name: str | os.PathLike[str]) -> Path:
    """Path of a regular file.

    Raises:
        UserError: the name is not of a regular file; the message says what it is instead.
    """
    text = os.fspath(name)
    if not text.strip():
        raise UserError("the name of the data file is empty")
    if "\0" in text:
        raise UserError(f"{quoted(text)} is not a file name: it has a NUL character")
    if "://" in text:
        raise UserError(f"{quoted(text)} is an address; download it and give the file")
    path = from_home(text)
    try:
        if path.is_file():
            return path
        saved = "is a folder; give a file (or, saved by Hugging Face, datasets.load_from_disk)"
        what = saved if path.is_dir() else "is not a regular file"
        exists = path.exists()
    except (OSError, ValueError) as error:
        raise UserError(f"{quoted(text)} cannot be read: {type(error).__name__}") from None
    raise UserError(f"{quoted(text)} {what}" if exists else f"no data at {quoted(text)[1:-1]}")


def _read(path: Path, source: str) -> bytes:
    """Bytes of a file, unpacked if its name says that it is packed."""
    suffix = path.suffix.lower()
    if suffix in OTHERS:
        raise UserError(f"{source} is not supported: {OTHERS[suffix]}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return UNPACKERS[suffix](content) if suffix in UNPACKERS else content
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error):
        raise UserError(f"{source} is not a complete {suffix} file") from None


def _parse(content: bytes, path: Path, source: str) -> Parsed:
    """Rows and places of a file, in the format that its content has."""
    if content[:4] == b"PAR1":
        return _read_parquet(content, source)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        kind = kind_of(content)
        what = f"is {kind}, not" if kind else f"is not UTF-8 text (byte {error.start}), nor"
        raise UserError(
            f"{source} {what} a table of pairs; save it as CSV or JSON in UTF-8, or as Parquet"
        ) from None
    if "\0" in text:
        raise UserError(f"{source} is not UTF-8 text: it has NUL characters")
    suffixes = {suffix.lower() for suffix in path.suffixes}
    if suffixes & {".json", *JSON_LINES} or text.lstrip()[:1] in ("[", "{"):
        return _read_json(text, source, lines=bool(suffixes & JSON_LINES))
    return _read_csv(text, source)


# ---- CSV -----------------------------------------------------------------------------------------


def _read_csv(text: str, source: str) -> Parsed:
    header, separator, spaced = _read_header(text, source)
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=spaced, strict=True
    )
    rows: list[Record] = []
    places = []
    try:
        next(cells for cells in reader if cells)  # the header
        end = reader.line_num
        for cells in reader:
            start, end = end + 1, reader.line_num
            if cells and len(cells) != len(header):
                raise UserError(
                    f"{source}: line {start} has {len(cells)} cells and the header {len(header)}; "
                    f"put texts that contain a {SEPARATORS[separator]} in double quotes"
                )
            if cells:
                rows.append(dict(zip(header, cells, strict=True)))
                places.append(f"line {start}")
    except csv.Error as error:
        raise UserError(f"{source}: line {reader.line_num} is not valid CSV: {error}") from None
    prompts = [(row.get("clean") or "", row.get("corrupted") or "") for row in rows]
    # In every pair, one prompt begins with a space, and the other does not.
    if prompts and all(a and b and a.startswith(" ") != b.startswith(" ") for a, b in prompts):
        raise _spaces_refused(source, separator)
    return rows, places, "" if separator == "," else f"{SEPARATORS[separator]}-separated"


def _read_header(text: str, source: str) -> tuple[list[str], str, bool]:
    """Names of the columns, their separator, and whether a space follows every separator."""
    if not text.strip():
        raise UserError(f"{source} is not a CSV with a header: it is empty")
    headers = {}
    for separator in (*SEPARATORS, "|"):
        try:
            cells = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
            headers[separator] = next(row for row in cells if row)
        except (csv.Error, StopIteration):
            headers[separator] = []
    names = {s: [name.strip(' "') for name in header] for s, header in headers.items()}
    fitting = [s for s in names if KNOWN & {n.lower() for n in names[s]} and len(names[s]) > 1]
    separator = (fitting or [","])[0]
    if separator not in SEPARATORS:
        raise UserError(
            f"{source}: its cells are separated by {separator!r}, which separates answers; "
            "use commas or tabs"
        )
    spaced = bool(fitting) and _is_spaced(text, separator)
    if spaced and not _spaces_mean_nothing(text, names[separator], separator):
        raise _spaces_refused(source, separator)
    header = names[separator] if spaced else [name.strip() for name in headers[separator]]
    twice = [name for i, name in enumerate(header) if name and name in header[:i]]
    if twice:
        raise UserError(f"{source} has two columns {quoted(twice[0])}")
    return header, separator, spaced


def _is_spaced(text: str, separator: str) -> bool:
    """Whether a space follows every separator, including those in the header."""
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        return all(cell.startswith(" ") for cells in lines for cell in cells[1:])
    except csv.Error:
        return False


def _spaces_mean_nothing(text: str, header: list[str], separator: str) -> bool:
    """Whether spaces after separators can be removed: answers are not text, or all quoted."""
    has_texts = set(ANSWER_TEXTS) & set(header)
    body = re.sub(r'"(?:[^"]|"")*"', '"', text.lstrip().partition("\n")[2])
    return not has_texts or re.search(f'{re.escape(separator)}(?! ")', body) is None


def _spaces_refused(source: str, separator: str) -> UserError:
    return UserError(
        f"{source} has a space after each {SEPARATORS[separator]}, and a leading space belongs to "
        "a prompt and to an answer: leave those spaces out, or put every cell in double quotes"
    )


# ---- other formats -------------------------------------------------------------------------------


def _read_json(text: str, source: str, *, lines: bool) -> Parsed:
    """Read a list of objects, an object with such a list, or with columns, or JSON lines."""
    if lines and (parsed := _read_json_lines(text, source, required=False))[0]:
        return parsed
    try:
        document: Any = json.loads(text, object_pairs_hook=_without_twins)
    except _TwiceError as error:
        raise UserError(f"{source} has an object with two entries {quoted(str(error))}") from None
    except json.JSONDecodeError as error:
        place = f"; as JSON it is wrong at line {error.lineno}, column {error.colno}"
        return _read_json_lines(text, source, required=True, reason=place)
    except (ValueError, RecursionError):
        return _read_json_lines(text, source, required=True)
    if isinstance(document, dict):
        lists = [value for value in document.values() if is_list_of_objects(value)]
        document = lists[0] if len(lists) == 1 else from_columns(document, f"{source} (JSON)")
    if not is_list_of_objects(document):
        raise UserError(
            f"{source} is JSON, but not a list of objects such as "
            '[{"clean": .., "corrupted": .., "correct": .., "incorrect": ..}]'
        )
    places = [f"row {i}" for i in range(1, len(document) + 1)]
    return [as_record(r, p, source) for r, p in zip(document, places, strict=True)], places, "JSON"


def _read_json_lines(text: str, source: str, *, required: bool, reason: str = "") -> Parsed:
    """Read one object per line; if a line has none, nothing is returned, or the file is refused.

    Only a newline ends a line, because texts may contain other line separators of Unicode.
    """
    rows, places = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line, object_pairs_hook=_without_twins)
        except _TwiceError as error:
            raise UserError(
                f"{source}: line {number} has two entries {quoted(str(error))}"
            ) from None
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            if not required:
                return [], [], ""
            more = " (it ends in a comma)" if line.rstrip().endswith("},") else ""
            raise UserError(
                f"{source} is neither JSON nor JSON lines: line {number} is not a JSON object"
                f"{more}{reason}"
            )
        rows.append(as_record(record, f"line {number}", source))
        places.append(f"line {number}")
    return rows, places, "JSON lines"


class _TwiceError(Exception):
    """Name that occurs twice in a JSON object."""


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) < len(pairs):
        counted = [name for name, _ in pairs]
        raise _TwiceError(next(name for name in counted if counted.count(name) > 1))
    return names


def _read_parquet(content: bytes, source: str) -> Parsed:
    try:
        pd.read_parquet(io.BytesIO(content), columns=[])  # makes pandas import the reader used next
        # A table keeps Arrow's types, and the class names written by Hugging Face's library.
        table = arrow.parquet.read_table(io.BytesIO(content))
    except ImportError:
        raise UserError(f"{source} is Parquet: install pyarrow to read it") from None
    except Exception as error:  # pyarrow raises several kinds of errors
        raise UserError(f"{source} is not complete Parquet: {type(error).__name__}") from None
    rows, _ = records_of(table)
    return rows, [f"row {i}" for i in range(1, len(rows) + 1)], "Parquet"

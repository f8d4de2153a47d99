"""Readers of the tables of results behind figures.

Tables from other programs are accepted: extra columns, another order of columns, an unnamed index
and a missing total number of edges are allowed. Tables that cannot be drawn correctly are refused
with a one-line error: rows that do not fit the header, text among numbers, or sizes or baselines
that are not numbers.
"""

import csv
import json
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from eap.runtime.code import command, library_versions
from eap.runtime.errors import UserError, quoted
from eap.studies.command_names import as_typed
from eap.studies.paths import ROOT, shown, study_folder, table_file
from eap.studies.provenance import comparable, differences, file_hash, read_metadata, same

T = TypeVar("T")

DOES_TASK = 0.8
"""Smallest normalised faithfulness of a circuit that counts as doing the task."""

BASELINES = ("baseline", "corrupted_baseline")
MISSING = {"", "nan", "NaN", "NA", "null", "None"}

# Columns that must have a number in every row, and columns that must have at least one number.
SIZES = re.compile(r"(n_)?edges(_.*)?|total_edges|depth")
VALUES = re.compile(r"(loss|results)_.*")


@dataclass(frozen=True)
class Results:
    """Location of a model's results.

    Attributes:
        output: folder of results/ and graphs/.
        model: model as passed to the scripts.
    """

    output: Path
    model: str

    def command(self, script: str, arguments: str = "") -> str:
        """The command that runs a script for this model and folder."""
        words = [*as_typed(script), "--model", shlex.quote(self.model), arguments]
        if self.output.resolve() != ROOT.resolve():
            words += ["--output", shlex.quote(shown(self.output))]
        return " ".join(word for word in words if word)

    def folder(self, study: str) -> Path:
        """`results/<study>/<model>`."""
        return study_folder(self.output, study, self.model)

    def csv(self, study: str, name: str) -> Path:
        """`results/<study>/<model>/csv/<name>.csv`."""
        return table_file(self.output, study, self.model, name)


@dataclass(frozen=True)
class Table:
    """A table of results.

    Attributes:
        frame: columns of numbers.
        path: path of the file.
        metadata: provenance of the numbers; None if there is none.
        names: names of the rows, if the file has a column of names.
        texts: columns of text.
        columns: names of all columns, numbers and texts, in the order of the file.
    """

    frame: pd.DataFrame
    path: Path
    metadata: Mapping[str, Any] | None = None
    names: tuple[str, ...] | None = None
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    columns: tuple[str, ...] = ()

    @property
    def metric(self) -> str | None:
        """The metric of the numbers; None if it is not recorded."""
        metric = (self.metadata or {}).get("metric")
        return metric if isinstance(metric, str) else None

    @property
    def baselines(self) -> tuple[float, float]:
        """Value of the metric in the clean run and in the corrupted run."""
        clean, corrupted = (float(self.frame[name].iloc[0]) for name in BASELINES)
        return clean, corrupted


def read_table(path: Path, *, needs: Sequence[str] = ()) -> Table:
    """Read a CSV of results.

    Args:
        path: path of the file.
        needs: names of required columns of numbers.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: the file is not a CSV, has no rows, lacks a required column, or has text in place
            of a number.
    """
    if not path.exists():
        raise FileNotFoundError(shown(path))
    if not path.is_file():
        raise UserError(f"{shown(path)} is not a regular file")
    header, rows = _read_cells(path)
    columns = {name: [row[place] for row in rows] for place, name in enumerate(header)}
    names = tuple(columns[header[0]]) if _is_index(header[0]) else None
    data = {name: cells for name, cells in columns.items() if not _is_index(name)}
    columns_read = {
        name: _numbers(path, name, cells, needed=name in needs) for name, cells in data.items()
    }
    frame = pd.DataFrame({name: own for name, own in columns_read.items() if own is not None})
    texts = {name: tuple(data[name]) for name, own in columns_read.items() if own is None}
    if missing := [name for name in needs if name not in frame]:
        raise UserError(f"{shown(path)} has no column {', '.join(missing)}")
    _check_values(path, frame)
    return Table(frame, path, read_metadata(path), names, texts, tuple(data))


def _read_cells(path: Path) -> tuple[list[str], list[list[str]]]:
    """Read the header and the rows, which must have the same length."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header, *rows = [row for row in csv.reader(file, strict=True) if row] or [[]]
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{shown(path)} is not a CSV: {error}") from None
    if not header:
        raise UserError(f"{shown(path)} is not a CSV: it is empty")
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise UserError(f"{shown(path)} has two columns called {quoted(twice)}")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise UserError(
                f"{shown(path)}: row {number} has {len(row)} cells and the header {len(header)}; "
                "the file is truncated or damaged, so make it again"
            )
    if not rows:
        raise UserError(f"{shown(path)} has no rows")
    return header, rows


def _is_index(name: str) -> bool:
    """Whether a column names or numbers the rows: it is unnamed, or has the name of an index."""
    return name.strip() in ("", "task") or name.startswith("Unnamed")


def _numbers(path: Path, name: str, cells: Sequence[str], *, needed: bool) -> pd.Series | None:
    """Convert a column to numbers; None for a column of text that is not required."""
    texts = pd.Series([None if cell.strip() in MISSING else cell for cell in cells], dtype=object)
    numbers = pd.to_numeric(texts, errors="coerce")
    bad = texts.notna() & numbers.isna()
    if not bad.any():
        if np.isinf(numbers.astype(float)).any():
            raise UserError(f"{shown(path)}: column {quoted(name)} has an infinite number")
        return numbers
    if bad.equals(texts.notna()) and not needed and not _is_checked(name):
        return None
    row = int(np.flatnonzero(bad)[0])
    raise UserError(
        f"{shown(path)}: column {quoted(name)}, row {row + 1} has {quoted(cells[row])} where a "
        "number must stand"
    )


def _is_checked(name: str) -> bool:
    return bool(SIZES.fullmatch(name) or VALUES.fullmatch(name) or name in BASELINES)


def _check_values(path: Path, frame: pd.DataFrame) -> None:
    """Check that sizes are numbers of at least 0, baselines numbers, and curves not empty."""
    for name, numbers in zip(map(str, frame.columns), (frame[c] for c in frame), strict=True):
        if (SIZES.fullmatch(name) or name in BASELINES) and numbers.isna().any():
            raise UserError(f"{shown(path)}: column {quoted(name)} has a row without a number")
        if SIZES.fullmatch(name) and (numbers < 0).any():
            raise UserError(f"{shown(path)}: column {quoted(name)} has a number below 0")
        if VALUES.fullmatch(name) and numbers.isna().all():
            raise UserError(f"{shown(path)}: column {quoted(name)} has no number")


def required_table(path: Path, command: str, *, needs: Sequence[str] = ()) -> Table:
    """Read a required CSV; if it is missing, the `UserError` gives the command that makes it."""
    try:
        return read_table(path, needs=needs)
    except FileNotFoundError as error:
        raise UserError(f"no {error}; make it with: {command}") from None


def read_tasks(
    results: Results,
    study: str,
    tasks: Sequence[str],
    command: str,
    *,
    name_of: Callable[[str], str] = str,
    needs: Sequence[str] = BASELINES,
) -> dict[str, Table]:
    """Read the tables `results/<study>/<model>/csv/<name>.csv` that exist for the tasks.

    Prints which tables are missing, and the commands that make them.

    Args:
        results: results of the model.
        study: study of the tables.
        tasks: names of the tasks.
        command: command that makes a table, with `{task}` in place of the task.
        name_of: function that gives the name of a task's file.
        needs: names of required columns.

    Raises:
        UserError: no table exists, or a table cannot be read.
    """
    tables: dict[str, Table] = {}
    for task in tasks:
        try:
            tables[task] = read_table(results.csv(study, name_of(task)), needs=needs)
        except FileNotFoundError as error:
            say_missing(error, command.replace("{task}", shlex.quote(task)))
    if not tables:
        first = command.replace("{task}", shlex.quote(tasks[0])) if tasks else command
        raise UserError(f"nothing to draw for {results.model}; begin with: {first}")
    return tables


def say_missing(error: FileNotFoundError, command: str) -> None:
    """Print that a file is missing, and the command that makes it."""
    print(f"left out: no {error}; make it with: {command}")


def read_bands(table: Table, *, sizes: str = "edges") -> pd.DataFrame | None:
    """Read the bands of a table's curves, with the same rows as the table; None if there are none.

    Bands are in `<name>_bands.csv` in the table's folder, and are joined by the number of edges.
    Bands that do not fit the table (other sizes, another run) are ignored with a printed note.
    """
    path = table.path.with_name(f"{table.path.stem}_bands.csv")
    try:
        bands = read_table(path, needs=["edges"])
    except FileNotFoundError:
        return None
    reason = comparable(table.metadata, bands.metadata)
    if (table.metadata is None) != (bands.metadata is None):
        reason = "of another origin: only one of the two has metadata"
    elif table.metadata and bands.metadata and not same(table.metadata, bands.metadata):
        reason = reason or f"of another {differences(table.metadata, bands.metadata)[0]}"
    by_size = bands.frame.set_index("edges", drop=False)
    if sizes not in table.frame or not by_size.index.is_unique:
        reason = reason or "without one row for each size"
    elif not table.frame[sizes].isin(by_size.index).all():
        reason = reason or "of other sizes"
    if reason is not None:
        print(f"ignored: {shown(path)}, for {table.path.name}: {reason}")
        return None
    return by_size.loc[table.frame[sizes]].reset_index(drop=True)


def check_comparable(tables: Iterable[Table]) -> None:
    """Refuse to draw tables of different models, data or metrics in one figure.

    Raises:
        UserError: two tables may not be in one figure; the message says what differs.
    """
    known = [table for table in tables if table.metadata is not None]
    for other, table in combinations(known, 2):
        if (reason := comparable(other.metadata, table.metadata)) is not None:
            raise UserError(
                f"{shown(other.path)} and {shown(table.path)} do not belong in one figure: "
                f"{reason}; recompute one of the two"
            )


def check_one_model(tables: Iterable[Table]) -> None:
    """Refuse tables of different models.

    Raises:
        UserError: two tables are of different models; the message names them.
    """
    known = [table for table in tables if table.metadata is not None]
    for table in known[1:]:
        models = ({"model": (each.metadata or {}).get("model")} for each in (known[0], table))
        if (reason := comparable(*models)) is not None:
            raise UserError(f"{shown(known[0].path)} and {shown(table.path)}: {reason}")


def origin_note(tables: Iterable[Table]) -> str:
    """Note for a figure on tables without metadata, and on exact values of only some edges."""
    tables = list(tables)
    notes = []
    if unknown := [table.path.stem for table in tables if table.metadata is None]:
        names = f" ({', '.join(unknown[:3])}{', ..' if len(unknown) > 3 else ''})"
        notes.append(f"no metadata: settings unknown{names}")
    for verify, sample in sorted({choice for table in tables for choice in _choices(table)}):
        notes.append(
            f"exact values of the {verify:,} edges that estimates rank highest, and of a sample of "
            f"{sample:,} others"
        )
    return "; ".join(notes)


def _choices(table: Table) -> Iterator[tuple[int, int]]:
    """Numbers of best and of sampled edges with exact values, if not all edges have them."""
    settings = [(table.metadata or {}).get("settings")]
    settings += of_tasks(table.metadata, "settings", dict).values()
    for chosen in settings:
        if isinstance(chosen, Mapping):
            verify, sample = chosen.get("verify"), chosen.get("sample")
            if isinstance(verify, int) and isinstance(sample, int):
                yield verify, sample


def of_tasks(metadata: Mapping[str, Any] | None, entry: str, kind: type[T]) -> dict[str, T]:
    """An entry of the provenance of each task of a table, for tasks that have one of this kind."""
    tasks = (metadata or {}).get("tasks")
    known = tasks.items() if isinstance(tasks, Mapping) else ()
    entries = {task: parts.get(entry) for task, parts in known if isinstance(parts, Mapping)}
    return {task: value for task, value in entries.items() if isinstance(value, kind)}


def origin_of(
    tables: Sequence[Table], results: Results, *, method: str, others: Sequence[Path] = ()
) -> dict[str, Any] | None:
    """Provenance of a table computed from other tables; None if one of them has no provenance.

    Args:
        tables: source tables.
        results: location of the source tables.
        method: description of what was computed.
        others: further source files.
    """
    known = [table.metadata for table in tables if table.metadata is not None]
    if not known or len(known) < len(tables):
        return None
    return {
        "model": known[0]["model"],
        "method": method,
        "made_of": {
            path.relative_to(results.output).as_posix(): file_hash(path)
            for path in (*(table.path for table in tables), *others)
        },
        "code": known[0].get("code"),
        "versions": library_versions(),
        "command": command(),
    }


def read_correlations(
    results: Results, tasks: Iterable[str], command: str
) -> tuple[dict[str, float], list[str]]:
    """Read the output of compare_real.py.

    Returns:
        Numbers by `<task>_{vanilla,ig}[_diff,_kendall]`, and the tasks that have all numbers.
    """
    path = results.folder("real_rank") / "correlations.json"
    try:
        document = json.loads(path.read_text(encoding="utf8"))
    except FileNotFoundError:
        raise UserError(f"no {shown(path)}; make it with: {command}") from None
    except ValueError:
        document = None
    if not isinstance(document, Mapping):
        raise UserError(f"{shown(path)} is not a table of correlations; make it with: {command}")
    numbers = {key: value for key, value in document.items() if _is_number(value)}
    keys = [f"{method}{what}" for method in ("vanilla", "ig") for what in ("", "_diff", "_kendall")]
    compared = [task for task in tasks if all(f"{task}_{key}" in numbers for key in keys)]
    if not compared:
        raise UserError(f"{shown(path)} has none of {', '.join(tasks)}")
    return numbers, compared


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

"""A self-contained report page of a model's results, with pictures, tables and provenance.

The template `report.html.j2` escapes all values. Damaged files do not stop the report; the page
lists the files that cannot be read.
"""

import base64
import glob
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from eap.data.tasks import TASKS
from eap.figures.curves import CONFIDENCE, methods_of
from eap.figures.style import METHODS, METRIC_NAMES, typed_name
from eap.figures.tables import BASELINES, Results, Table, read_bands, read_table
from eap.runtime.errors import UserError
from eap.statistics.measures import normalised
from eap.studies.catalogue import as_pattern
from eap.studies.paper_figures import FIGURES, Figure

# Sizes in the overview; a table without any of these sizes is shown at a few of its own.
SIZES = (100, 200, 500, 1000)
ROWS = 40


ABSENT = {
    "Figure 6": "Not made: the circuits found by hand are those of GPT-2 small (12 layers of 12 "
    "heads) for IOI and Greater-Than."
}
"""Texts that replace figures that do not exist for some models."""


@dataclass(frozen=True)
class Picture:
    """A picture of the page: name, and PNG data in base64."""

    name: str
    data: str


@dataclass(frozen=True)
class Content:
    """A table of the page.

    Attributes:
        columns: names of the columns.
        rows: texts of the cells.
        name: name of the file.
        origin: provenance of the numbers in one line.
        more: number of rows that are not shown.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    name: str = ""
    origin: str = ""
    more: int = 0


@dataclass(frozen=True)
class Section:
    """A section of the page: a figure with its pictures, tables and notes."""

    title: str
    caption: str
    pictures: list[Picture]
    tables: list[Content]
    notes: list[str]


def render(results: Results, figures: Iterable[Figure] = FIGURES) -> str:
    """Render the page as HTML.

    Args:
        results: results of the model.
        figures: figures to show, in order; figures that do not exist are skipped.

    Raises:
        UserError: there are no figures.
    """
    name = results.folder("pareto").name
    sections = [section for figure in figures if (section := show(results, figure))]
    if not any(section.pictures or section.tables for section in sections):
        raise UserError(
            f"no figures of {name} yet; make them with: make paper MODEL={results.model}"
        )
    curves, unreadable = read_curves(results)
    bands = {task: band for task, table in curves.items() if (band := bands_of(table)) is not None}
    known = list(all_tables(results))
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html.j2").render(
        title=f"{name}: circuits and their faithfulness",
        facts=model_facts(results, known, [*bands.values(), *(t.frame for t in curves.values())]),
        overview=overview(curves, bands),
        sections=sections,
        unreadable=unreadable,
        settings=settings(known, curves),
    )


# ---- sections ------------------------------------------------------------------------------------


def show(results: Results, figure: Figure) -> Section | None:
    """Read a figure's pictures and tables; None if there are none."""
    folder = results.folder(figure.study)
    pictures = [
        Picture(path.stem, base64.b64encode(path.read_bytes()).decode())
        for path in files(folder / "png", figure.pictures, "png")
    ]
    tables, notes = [], []
    for path in files(folder / "csv", figure.tables, "csv"):
        if path.stem.endswith("_bands"):
            continue
        try:
            tables.append(show_table(read_table(path)))
        except (UserError, OSError) as error:
            notes.append(f"cannot be read: {error}")
    title = f"{figure.label}: {figure.title}"
    if pictures or (not figure.pictures and (tables or notes)):
        return Section(title, figure.caption, pictures, tables, notes)
    absent = ABSENT.get(figure.label)
    return Section(title, absent, [], [], []) if absent else None


def files(folder: Path, templates: Iterable[str], suffix: str) -> list[Path]:
    """Files of a folder, not hidden, that match templates (`{task}` matches any text)."""
    patterns = [f"{as_pattern(template)}.{suffix}" for template in templates]
    paths = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    return [p for p in dict.fromkeys(paths) if p.is_file() and not p.name.startswith(".")]


def show_table(table: Table) -> Content:
    """The first rows of a table, with its provenance."""
    frame = table.frame[:ROWS]
    names = table.names
    named = names is not None and not all(name.strip().isdigit() for name in names)
    cells = [
        table.texts[name][:ROWS] if name in table.texts else [*map(write, frame[name])]
        for name in table.columns
    ]
    rows = [
        ((names or ())[place], *row) if named else row
        for place, row in enumerate(zip(*cells, strict=True))
    ]
    return Content(
        columns=(("",) if named else ()) + table.columns,
        rows=tuple(rows),
        name="/".join(table.path.parts[-4:]),
        origin=origin(table),
        more=len(table.frame) - len(frame),
    )


def write(value: Any) -> str:
    """Format a number with four significant digits; a missing number is empty."""
    if isinstance(value, str):
        return value
    if value is None or pd.isna(value):
        return ""
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    text = f"{float(value):.4g}"
    return text.removeprefix("-") if float(text) == 0 else text


def origin(table: Table) -> str:
    """Metric, number of pairs, and command of a table in one line."""
    if table.metadata is None:
        return "no metadata: settings unknown"
    parts = [
        f"{name}: {value}"
        for name, value in (
            ("metric", table.metric),
            ("pairs", count_pairs(table.metadata)),
            ("command", table.metadata.get("command")),
        )
        if value
    ]
    return "; ".join(parts)


# ---- overview, model and settings ----------------------------------------------------------------


def read_curves(results: Results) -> tuple[dict[str, Table], list[str]]:
    """Read the tables of the Pareto study by task: known tasks in their order, then others.

    Returns:
        The tables, and messages about tables that cannot be read.
    """
    folder = results.folder("pareto") / "csv"
    stems = [p.stem for p in files(folder, ["{task}"], "csv") if not p.stem.endswith("_bands")]
    order = [task for task in TASKS if task in stems]
    curves, unreadable = {}, []
    for task in [*order, *(stem for stem in stems if stem not in order)]:
        try:
            curves[task] = read_table(folder / f"{task}.csv", needs=["edges", *BASELINES])
        except (UserError, OSError) as error:
            unreadable.append(f"cannot be read: {error}")
    return curves, unreadable


def bands_of(table: Table) -> pd.DataFrame | None:
    """The bands of a table's curves; None if there are none or they cannot be read."""
    try:
        return read_bands(table)
    except (UserError, OSError) as error:
        print(f"ignored: {error}")
        return None


def overview(curves: Mapping[str, Table], bands: Mapping[str, pd.DataFrame]) -> Content | None:
    """Table of pairs, baselines, and normalised faithfulness at a few sizes; None if empty."""
    rows: list[dict[str, str]] = []
    for task, table in curves.items():
        frame, (clean, corrupted) = table.frame, table.baselines
        if clean == corrupted:
            continue
        sizes = [size for size in SIZES if (frame["edges"] == size).any()]
        for size in sizes or frame["edges"].iloc[:: max(1, len(frame) // 4)]:
            place = int((frame["edges"] == size).to_numpy().argmax())
            row = {
                "task": typed_name(task),
                "metric": METRIC_NAMES.get(table.metric or "", table.metric or "not recorded"),
                "pairs": write(count_pairs(table.metadata or {})),
                "clean": write(clean),
                "corrupted": write(corrupted),
                "edges selected": write(size),
            }
            for method in methods_of(frame):
                value = normalised(float(frame[f"loss_{method}"].iloc[place]), clean, corrupted)
                row[METHODS[method][0] if method in METHODS else method] = with_error(
                    value, bands.get(task), method, place
                )
            rows.append(row)
    if not rows:
        return None
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return Content(
        tuple(columns), tuple(tuple(row.get(name, "") for name in columns) for row in rows)
    )


def with_error(faithfulness: float, bands: pd.DataFrame | None, method: str, place: int) -> str:
    """Format faithfulness with the half-width of its 95% interval, if known."""
    column = f"stderr_share_{method}"
    error = bands[column].iloc[place] if bands is not None and column in bands else float("nan")
    if faithfulness != faithfulness:
        return write(faithfulness)
    return f"{faithfulness:.3f}" + (f" ± {CONFIDENCE * error:.3f}" if error == error else "")


def count_pairs(provenance: Mapping[str, Any]) -> int | None:
    """Number of pairs that a result is based on; None if the provenance does not say."""
    data = provenance.get("data")
    if not isinstance(data, Mapping):
        return None
    counts = [data.get(key) for key in ("n_pairs", "pairs", "head")]
    known = [n for n in counts if isinstance(n, int) and not isinstance(n, bool)]
    return min(known) if known else None


def all_tables(results: Results) -> Iterator[Table]:
    """Every table of the model that can be read."""
    name = results.folder("pareto").name
    for folder in sorted((results.output / "results").glob(f"*/{glob.escape(name)}/csv")):
        for path in files(folder, ["{task}"], "csv"):
            try:
                yield read_table(path)
            except (UserError, OSError):
                continue


def model_facts(
    results: Results, tables: Sequence[Table], frames: Iterable[pd.DataFrame]
) -> dict[str, str]:
    """Known facts about the model, and the date of its newest numbers."""
    facts: dict[str, str] = {"name": results.model}
    for table in tables:
        model = (table.metadata or {}).get("model")
        if isinstance(model, Mapping):
            facts |= {str(key): str(value) for key, value in model.items() if key != "name"}
            break
    for frame in frames:
        if "total_edges" in frame:
            facts["edges of the whole graph"] = write(frame["total_edges"].iloc[0])
    versions = next(
        (v for t in tables if isinstance(v := (t.metadata or {}).get("versions"), Mapping)), {}
    )
    if versions:
        facts["versions"] = ", ".join(f"{name} {value}" for name, value in versions.items())
    if tables:
        newest = max(table.path.stat().st_mtime for table in tables)
        facts["numbers of"] = datetime.fromtimestamp(newest, UTC).strftime("%Y-%m-%d")
    return facts


def settings(tables: Iterable[Table], curves: Mapping[str, Table]) -> dict[str, str]:
    """Provenance of every task's curves, and all commands that made a table."""
    texts = {}
    for task, table in curves.items():
        if table.metadata is not None:
            pairs = count_pairs(table.metadata)
            title = typed_name(task) + (f": {pairs:,} pairs" if pairs is not None else "")
            texts[title] = json.dumps(table.metadata, indent=2, default=str)
    commands = [str((table.metadata or {}).get("command", "")) for table in tables]
    if lines := [line for line in dict.fromkeys(commands) if line]:
        texts["commands"] = "\n".join(
            line if line.startswith("eap ") else f"python {line}" for line in lines
        )
    return texts

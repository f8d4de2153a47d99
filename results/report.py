"""One self-contained page of a model's results: results/<model>/report.html.

Shows every figure that has been made with a line on what it shows, the tables behind it, and the
settings that all was made with. Pictures are inside the page, so that it can be sent as one file.
"""

import argparse
import base64
import html
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from eap.data.tasks import TASKS
from eap.errors import UserError
from eap.figures import curves, style
from eap.runtime.atomic import write_atomically
from eap.studies import shell

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
img { max-width: 100%; display: block; margin: 0 auto; }
figure { margin: 1rem 0; }
h2 { margin-top: 2.5rem; }
table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto; }
td, th { padding: 2px 8px; text-align: right; white-space: nowrap; }
tr:nth-child(even) { background: #f4f4f4; }
details { margin: .5rem 0; }
summary { cursor: pointer; }
code, pre { background: #f4f4f4; font-size: 13px; }
pre { padding: .6rem; overflow-x: auto; }
"""

SIZES = (100, 200, 500, 1000)
ROWS = 40


@dataclass(frozen=True)
class Section:
    """A figure of the page: its title, what it shows, its pictures and tables (by pattern)."""

    title: str
    shows: str
    study: str
    pictures: tuple[str, ...]
    tables: tuple[str, ...] = ()


SECTIONS = (
    Section(
        "Figure 1",
        "Left: where a GELU is flat at the clean input, its gradient there (EAP) says that nothing "
        "would change; the mean gradient along the path (EAP-IG) says better. Right: what that "
        "does for the faithfulness of circuits.",
        "first_figure",
        ("first_figure",),
    ),
    Section(
        "Figure 2",
        "A small circuit, layers upwards. Lines into a head end at the left (q), middle (k) or "
        "right (v) of its box; the wider a line, the larger the edge's score.",
        "circuit",
        ("*_circuit",),
    ),
    Section(
        "Figure 3",
        "Normalised faithfulness of circuits by size: 1 is the whole model, 0 the corrupted run. "
        "Bands: 95% confidence over examples; grey: from the lowest to the highest of a few "
        "circuits of the same size that were selected by random scores.",
        "real_pareto_combined",
        ("real_pareto_normalized",),
    ),
    Section(
        "Figure 4",
        "How the estimates' absolute scores agree with exact ones: correlation over all edges, and "
        "average overlap of the edges that rank highest.",
        "real_rank",
        ("correlation_overlap",),
        ("all-overlap",),
    ),
    Section(
        "Figure 5",
        "Overlap of the tasks' circuits beside the faithfulness of each circuit (column) on each "
        "task (row): first as a share of the whole model's, then of the task's own circuit's.",
        "cross-task",
        ("cross_task", "cross_task_own"),
        ("faithfulness",),
    ),
    Section(
        "Figure 6",
        "The edges that rank highest against circuits that people found by hand.",
        "manual_overlap",
        ("*_precision_recall",),
        ("*_precision_recall",),
    ),
    Section(
        "Figure 7",
        "Normalised faithfulness by the number of steps of integrated gradients.",
        "ig_test",
        ("ig_test",),
        ("*_ig_test",),
    ),
    Section(
        "Figure 8",
        "Mean absolute difference of estimates from exact values, and rank agreement with them.",
        "real_rank",
        ("kendall_difference",),
    ),
    Section(
        "Figure 9",
        "Nodes and edges that circuits from estimates share with circuits from exact values.",
        "real_rank",
        ("node_edge_overlap",),
        ("node-overlap", "edge-overlap"),
    ),
    Section(
        "Figure 10",
        "As Figure 3 without the exact curves, for the variants of greater-than.",
        "pareto",
        ("pareto_normalized_*",),
    ),
    Section(
        "Figure 11",
        "As Figure 3 without the exact curves; large models have sizes up to a share of all edges.",
        "pareto",
        ("pareto_normalized", "pareto_big"),
    ),
    Section(
        "The metrics themselves",
        "As Figure 3, not normalised: solid line the clean run, dotted line the corrupted one.",
        "pareto",
        ("pareto",),
        ("*",),
    ),
    Section(
        "Appendix I",
        "The share of a task's circuit (row) that another's (column) has, beside faithfulness.",
        "cross-task",
        ("recall",),
    ),
    Section(
        "Overlap, and chance",
        "Intersection over union of the tasks' circuits, the share of the row's circuit in the "
        "column's, and the probability of an overlap this large by chance (hypergeometric).",
        "jaccard",
        ("*",),
        ("*",),
    ),
    Section("Exact values", "The curves of Figure 3 from exact values.", "real", (), ("*",)),
)
NO_FIGURE_6 = (
    "<h2>Figure 6</h2><p>Left out: the hand-made circuits are of GPT-2 small (12 layers of 12 "
    "heads), and this model has another shape.</p>"
)


def main() -> None:
    """Write the page."""
    args = style.make_parser(__doc__, tasks=()).parse_args()
    name = Path(args.model).name
    sections = [show(args, section) for section in SECTIONS]
    if not any(sections):
        command = f"python results/paper.py --model {args.model}"
        raise UserError(f"no figures of {name} yet; make them with: {command}")
    provenances = read_provenances(args)
    title = f"{html.escape(name)}: circuits and their faithfulness"
    page = [
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{title}</title>",
        f"<style>{STYLE}</style></head><body><h1>{title}</h1>",
        overview(args, provenances),
        *(section or (NO_FIGURE_6 if own.title == "Figure 6" else "")
          for own, section in zip(SECTIONS, sections, strict=True)),
        settings(args, provenances),
        "</body></html>",
    ]  # fmt: skip
    path = args.output / "results" / name / "report.html"
    with write_atomically(path) as temporary:
        temporary.write_text("\n".join(part for part in page if part), encoding="utf-8")
    shell.say(f"wrote {shell.shown(path)}")


def show(args: argparse.Namespace, section: Section) -> str:
    """A figure with its pictures and the tables behind it; "" if nothing of it has been made."""
    folder = style.model_folder(args, section.study)

    def files(kind: str, patterns: tuple[str, ...]) -> list[Path]:
        return [p for own in patterns for p in sorted((folder / kind).glob(f"{own}.{kind}"))]

    pictures, tables = files("png", section.pictures), files("csv", section.tables)
    tables = [path for path in tables if not path.stem.endswith("_bands")]
    if not pictures and not (tables and not section.pictures):
        return ""
    parts = [f"<h2>{section.title}</h2><p>{section.shows}</p>"]
    for path in pictures:
        data = base64.b64encode(path.read_bytes()).decode()
        source = f"data:image/png;base64,{data}"
        parts.append(f"<figure><img alt='{html.escape(path.stem)}' src='{source}'></figure>")
    return "\n".join([*parts, *map(show_table, tables)])


def show_table(path: Path) -> str:
    """A CSV that opens on a click; of a long one the first rows."""
    frame = style.read_table(path)
    more = f"<p>and {len(frame) - ROWS} more rows in the file</p>" if len(frame) > ROWS else ""
    where = "/".join(path.parts[-4:])
    text = as_html(frame[:ROWS], 6)
    return f"<details><summary>{html.escape(where)}</summary>{text}{more}</details>"


def as_html(frame: pd.DataFrame, digits: int) -> str:
    """A table of numbers with so many significant digits."""
    return frame.to_html(index=False, border=0, na_rep="", float_format=lambda x: f"{x:.{digits}g}")


def overview(args: argparse.Namespace, provenances: dict[str, dict[str, Any]]) -> str:
    """How many pairs and edges, and normalised faithfulness at a few sizes."""
    rows = []
    for task in TASKS:
        path = style.model_folder(args, "pareto") / "csv" / f"{task}.csv"
        if not path.exists():
            continue
        frame = style.read_table(path, needs=["edges", "baseline", "corrupted_baseline"])
        clean, corrupted = curves.baselines(frame)
        for size in SIZES:
            at = frame[frame["edges"] == size]
            if at.empty or clean == corrupted:
                continue
            row: dict[str, Any] = {
                "task": style.display_name(task),
                "metric": provenances.get(task, {}).get("metric", ""),
                "pairs": count_pairs(provenances.get(task, {})),
                "clean": clean,
                "corrupted": corrupted,
                "edges selected": size,
            }
            for method in curves.methods_of(frame):
                value = float(at[f"loss_{method}"].iloc[0])
                row[method] = curves.normalised(value, clean, corrupted)
            rows.append(row)
    if not rows:
        return ""
    return f"<h2>Normalised faithfulness</h2>{as_html(pd.DataFrame(rows), 3)}"


def count_pairs(provenance: dict[str, Any]) -> int | str:
    """How many pairs of its task a graph was made with."""
    data = provenance.get("data", {})
    known = [data[key] for key in ("pairs", "head") if data.get(key) is not None]
    return min(known) if known else ""


def read_provenances(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Where the EAP-IG scores of every task come from."""
    found = {}
    for task in TASKS:
        try:
            found[task] = style.find_graph(args, f"{task}_task").provenance
        except FileNotFoundError:
            continue
    return found


def settings(args: argparse.Namespace, provenances: dict[str, dict[str, Any]]) -> str:
    """Model, data, method, versions and command of every task's scores; all commands that ran."""
    parts = ["<h2>Settings</h2>"]
    for task, provenance in provenances.items():
        text = html.escape(json.dumps(provenance, indent=2))
        title = f"{style.display_name(task)}: {count_pairs(provenance)} pairs"
        parts.append(f"<details><summary>{title}</summary><pre>{text}</pre></details>")
    path = args.output / "results" / Path(args.model).name / "steps.json"
    if path.exists():
        steps = json.loads(path.read_text(encoding="utf-8")).values()
        text = html.escape("\n".join(f"python {' '.join(step['command'])}" for step in steps))
        parts.append(f"<details><summary>commands</summary><pre>{text}</pre></details>")
    return "\n".join(parts)


if __name__ == "__main__":
    shell.run(main)

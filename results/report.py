"""One self-contained page of a model's results: results/<model>/report.html.

Shows every figure that has been made, with a line on what it shows, the tables behind them, and the
settings they were made with. Pictures are inside the page, so that it can be sent as one file.
"""

import argparse
import base64
import html
import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from eap import cli, plotting
from eap.errors import UserError
from eap.files import write_atomically
from eap.tasks import TASKS

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; }
img { max-width: 100%; }
figure { margin: 1rem 0 2rem; }
figcaption { color: #444; }
table { border-collapse: collapse; font-size: 13px; }
td, th { padding: 2px 8px; text-align: right; }
tr:nth-child(even) { background: #f4f4f4; } details { margin: .5rem 0; } summary { cursor: pointer; }
code, pre { background: #f4f4f4; font-size: 13px; } pre { padding: .6rem; overflow-x: auto; }
"""


@dataclass(frozen=True)
class Figure:
    """A figure of the page: its title, what it shows, and the pictures and tables it is made of."""

    title: str
    shows: str
    study: str
    pictures: str  # a pattern
    tables: str = ""  # a pattern; "": none


FIGURES = (
    Figure(
        "Figure 1", "Integrated gradients on GELU; faithfulness on Country-Capital.",
        "first_figure", "first_figure",
    ),
    Figure("Figure 2", "A small circuit as a graph, layers upwards.", "circuit", "*_circuit"),
    Figure(
        "Figure 3", "Normalised faithfulness by size: estimates beside exact patching.",
        "real_pareto_combined", "real_pareto_normalized",
    ),
    Figure(
        "Figure 4", "Estimates against exact values: correlation, and overlap of the best edges.",
        "real_rank", "correlation_overlap", "all-overlap",
    ),
    Figure(
        "Figure 5", "Overlap of the tasks' circuits beside how well each does the other tasks.",
        "cross-task", "cross_task", "faithfulness",
    ),
    Figure(
        "Figure 6", "Precision and recall against circuits that people found by hand.",
        "manual_overlap", "*_precision_recall", "*_precision_recall",
    ),
    Figure(
        "Figure 7", "Effect of the number of steps of integrated gradients.",
        "ig_test", "ig_test", "*_ig_test",
    ),
    Figure(
        "Figure 8", "Mean difference and rank correlation of estimates with exact values.",
        "real_rank", "kendall_difference",
    ),
    Figure(
        "Figure 9", "Overlap of circuits from exact values and from estimates, by size.",
        "real_rank", "node_edge_overlap", "*e-overlap",
    ),
    Figure(
        "Figure 10", "Normalised faithfulness on the variants of greater-than.",
        "pareto", "pareto_normalized_greater*",
    ),
    Figure(
        "Pareto curves", "The metric itself, by size; grey: random circuits of the same size.",
        "pareto", "pareto", "[!.]*",
    ),
    Figure(
        "Appendix I", "How much of one task's circuit another's has.", "cross-task", "recall"
    ),
    Figure(
        "Overlap", "Overlap of the tasks' circuits, and how likely it is by chance.",
        "jaccard", "*", "*",
    ),
)  # fmt: skip


def main() -> None:
    """Write the page."""
    args = plotting.make_parser(__doc__, tasks=()).parse_args()
    name = Path(args.model).name
    sections = [section for figure in FIGURES if (section := figure_section(args, figure))]
    if not sections:
        raise UserError(
            f"no figures of {name} yet; make them with: python results/paper.py --model {args.model}"
        )
    page = [
        "<!doctype html><html lang='en'><head><meta charset='utf8'>",
        f"<title>{html.escape(name)}: circuits and their faithfulness</title>",
        f"<style>{STYLE}</style></head><body>",
        f"<h1>{html.escape(name)}: circuits and their faithfulness</h1>",
        summary(args),
        *sections,
        settings(args),
        "</body></html>",
    ]
    path = args.output / "results" / name / "report.html"
    with write_atomically(path) as temporary:
        temporary.write_text("\n".join(page), encoding="utf8")
    print(f"wrote {cli.shown(path)}")


def figure_section(args: argparse.Namespace, figure: Figure) -> str:
    """A figure with its pictures and the tables behind it; "" if it has not been made."""
    folder = plotting.model_folder(args, figure.study)
    pictures = sorted((folder / "png").glob(f"{figure.pictures}.png"))
    if not pictures:
        if figure.title == "Figure 6":
            return (
                "<h2>Figure 6</h2><p>Left out: the hand-made circuits are of GPT-2 small "
                "(12 layers of 12 heads), and this model has another shape.</p>"
            )
        return ""
    parts = [f"<h2>{figure.title}</h2><figure>"]
    for picture in pictures:
        data = base64.b64encode(picture.read_bytes()).decode()
        parts.append(f"<img alt='{html.escape(picture.stem)}' src='data:image/png;base64,{data}'>")
    parts.append(f"<figcaption>{figure.shows}</figcaption></figure>")
    if figure.tables:
        for path in sorted((folder / "csv").glob(f"{figure.tables}.csv")):
            if not path.stem.endswith("_bands"):
                parts.append(table(path))
    return "\n".join(parts)


def table(path: Path) -> str:
    """A CSV as a table that opens on a click; long ones by their first rows, and where to find them."""
    frame = pd.read_csv(path)
    shown = frame.head(40)
    text = shown.to_html(index=False, border=0, float_format=lambda x: f"{x:.6g}", na_rep="")
    more = "" if len(frame) == len(shown) else f"<p>and {len(frame) - len(shown)} more rows</p>"
    where = f"{path.parent.parent.parent.name}/{path.stem}.csv"
    return f"<details><summary>{html.escape(where)}</summary>{text}{more}</details>"


def summary(args: argparse.Namespace) -> str:
    """Normalised faithfulness at a few sizes: EAP, EAP-IG and EAP-IG-KL."""
    rows = []
    for task in TASKS:
        path = plotting.model_folder(args, "pareto") / "csv" / f"{task}.csv"
        if not path.exists():
            continue
        frame = pd.read_csv(path)
        clean, corrupted = frame["baseline"].iloc[0], frame["corrupted_baseline"].iloc[0]
        for size in (100, 200, 500, 1000):
            own = frame[frame["edges"] == size]
            if len(own):
                shares = {
                    name: (own[f"loss_{name}"].iloc[0] - corrupted) / (clean - corrupted)
                    for name in ("EAP", "EAP-IG", "EAP-IG-KL")
                }
                rows.append({"task": plotting.display_name(task), "edges": size, **shares})
    if not rows:
        return ""
    text = pd.DataFrame(rows).to_html(index=False, border=0, float_format=lambda x: f"{x:.2f}")
    return f"<h2>Normalised faithfulness</h2>{text}"


def settings(args: argparse.Namespace) -> str:
    """Where the scores come from, as the graphs say."""
    folder = args.output / "graphs" / Path(args.model).name
    parts = ["<h2>Settings</h2>"]
    for path in sorted(folder.glob("*_task.json")):
        provenance = json.loads(path.read_text(encoding="utf8")).get("provenance", {})
        pairs = provenance.get("data", {}).get("head") or provenance.get("data", {}).get("pairs")
        text = html.escape(json.dumps(provenance, indent=2))
        title = html.escape(path.stem.removesuffix("_task"))
        parts.append(
            f"<details><summary>{title}: {pairs} pairs</summary><pre>{text}</pre></details>"
        )
    return "\n".join(parts)


if __name__ == "__main__":
    cli.run(main)

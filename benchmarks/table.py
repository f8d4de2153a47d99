"""Make the table of speed in benchmarks/README.md from a file of measurements.

python benchmarks/table.py benchmarks/results/<machine>.json
"""

import argparse
import json
from pathlib import Path
from typing import Any

from eap.runtime.atomic import write_atomically
from eap.studies import shell

README = Path(__file__).resolve().parent / "README.md"
BEGIN, END = "<!-- speed: made by benchmarks/table.py -->", "<!-- end of speed -->"
PARTS = {
    "floor": "Attribution, against the bare model",
    "split": "Attribution, against split inputs",
    "sweep": "Pareto sweep",
    "exact": "Exact patching",
    "layers": "Exact patching by layers",
    "graphs": "Large graphs",
    "toy": "Small models",
    "memory": "Memory",
    "growth": "Growth",
}


def table(document: dict[str, Any]) -> str:
    """The measurements as Markdown: value, spread, and target."""
    machine = document["machine"]
    lines = [
        f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}, float32; "
        "medians, lowest to highest in brackets.",
        "",
        "| what | measured | aim | share of the peak | where the time goes |",
        "| --- | --- | --- | --- | --- |",
    ]
    for part, title in PARTS.items():
        rows = [row for row in document["rows"] if row["part"] == part]
        lines += [f"| **{title}** | | | | |"] if rows else []
        lines += [
            f"| {row['what']} | {measured(row)} | {row['target']} | {limits(row['detail'])} |"
            for row in rows
        ]
    return "\n".join(lines)


def measured(row: dict[str, Any]) -> str:
    """A value with its unit and spread, and the predicted value if there is one."""
    unit = {"x": "x", "": "", "exponent": ""}.get(row["unit"], f" {row['unit']}")
    text = f"{row['value']:.3g}{unit}"
    if row["low"] != row["high"]:
        text += f" ({row['low']:.3g} to {row['high']:.3g})"
    if "predicted" in row["detail"]:
        text += f"; operations predict {row['detail']['predicted']:.3g}"
    return text


def limits(detail: dict[str, Any]) -> str:
    """Two columns: share of the matrix products' peak that a run reaches, and breakdown of time."""
    if "peak" not in detail:
        return "|"
    names = {"products": "matrix products", "between": "between operations"}
    parts = [f"{names.get(name, name)} {share:.0%}" for name, share in detail["time"].items()]
    return f"{detail['peak']:.2f} | {', '.join(parts)}"


def in_readme(text: str, document: dict[str, Any]) -> str:
    """The README with the table of these measurements."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table(document)}\n{END}{rest.split(END)[1]}"


def main() -> None:
    """Rewrite the README's table."""
    parser = shell.OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path)
    args = parser.parse_args()
    document = json.loads(args.results.read_text(encoding="utf8"))
    text = in_readme(README.read_text(encoding="utf8"), document)
    with write_atomically(README) as temporary:
        temporary.write_text(text, encoding="utf8")
    print(f"wrote {shell.shown(README)}")


if __name__ == "__main__":
    shell.run(main)

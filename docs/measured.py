"""Tables of the manual that are made from kept results: python docs/measured.py.

Each stands in its page between two comments, `<!-- measured: NAME -->` and `<!-- end -->`; this
script writes what is between them again. Results are those of results/gallery/<study>.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from eap.data.tasks import PARETO_TASKS  # noqa: E402 - the folder must be known first
from eap.figures.curves import CONFIDENCE  # noqa: E402
from eap.figures.tables import DOES_TASK  # noqa: E402
from eap.studies.provenance import read_metadata  # noqa: E402

GALLERY = HERE.parent / "results" / "gallery"
MODELS = {"toy": "toy", "smollm2": "SmolLM2-135M", "gemma3": "Gemma 3 270M"}
"""Studies in the order in which they are shown, and what a reader calls their models."""

OF_WHOLE = 0.9
"""Share of a circuit's faithfulness that its nodes' parts are asked to keep."""


def main() -> None:
    """Write every table of every page again."""
    for page in sorted(HERE.glob("*.md")):
        text = page.read_text("utf8")
        if (made := filled(text)) != text:
            page.write_text(made, encoding="utf8")
            print(f"wrote docs/{page.name}")


def filled(text: str) -> str:
    """A page with its tables as they are now."""
    parts = text.split("<!-- measured: ")
    for place, part in enumerate(parts[1:], start=1):
        name, rest = part.split(" -->", 1)
        _, after = rest.split("<!-- end -->", 1)
        parts[place] = f"{name} -->\n\n{TABLES[name]()}\n\n<!-- end -->{after}"
    return "<!-- measured: ".join(parts)


def kept(study: str) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Model, task and table of every study of this name that is kept, models in order."""
    for folder, model in MODELS.items():
        for task in PARETO_TASKS:
            for path in (GALLERY / folder / "results" / study).glob(f"*/csv/{task}.csv"):
                yield model, task, pd.read_csv(path)


def share(value: float, error: float) -> str:
    """A share with half of its 95% interval."""
    return f"{value:.2f} ± {CONFIDENCE * error:.2f}"


# ---- circuits at spans ---------------------------------------------------------------------------


def smallest(frame: pd.DataFrame, kind: str) -> pd.Series | None:
    """The circuit of a kind that keeps the fewest pairs and does the task; None: none does."""
    doing = frame[(frame["circuits"] == kind) & (frame["normalised"] >= DOES_TASK)]
    return None if doing.empty else doing.loc[doing["n_pairs"].idxmin()]


def of_circuit(row: pd.Series | None, frame: pd.DataFrame) -> str:
    """Pairs, edges and faithfulness of a circuit."""
    if row is None:
        return f"none up to {frame['n_pairs'].max():,}"
    measured = share(row["normalised"], row["stderr_share"])
    return f"{row['n_pairs']:,} ({row['n_edges']:,}): {measured}"


def positions() -> str:
    """The smallest circuits that do the task, at spans and everywhere."""
    lines = [
        f"| model | task | edge-span pairs that count | at spans: pairs (edges) for {DOES_TASK} "
        f"| everywhere: pairs (edges) for {DOES_TASK} | pairs, everywhere / at spans |",
        "|---|---|---|---|---|---|",
    ]
    ratios, edges, more, less, sizes = [], [], 0, 0, 0
    for model, task, frame in kept("positions"):
        at_spans, everywhere = (smallest(frame, kind) for kind in ("pairs", "edges"))
        counting = round(frame["n_pairs"].iloc[-1] / frame["share_pairs"].iloc[-1])
        ratio, least = "", frame["share"].min()
        if at_spans is not None and everywhere is not None:
            ratio = f"{everywhere['n_pairs'] / at_spans['n_pairs']:.1f}"
            if at_spans["share"] == everywhere["share"] == least:
                ratio = "both at the smallest size"
            else:
                ratios.append(everywhere["n_pairs"] / at_spans["n_pairs"])
                edges.append(everywhere["n_edges"] / at_spans["n_edges"])
        cells = [of_circuit(row, frame) for row in (at_spans, everywhere)]
        lines.append(f"| {model} | {task} | {counting:,} | {' | '.join(cells)} | {ratio} |")
        kinds = [frame[frame["circuits"] == kind].set_index("share") for kind in ("pairs", "edges")]
        gap = kinds[0]["normalised"] - kinds[1]["normalised"]
        width = CONFIDENCE * (kinds[0]["stderr_share"] + kinds[1]["stderr_share"])
        more, less, sizes = more + sum(gap > width), less + sum(gap < -width), sizes + len(gap)
    said = (
        "Counted in edge-span pairs, the smallest circuit at spans that does the task is smaller "
        f"than the smallest everywhere in {sum(ratio > 1 for ratio in ratios)} of {len(ratios)} "
        "cases (a "
        f"model and a task), in the median case {pd.Series(ratios).median():.1f} times smaller; "
        f"counted in edges in {sum(ratio > 1 for ratio in edges)} of {len(edges)}. At {sizes} "
        f"sizes of equal share, circuits at spans are more faithful beyond both intervals at "
        f"{more}, and less at {less}."
    )
    return "\n".join([*lines, "", said])


# ---- parts of a circuit's nodes ------------------------------------------------------------------


def parts() -> str:
    """How many parts keep most of a circuit's faithfulness."""
    lines = [
        f"| model | task | circuit: edges, faithfulness | parts | kept for {OF_WHOLE} of it "
        "| faithfulness | as many by chance |",
        "|---|---|---|---|---|---|---|",
    ]
    needed: dict[tuple[bool, str], list[float]] = {}
    for model, task, frame in kept("parts"):
        for kind, rows in frame.groupby("parts", sort=False):
            whole = rows.loc[rows["kept"].idxmax()]
            enough = rows[rows["faithfulness"] >= OF_WHOLE * whole["faithfulness"]]
            fewest = enough.loc[enough["kept"].idxmin()]
            circuit = f"{whole['edges']:,}, {share(whole['faithfulness'], whole['standard_error'])}"
            measured = share(fewest["faithfulness"], fewest["standard_error"])
            kept_parts = f"{fewest['kept']:,} of {fewest['of']:,} ({fewest['share']:.1%})"
            row = (model, task, circuit, str(kind), kept_parts, measured)
            lines.append(f"| {' | '.join(row)} | {fewest['random']:.2f} |")
            does_task = bool(whole["faithfulness"] >= DOES_TASK)
            needed.setdefault((does_task, str(kind)), []).append(float(fewest["share"]))
    said = []
    for does_task, start in (
        (True, f"In circuits that do the task (faithfulness of at least {DOES_TASK})"),
        (False, "In circuits that do not"),
    ):
        shares = {kind: values for (does, kind), values in needed.items() if does == does_task}
        cells = [
            f"{pd.Series(values).median():.1%} of the {kind} ({min(values):.1%} to "
            f"{max(values):.1%}, {len(values)} circuits)"
            for kind, values in shares.items()
        ]
        said.append(f"{start}, the median share that is needed is {'; '.join(cells)}.")
    return "\n".join([*lines, "", " ".join(said)])


# ---- certificates and second circuits ------------------------------------------------------------


def evidence() -> str:
    """What is certified of each task's circuit, and the second circuit that was found."""
    tables, settings = [], []
    for folder, name in MODELS.items():
        if (path := GALLERY / folder / "evidence.csv").exists():
            tables.append(pd.read_csv(path).assign(model=name))
            origin = read_metadata(path)
            assert origin is not None, path
            settings.append(
                f"{name}: {origin['pairs']} pairs a task, {origin['subsets']:,} subsets, a search "
                f"of {origin['steps']:,} steps at the price {', '.join(map(str, origin['prices']))}"
            )
    lines = [
        "| model | task | circuit: edges, faithfulness | certified: edges, faithfulness | median "
        "radius | second circuit: faithfulness | IoU of edges (chance) | common edges alone "
        "| without the first | without both |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    frame = pd.concat(tables, ignore_index=True)
    for row in frame.to_dict("records"):
        measured = {
            name: "" if pd.isna(row[name]) else share(row[name], row[f"stderr_{name}"])
            for name in ("plain", "certified", "second", "common", "without first", "without both")
        }
        found = not pd.isna(row["second"])
        overlap = f"{row['edge_iou']:.2f} ({row['edge_chance']:.3f})" if found else ""
        cells = [
            row["model"], row["task"], f"{row['edges']:,}, {measured['plain']}",
            f"{row['edge_in']:,.0f}, {measured['certified']}", f"{row['edge_median_radius']:.0f}",
            measured["second"] or "none", overlap, measured["common"], measured["without first"],
            measured["without both"],
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    second = frame.dropna(subset="second")
    unlike = second[second["verdict"] == "not unique"]
    wide = CONFIDENCE * (frame["stderr_plain"] + frame["stderr_certified"])
    gap = frame["certified"] - frame["plain"]
    said = (
        f"Of {len(frame)} circuits, the certified edges alone are more faithful than the circuit "
        f"beyond both intervals in {sum(gap > wide)}, and less in {sum(gap < -wide)}. The search "
        f"found a second circuit of at most half the edges in common in {len(unlike)}, another "
        f"with more in common in {len(second) - len(unlike)}, and none in "
        f"{len(frame) - len(second)}."
    )
    return "\n".join([*lines, "", said, "", f"Settings. {'; '.join(settings)}."])


TABLES: dict[str, Callable[[], str]] = {
    "positions": positions,
    "parts": parts,
    "evidence": evidence,
}

if __name__ == "__main__":
    main()

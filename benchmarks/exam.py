"""The exam: every method on models whose circuit is known, and on the toy model's tasks.

    make exam

Writes docs/methods-compared.md, and its numbers as benchmarks/results/exam.csv with their origin
beside it. On known models a ranking is compared with the true edges and with exact values, on the
toy model its circuits are measured on pairs that it has not seen.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

import eap
from benchmarks.areas import split
from benchmarks.proof import as_markdown
from eap.analysis.compare import agreement
from eap.analysis.stability import Resamples
from eap.data.collections import known_circuits
from eap.data.collections.known_circuits import KnownCircuit
from eap.data.dataset import Dataset
from eap.methods import METHODS
from eap.runtime.atomic import write_atomically
from eap.runtime.code import command
from eap.statistics.measures import auroc
from eap.studies import save_csv, shell

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "methods-compared.md"
TABLE = ROOT / "benchmarks" / "results" / "exam.csv"

ENSEMBLE = ("EAP", "EAP-IG", "EAP-IG-activations", "clean-corrupted")
"""Methods of one unit, whose means are examined too."""

TASKS = ("ioi", "greater-than")
N_RESAMPLES = 100
LEARNING_STEPS, LEARNING_PAIRS = 500, 8
RECIPES = {
    "MAttr (metric)": eap.Recipe(LEARNING_STEPS, pairs=LEARNING_PAIRS),
    "MAttr (cmd)": eap.Recipe(LEARNING_STEPS, pairs=LEARNING_PAIRS, loss="cmd", k="log"),
}

INTRODUCTION = """# Methods compared

Written by `make exam`; all numbers, and where they come from, are in `benchmarks/results/exam.csv`.

- **AUROC** is the chance that a true edge scores above a false one (magnitudes, ties half); in
  brackets 95% of {n_resamples} bootstraps of the examples, where a method scores each example.
- **exact** is Kendall's rank correlation of the magnitudes with those of exact values.
- **CPR**, **CMD** and **accuracy** are areas over sizes of circuits ([measures](measures.md)), each
  with its 95% interval over examples. A CPR above 1 is overshoot: read CMD beside it.
- **seconds** were measured on a machine that did other work too: read them as orders of magnitude.

The trained models have their weights in superposition (`data/known-circuits/train.py`). The others
are by hand or compiled: an edge off the circuit is worth exactly 0, and methods hardly differ.
Rankings of the toy model's tasks are judged on pairs that they have not seen. Learned rankings
(MAttr) took {steps} steps of {pairs} pairs.
"""


def rankings(
    model: eap.Model, dataset: Dataset, resamples: bool
) -> Iterator[tuple[str, eap.Graph, Resamples | None, float]]:
    """Every method's ranking of the edges, its resamples (where there are any), and the seconds."""
    graphs: dict[str, eap.Graph] = {}
    spent: dict[str, float] = {}
    for name, method in METHODS.items():
        observer = None
        if resamples and method.scorer != "exact":
            observer = Resamples(model.config, dataset.examples, n_resamples=N_RESAMPLES)
        if name == "exact" and not resamples:
            continue  # the toy model's exact values take minutes
        begun = time.perf_counter()
        graph = eap.attribute(
            model, dataset, method=name, quiet=True,
            observers=[] if observer is None else [observer],
        )  # fmt: skip
        graphs[name], spent[name] = graph, time.perf_counter() - begun
        yield name, graph, observer, spent[name]
    parts, seconds = [graphs[name] for name in ENSEMBLE], sum(spent[name] for name in ENSEMBLE)
    yield "mean of four (raw)", eap.mean_of(parts, scaled=False), None, seconds
    yield "mean of four (scaled)", eap.mean_of(parts, scaled=True), None, seconds
    for name, recipe in RECIPES.items():
        begun = time.perf_counter()
        graph = eap.learn_ranking(model, dataset, recipe=recipe, quiet=True)
        yield name, graph, None, time.perf_counter() - begun


def known_rows(known: KnownCircuit) -> list[dict[str, str | float]]:
    """A row per method: AUROC with its interval, agreement with exact values, seconds."""
    exists, rows = known.circuit.edge_exists, list[dict[str, str | float]]()
    exact = eap.attribute(known.model, known.dataset, method="exact", quiet=True)
    for name, graph, resamples, seconds in rankings(known.model, known.dataset, resamples=True):
        low = high = float("nan")
        if resamples is not None:
            drawn = [auroc(s[exists].abs().numpy(), known.truth) for s in resamples.scores]
            low, high = np.quantile(drawn, [0.025, 0.975]).tolist()
        rows.append(
            {
                "model": known.name,
                "task": known.name,
                "method": name,
                "AUROC": auroc(graph.scores[exists].abs().numpy(), known.truth),
                "AUROC_low": low,
                "AUROC_high": high,
                "exact": agreement(graph, exact).kendall,
                "seconds": seconds,
            }
        )
    return rows


def toy_rows(model: eap.Model, task: str, pairs: int) -> list[dict[str, str | float]]:
    """A row per method: areas on other pairs than those that were scored."""
    data = eap.load_dataset(task, model.tokenizer, head=2 * pairs)
    scored, judged = split(data, pairs)
    rows: list[dict[str, str | float]] = []
    for name, graph, _, seconds in rankings(model, scored, resamples=False):
        found = eap.areas(model, graph, judged, quiet=True)
        row: dict[str, str | float] = {"model": model.short_name, "task": task, "method": name}
        for column, interval in (("CPR", found.cpr), ("CMD", found.cmd), ("acc", found.accuracy)):
            row |= {column: interval.value}
            row |= {f"{column}_low": interval.low, f"{column}_high": interval.high}
        rows.append(row | {"seconds": seconds})
        shell.say(f"{task} {name}: {found}")
    return rows


def with_intervals(rows: pd.DataFrame) -> pd.DataFrame:
    """The columns of a page's table: each interval in brackets behind its number."""
    shown = pd.DataFrame({"method": rows["method"]})
    for column in ("AUROC", "exact", "CPR", "CMD", "acc", "seconds"):
        if column not in rows or rows[column].isna().all():
            continue
        cells = [f"{value:.2f}" for value in rows[column]]
        if f"{column}_low" in rows:
            limits = zip(rows[f"{column}_low"], rows[f"{column}_high"], strict=True)
            cells = [
                cell if low != low else f"{cell} [{low:.2f}, {high:.2f}]"
                for cell, (low, high) in zip(cells, limits, strict=True)
            ]
        shown["accuracy" if column == "acc" else column] = cells
    return shown


def page(frame: pd.DataFrame) -> str:
    """The page: a summary, then a table per model and task."""
    introduction = INTRODUCTION.format(
        n_resamples=N_RESAMPLES, steps=LEARNING_STEPS, pairs=LEARNING_PAIRS
    )
    parts = [introduction]
    trained = frame[frame["model"].isin(known_circuits.TRAINED)]
    made = frame[frame["model"].isin(known_circuits.names())]
    columns = {
        "AUROC, trained": trained.groupby("method")["AUROC"].mean(),
        "AUROC, made": made.groupby("method")["AUROC"].mean(),
    }
    toy = frame[frame["CMD"].notna()] if "CMD" in frame else frame.iloc[:0]
    if len(toy):
        columns |= {"CMD, toy": toy.groupby("method")["CMD"].mean()}
        columns |= {"accuracy, toy": toy.groupby("method")["acc"].mean()}
    together = pd.DataFrame(columns).sort_values("AUROC, trained", ascending=False)
    parts += ["## All models, means\n", as_markdown(together.reset_index())]
    for (model, task), rows in frame.groupby(["model", "task"], sort=False):
        title = task if model == task else f"{task}, {model}"
        parts += [f"## {title}\n", as_markdown(with_intervals(rows))]
    return "\n".join(parts)


def main() -> None:
    """Examine all methods, and write the page and its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--tasks", nargs="*", default=list(TASKS), help="tasks of the toy model")
    add(
        "--pairs",
        type=shell.positive,
        default=30,
        help="number of pairs that are scored; as many others are judged",
    )
    add("--page", type=Path, default=PAGE)
    add("--table", type=Path, default=TABLE)
    args = parser.parse_args()
    rows = []
    for name in (*known_circuits.TRAINED, *known_circuits.names()):
        rows += known_rows(known_circuits.load(name))
        shell.say(f"{name} is examined")
    model = eap.load_model("toy", device="cpu")
    for task in args.tasks:
        rows += toy_rows(model, task, args.pairs)
    frame = pd.DataFrame(rows)
    origin = {"command": command(), "pairs": args.pairs, "version": eap.__version__}
    save_csv(frame, args.table, origin)
    with write_atomically(args.page) as temporary:
        temporary.write_text(page(frame), encoding="utf8")
    shell.say(f"wrote {shell.shown(args.page)}")


if __name__ == "__main__":
    shell.run(main)

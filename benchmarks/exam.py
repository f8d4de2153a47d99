"""The exam: every method on models whose circuit is known, and on the toy model's tasks.

    make exam
    python -m benchmarks.exam --page_only       the page again, from the table

Writes docs/methods-compared.md with its picture, and the numbers as benchmarks/results/exam.csv
with their origin beside them. On known models a ranking is compared with the true edges and with
exact values, on the toy model its circuits are measured on pairs that it has not seen.
"""

import argparse
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
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
PICTURE = ROOT / "docs" / "pictures" / "methods-compared.png"
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

NODES = """\
- **For nodes**, take exact values (`eap.patch_nodes`): one run per head and MLP costs little.
- **One ranking for all sizes**, if you have time to train: MAttr. Check CMD on pairs that it has
  not seen.
- **To compare with published work**, take EAP-IG with 5 steps: the method of the paper, and the
  default here. The differences above are of a small model; measure on yours with `eap.areas`.
- **CPR alone recommends nothing**: a circuit that overshoots has a high CPR.
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


def classes() -> dict[str, list[str]]:
    """Methods that cost alike, by what they cost: among them the page recommends one."""
    estimates = [method for method in METHODS.values() if method.scorer != "exact"]
    one = [method.name for method in estimates if re.match(r"1\b", method.passes)]
    several = [method.name for method in estimates if method.name not in one]
    return {
        "one backward pass": one,
        "a pass for every step or layer": several,
        "a learned ranking": list(RECIPES),
    }


def best_of(toy: pd.DataFrame, methods: Sequence[str]) -> pd.Series:
    """Mean CMD of methods over the toy model's tasks, the lowest first."""
    return toy[toy["method"].isin(methods)].groupby("method")["CMD"].mean().sort_values()


def on_toy(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows with areas: tasks of the toy model."""
    return frame[frame["CMD"].notna()] if "CMD" in frame else frame.iloc[:0]


def recommendation(frame: pd.DataFrame) -> list[str]:
    """Table of the method with the lowest mean CMD in each class of cost, and how sure that is."""
    toy = on_toy(frame)
    trained = frame[frame["model"].isin(known_circuits.TRAINED)].groupby("method")["AUROC"].mean()
    tasks = list(toy["task"].unique())
    lines = [
        "## Which method to take",
        "",
        f"By the lowest CMD, mean of {len(tasks)} tasks of the toy model ({', '.join(tasks)}). A "
        "method is *better* or *worse* than another on a task if their 95% intervals do not "
        "overlap.",
        "",
        "| cost | lowest CMD | CMD | AUROC, trained | tasks, beside the next "
        "| tasks, beside EAP-IG |",
        "|---|---|---|---|---|---|",
    ]
    for name, methods in classes().items():
        means = best_of(toy, methods)
        best, following = means.index[:2]
        beside = f"{following}: {against(toy, best, following)}"
        paper = "-" if best == "EAP-IG" else against(toy, best, "EAP-IG")
        row = (name, best, f"{means[best]:.3f}", f"{trained[best]:.3f}", beside, paper)
        lines.append(f"| {' | '.join(row)} |")
    return [*lines, "", NODES]


def against(toy: pd.DataFrame, method: str, other: str) -> str:
    """On how many tasks a method's CMD is lower, and higher, beyond both intervals."""
    low, high = (toy.pivot_table(end, "method", "task") for end in ("CMD_low", "CMD_high"))
    better = np.count_nonzero(high.loc[method] < low.loc[other])
    worse = np.count_nonzero(low.loc[method] > high.loc[other])
    return f"{better} better, {worse} worse"


def draw(frame: pd.DataFrame, path: Path) -> None:
    """Quality against cost: mean CMD and seconds of every method on the toy model's tasks."""
    means = on_toy(frame).groupby("method")[["CMD", "seconds"]].mean()
    cost = means["seconds"] / means["seconds"]["EAP"]
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    shown = means["CMD"] < 3 * means["CMD"].median()  # a far worse method is named in the title
    axes.scatter(cost[shown], means["CMD"][shown], s=30)
    above = False  # names of neighbours go above and below in turn
    for method, value in means["CMD"][shown].sort_values().items():
        shift = (5, 4 if (above := not above) else -11)
        place = (cost[method], value)
        axes.annotate(str(method), place, shift, textcoords="offset points", fontsize=8)
    missing = [f"{method} ({means['CMD'][method]:.2f})" for method in means.index[~shown]]
    axes.set(
        xscale="log",
        xlabel="time, as a multiple of EAP's (logarithmic axis)",
        ylabel="mean CMD (lower is better)",
        title=f"Not shown: {', '.join(missing)}" if missing else "",
    )
    axes.margins(x=0.18)
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    plt.close(figure)


def page(frame: pd.DataFrame) -> str:
    """The page: a recommendation, a summary, then a table per model and task."""
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
    toy = on_toy(frame)
    if len(toy):
        parts += [f"![Quality against cost](pictures/{PICTURE.name})\n", *recommendation(frame)]
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
    add("--page_only", action="store_true", help="page made again from the table")
    args = parser.parse_args()
    if not args.page_only:
        examine(args.tasks, args.pairs, args.table)
    frame = pd.read_csv(args.table)
    if len(on_toy(frame)):
        draw(frame, args.page.parent / "pictures" / PICTURE.name)
    with write_atomically(args.page) as temporary:
        temporary.write_text(page(frame), encoding="utf8")
    shell.say(f"wrote {shell.shown(args.page)}")


def examine(tasks: list[str], pairs: int, table: Path) -> None:
    """Score by all methods, and write the table."""
    rows = []
    for name in (*known_circuits.TRAINED, *known_circuits.names()):
        rows += known_rows(known_circuits.load(name))
        shell.say(f"{name} is examined")
    model = eap.load_model("toy", device="cpu")
    for task in tasks:
        rows += toy_rows(model, task, pairs)
    origin = {"command": command(), "pairs": pairs, "version": eap.__version__}
    save_csv(pd.DataFrame(rows), table, origin)


if __name__ == "__main__":
    shell.run(main)

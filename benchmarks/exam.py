"""Comparison of all methods on models with known circuits, on the toy model and on real models.

    make exam
    python -m benchmarks.exam --page_only       only rewrites the page, from the tables

Writes docs/methods-compared.md with its picture, and the numbers with their provenance to
benchmarks/results/exam.csv. On models with known circuits, a ranking is compared with the true
edges and with exact values. On the toy model, the ranking's circuits are measured on pairs that
were not used for scoring. Rows of real models come from results/gallery, which
`benchmarks/real_model.py` writes.
"""

import argparse
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

import eap
from benchmarks.areas import (
    ABOUT_AREAS,
    OVERSHOOT,
    STABLE_SIZE,
    Rankings,
    Row,
    judged_rows,
    learned,
    overshooting,
    with_intervals,
)
from benchmarks.proof import as_markdown
from eap.analysis.compare import agreement
from eap.data.collections import known_circuits
from eap.data.collections.known_circuits import KnownCircuit
from eap.data.tasks import PARETO_TASKS, TASKS
from eap.methods import METHODS
from eap.runtime.atomic import write_atomically
from eap.runtime.code import command
from eap.statistics.measures import auroc
from eap.studies import save_csv, shell
from eap.studies.provenance import read_metadata

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "methods-compared.md"
PICTURE = ROOT / "docs" / "pictures" / "methods-compared.png"
TABLE = ROOT / "benchmarks" / "results" / "exam.csv"
GALLERY = ROOT / "results" / "gallery"

N_RESAMPLES, N_STABILITY = 100, 30
LEARNING_STEPS, LEARNING_PAIRS = 500, 8
RECIPES = learned(LEARNING_STEPS, LEARNING_PAIRS)

INTRODUCTION = """# Methods compared

Written by `make exam`. All numbers and their provenance are in `benchmarks/results/exam.csv`;
those of real models are in `results/gallery`.

**AUROC** is the probability that a true edge has a larger magnitude than a false edge (ties
count half). Brackets hold 95% of {n_resamples} bootstraps of the examples, for methods that
score each example. **Exact** is Kendall's rank correlation of the magnitudes with those of
exact values. {about_areas} **Stability** is the mean Jaccard similarity of the {stable_size}
edges with the largest magnitudes in two of {n_stability} bootstrap resamples of the examples,
for methods that score each example. **Seconds** were measured on a machine that did other work,
too: read them as orders of magnitude.

The weights of the trained models are in superposition (`data/known-circuits/train.py`). The
other models of known circuit are written by hand or compiled: an edge off the circuit is worth
exactly 0, and methods hardly differ. Rankings of the toy model and of real models are judged on
pairs that were not used to make them. Learned rankings (MAttr) took {steps} steps of {pairs}
pairs; the pages of real models state their own settings.
"""

ADVICE = """\
- **One ranking for all sizes**, if there is time for training: MAttr. Check its CMD on pairs
  that were not used for training.
- **For comparison with published work**: EAP-IG with 5 steps, the paper's method and the
  default here. The differences above are those of a small model; measure yours with
  `eap.areas`.
- **CPR alone recommends no method**: a circuit that overshoots has a high CPR. Number of tasks
  with a CPR above {overshoot} with 95% confidence, by method: {overshooting}.
"""


def known_rows(known: KnownCircuit) -> list[Row]:
    """One row per method: AUROC with its interval, agreement with exact values, seconds."""
    exists, rows = known.circuit.edge_exists, list[Row]()
    exact = eap.attribute(known.model, known.dataset, method="exact", quiet=True)
    rankings = Rankings(recipes=RECIPES, n_resamples=N_RESAMPLES)
    for ranking in rankings.of(known.model, known.dataset):
        low = high = float("nan")
        if ranking.resamples is not None:
            scores = ranking.resamples.scores
            drawn = [auroc(s[exists].abs().numpy(), known.truth) for s in scores]
            low, high = np.quantile(drawn, [0.025, 0.975]).tolist()
        rows.append(
            {
                "model": known.name,
                "task": known.name,
                "level": "edge",
                "method": ranking.method,
                "auroc": auroc(ranking.graph.scores[exists].abs().numpy(), known.truth),
                "auroc_low": low,
                "auroc_high": high,
                "exact": agreement(ranking.graph, exact).kendall,
                "seconds": ranking.seconds,
            }
        )
    return rows


def real_rows() -> pd.DataFrame:
    """Areas of real models, from the gallery."""
    return pd.concat([pd.read_csv(path) for path in sorted(GALLERY.glob("*/areas.csv"))])


def real_settings() -> str:
    """Numbers of pairs behind the rows of real models whose tables record them."""
    lines = []
    for path in sorted(GALLERY.glob("*/areas.csv")):
        if (origin := read_metadata(path)) is not None:
            model = pd.read_csv(path)["model"][0]
            lines.append(f"{model}: {origin['pairs']} pairs scored, {origin['judged']} judged.\n")
    return "\n".join(["", *lines])


def classes() -> dict[str, list[str]]:
    """Methods by class of cost; the page recommends one method of each class."""
    estimates = [method for method in METHODS.values() if method.scorer != "exact"]
    one = [method.name for method in estimates if re.match(r"1\b", method.passes)]
    several = [method.name for method in estimates if method.name not in one]
    return {
        "one backward pass": one,
        "a pass for every step or layer": several,
        "a learned ranking": list(RECIPES),
    }


def best_of(rows: pd.DataFrame, methods: Sequence[str]) -> pd.Series:
    """Mean CMD of methods over tasks, in ascending order."""
    return rows[rows["method"].isin(methods)].groupby("method")["cmd"].mean().sort_values()


def on_toy(frame: pd.DataFrame, level: str = "edge") -> pd.DataFrame:
    """Rows with areas of one level, for the tasks of the toy model."""
    if "cmd" not in frame:
        return frame.iloc[:0]
    return frame[frame["cmd"].notna() & (frame["model"] == "toy") & (frame["level"] == level)]


def recommendation(frame: pd.DataFrame, level: str) -> list[str]:
    """Table of the method with the lowest mean CMD per class of cost, with its uncertainty."""
    toy, at_edges = on_toy(frame, level), "" if level == "node" else "edges"
    trained = frame[frame["model"].isin(known_circuits.TRAINED)].groupby("method")["auroc"].mean()
    tasks = list(toy["task"].unique())
    lines = [
        f"For {level}s, by the lowest CMD, mean of {len(tasks)} tasks of the toy model "
        f"({', '.join(tasks)}). A method is *better* or *worse* than another on a task if their "
        "95% intervals do not overlap.",
        "",
        f"| cost | lowest CMD | CMD |{at_edges and ' AUROC, trained |'} tasks, beside the next "
        "| tasks, beside EAP-IG |",
        f"|---|---|---|{at_edges and '---|'}---|---|",
    ]
    for name, methods in classes().items():
        means = best_of(toy, methods)
        best, following = means.index[:2]
        beside = f"{following}: {against(toy, best, following)}"
        paper = "-" if best == "EAP-IG" else against(toy, best, "EAP-IG")
        known = [f"{trained[best]:.3f}"] if at_edges else []
        row = (name, best, f"{means[best]:.3f}", *known, beside, paper)
        lines.append(f"| {' | '.join(row)} |")
    return [*lines, ""]


def exact_nodes(frame: pd.DataFrame) -> str:
    """Comparison of exact values of nodes with the best estimate."""
    toy = on_toy(frame, "node")
    estimates = best_of(toy, [name for name in METHODS if name != "exact"])
    exact = best_of(toy, ["exact"]).iloc[0]
    return (
        f"- **Exact values of nodes** (`eap.patch_nodes`) need no estimate: one run per head and "
        f"MLP. Their mean CMD is {exact:.3f}; {estimates.index[0]}'s, the lowest of the estimates, "
        f"is {estimates.iloc[0]:.3f}: the effect of a node on its own is not all that a circuit "
        "needs from the node."
    )


def on_real(real: pd.DataFrame) -> str:
    """The method with the lowest CMD on every real model, beside EAP-IG."""
    said = []
    for (model, task), rows in real.groupby(["model", "task"], sort=False):
        by_method = rows.set_index("method")
        cells = [
            f"{name} {row['cmd']:.3f} [{row['cmd_low']:.3f}, {row['cmd_high']:.3f}]"
            for name, row in by_method.loc[[by_method["cmd"].idxmin(), "EAP-IG"]].iterrows()
        ]
        said.append(f"{model} ({task}): {' and '.join(cells)}")
    return f"- **On real models**, the lowest CMD of edges, and that of EAP-IG: {'; '.join(said)}."


def against(toy: pd.DataFrame, method: str, other: str) -> str:
    """Number of tasks on which a method's CMD is lower, and higher, outside both intervals."""
    low, high = (toy.pivot_table(end, "method", "task") for end in ("cmd_low", "cmd_high"))
    better = np.count_nonzero(high.loc[method] < low.loc[other])
    worse = np.count_nonzero(low.loc[method] > high.loc[other])
    return f"{better} better, {worse} worse"


def draw(frame: pd.DataFrame, path: Path) -> None:
    """Draw quality over cost: mean CMD and seconds of every method on the toy model's tasks."""
    figure, panels = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    for axes, level in zip(panels, ("edge", "node"), strict=True):
        means = on_toy(frame, level).groupby("method")[["cmd", "seconds"]].mean()
        cost = means["seconds"] / means["seconds"]["EAP"]
        shown = means["cmd"] < 3 * means["cmd"].median()  # a far worse method is named in the title
        axes.scatter(cost[shown], means["cmd"][shown], s=30)
        axes.set_xscale("log")
        axes.margins(x=0.25)
        figure.canvas.draw()
        for method, value in means["cmd"][shown].sort_values().items():
            write_beside(axes, str(method), (cost[method], value))
        missing = [f"{method} ({means['cmd'][method]:.2f})" for method in means.index[~shown]]
        axes.set(
            xlabel="time, as a multiple of EAP's (logarithmic axis)",
            ylabel="mean CMD (lower is better)",
            title=f"{level}s" + (f"; not shown: {', '.join(missing)}" if missing else ""),
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    plt.close(figure)


def write_beside(axes: Axes, text: str, place: tuple[float, float]) -> None:
    """Write a name next to its point, without covering other names."""
    written = [other.get_window_extent() for other in axes.texts]
    for (x, y), side in (
        ((5, 4), "left"),
        ((5, -11), "left"),
        ((-5, 4), "right"),
        ((-5, -11), "right"),
    ):
        label = axes.annotate(
            text, place, (x, y), textcoords="offset points", fontsize=8, horizontalalignment=side
        )
        if not any(label.get_window_extent().overlaps(other) for other in written):
            return
        label.remove()
    axes.annotate(text, place, (5, 4), textcoords="offset points", fontsize=8)


def page(frame: pd.DataFrame, real: pd.DataFrame) -> str:
    """The page: a recommendation, a summary, and one table per model and task."""
    introduction = INTRODUCTION.format(
        n_resamples=N_RESAMPLES,
        steps=LEARNING_STEPS,
        pairs=LEARNING_PAIRS,
        about_areas=ABOUT_AREAS,
        stable_size=STABLE_SIZE,
        n_stability=N_STABILITY,
    )
    parts = [introduction]
    trained = frame[frame["model"].isin(known_circuits.TRAINED)]
    made = frame[frame["model"].isin(known_circuits.names())]
    columns = {
        "AUROC, trained": trained.groupby("method")["auroc"].mean(),
        "AUROC, made": made.groupby("method")["auroc"].mean(),
    }
    if len(on_toy(frame)):
        parts += [
            f"![Quality against cost](pictures/{PICTURE.name})\n",
            "## Which method to use\n",
        ]
        parts += [*recommendation(frame, "edge"), *recommendation(frame, "node")]
        above = overshooting(pd.concat([on_toy(frame), on_toy(frame, "node")]))
        parts += [
            exact_nodes(frame),
            on_real(real),
            ADVICE.format(overshoot=OVERSHOOT, overshooting=above),
        ]
        for level in ("edge", "node"):
            columns[f"CMD, toy {level}s"] = on_toy(frame, level).groupby("method")["cmd"].mean()
        for measure in ("accuracy", "stability"):
            means = on_toy(frame).groupby("method")[measure].mean()
            columns[f"{measure}, toy edges"] = means
    for model, rows in real.groupby("model", sort=False):
        columns[f"CMD, {model}"] = rows.groupby("method")["cmd"].mean()
    together = pd.DataFrame(columns).sort_values("AUROC, trained", ascending=False)
    parts += ["## All models, means\n", as_markdown(together.rename_axis("method").reset_index())]
    parts.append(real_settings())
    every = pd.concat([frame, real])
    for (name, task, grain), rows in every.groupby(["model", "task", "level"], sort=False):
        title = str(task) if name == task else f"{task}, {grain}s, {name}"
        parts += [f"## {title}\n", as_markdown(with_intervals(rows.reset_index()))]
    return "\n".join(parts)


def main() -> None:
    """Evaluate all methods, and write the page and its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--tasks", nargs="*", default=list(PARETO_TASKS), help="tasks of the toy model")
    add("--pairs", type=shell.positive, default=50, help="number of pairs for scoring")
    add("--judged", type=shell.positive, default=100, help="number of other pairs for areas")
    add("--page", type=Path, default=PAGE)
    add("--table", type=Path, default=TABLE)
    add("--page_only", action="store_true", help="only rewrite the page, from the table")
    args = parser.parse_args()
    if not args.page_only:
        examine(args.tasks, args.pairs, args.judged, args.table)
    frame = pd.read_csv(args.table)
    if len(on_toy(frame)):
        draw(frame, args.page.parent / "pictures" / PICTURE.name)
    with write_atomically(args.page) as temporary:
        temporary.write_text(page(frame, real_rows()), encoding="utf8")
    shell.say(f"wrote {shell.shown(args.page)}")


def examine(tasks: list[str], pairs: int, judged: int, table: Path) -> None:
    """Score with all methods, and write the table."""
    warnings.filterwarnings("ignore")
    rows = []
    for name in (*known_circuits.TRAINED, *known_circuits.names()):
        rows += known_rows(known_circuits.load(name))
        shell.say(f"{name} is examined")
    model = eap.load_model("toy", device="cpu")
    for task in tasks:
        for level in ("edge", "node"):
            resamples = N_STABILITY if level == "edge" else 0
            rankings = Rankings(
                recipes=RECIPES, metric=TASKS[task].metric, level=level, n_resamples=resamples
            )
            rows += judged_rows(model, task, rankings, pairs, judged)
    origin = {"command": command(), "pairs": pairs, "judged": judged, "version": eap.__version__}
    save_csv(pd.DataFrame(rows), table, origin)


if __name__ == "__main__":
    shell.run(main)

"""Areas of every method's rankings of a model's edges and nodes, as rows for two pages.

    python benchmarks/areas.py --model path/to/model --csv areas.csv

Every method scores the edges (and the nodes, if the method can) on the first pairs of each task.
Its areas (CPR, CMD and accuracy; see docs/measures.md) are measured on other pairs. Learned
rankings (MAttr) are trained on the same first pairs. `benchmarks/exam.py` and
`benchmarks/real_model.py` show the rows.
"""

import argparse
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
import torch

import eap
from eap.analysis.stability import Resamples, mean_jaccard
from eap.data.dataset import Dataset
from eap.data.tasks import PARETO_TASKS, TASKS
from eap.methods import METHODS
from eap.runtime.code import command
from eap.runtime.errors import UserError
from eap.studies import save_csv, shell

ENSEMBLE = ("EAP", "EAP-IG", "EAP-IG-activations", "clean-corrupted")
"""Methods with scores in the same unit, whose means are also evaluated."""

OVERSHOOT = 1.02
"""A ranking overshoots if the whole interval of its CPR is above this value."""

STABLE_SIZE = 200
"""Number of edges of the circuits whose stability is measured."""

Row = dict[str, str | float]


@dataclass(frozen=True)
class Ranking:
    """Ranking of one method: its graph, the time in seconds, and resamples if requested."""

    method: str
    graph: eap.Graph
    seconds: float
    resamples: Resamples | None = None


@dataclass(frozen=True)
class Rankings:
    """Selection of rankings to evaluate.

    Attributes:
        methods: names of methods.
        recipes: recipes of learned rankings, by name.
        metric: metric of the methods that use one.
        level: 'edge' or 'node'.
        n_resamples: number of bootstrap resamples for methods that score each example; 0: none.
    """

    methods: Sequence[str] = tuple(METHODS)
    recipes: Mapping[str, eap.Recipe] = field(default_factory=dict)
    metric: str = "logit_diff"
    level: str = "edge"
    n_resamples: int = 0

    def of(self, model: eap.Model, dataset: Dataset) -> Iterator[Ranking]:
        """Yield every ranking, with means of several methods and learned rankings last."""
        made: dict[str, Ranking] = {}
        for name in self.methods:
            try:
                made[name] = self._scored(model, dataset, name)
            except UserError:  # the method has no scores of this level, or no such gradient
                continue
            yield made[name]
        if set(ENSEMBLE) <= set(made):
            parts = [made[name] for name in ENSEMBLE]
            for word, scaled in (("raw", False), ("scaled", True)):
                mean = eap.mean_of([part.graph for part in parts], scaled=scaled)
                seconds = sum(part.seconds for part in parts)
                yield Ranking(f"mean of four ({word})", mean, seconds)
        for name, recipe in self.recipes.items():
            begun = time.perf_counter()
            graph = eap.learn_ranking(
                model, dataset, metric=self.metric, level=self.level, recipe=recipe, quiet=True
            )
            yield Ranking(name, graph, time.perf_counter() - begun)

    def _scored(self, model: eap.Model, dataset: Dataset, name: str) -> Ranking:
        method, resamples = METHODS[name], None
        if self.n_resamples and method.scorer != "exact":
            resamples = Resamples(model.config, dataset.examples, n_resamples=self.n_resamples)
        begun = time.perf_counter()
        graph = eap.attribute(
            model, dataset, method=name, metric=self.metric if method.uses_metric else None,
            level=self.level, observers=[] if resamples is None else [resamples], quiet=True,
        )  # fmt: skip
        return Ranking(name, graph, time.perf_counter() - begun, resamples)


def learned(steps: int, pairs: int) -> dict[str, eap.Recipe]:
    """Recipes of learned rankings with two losses: the metric and the area."""
    return {
        "MAttr (metric)": eap.Recipe(steps, pairs=pairs),
        "MAttr (cmd)": eap.Recipe(steps, pairs=pairs, loss="cmd", k="log"),
    }


def judged_rows(
    model: eap.Model, task: str, rankings: Rankings, pairs: int, judged: int
) -> list[Row]:
    """One row per ranking of a task, with areas on pairs that were not used for scoring."""
    data = eap.load_dataset(task, model.tokenizer, head=pairs + judged)
    others = Dataset(data.task, data.examples[pairs:], data.prepend_bos, data.provenance)
    rows: list[Row] = []
    for ranking in rankings.of(model, data.head(pairs)):
        found = eap.areas(
            model, ranking.graph, others,
            metric=rankings.metric, level=rankings.level, quiet=True,
        )  # fmt: skip
        row: Row = {"model": model.short_name, "task": task, "level": rankings.level}
        row["method"] = ranking.method
        if ranking.resamples is not None:
            row["stability"] = stability_of(ranking.graph, ranking.resamples)
        for column in ("cpr", "cmd", "accuracy"):
            area = getattr(found, column)
            row |= {column: area.value, f"{column}_low": area.low, f"{column}_high": area.high}
        row |= {"edges_left": " ".join(map(str, found.helpful.n_edges)), "seconds": ranking.seconds}
        rows.append(row)
        shell.say(f"{task}, {rankings.level}s, {ranking.method}: {found}")
    return rows


def stability_of(graph: eap.Graph, resamples: Resamples) -> float:
    """Mean Jaccard similarity of the best edges of two bootstrap resamples of the examples."""
    exists = graph.edge_exists
    best = [replace(graph, scores=scores).top_n(STABLE_SIZE) for scores in resamples.each()]
    return mean_jaccard(torch.stack([circuit.in_graph[exists] for circuit in best]))[0]


# ---- as a page has them --------------------------------------------------------------------------

COLUMNS = {"auroc": "AUROC", "exact": "exact", "cpr": "CPR", "cmd": "CMD", "accuracy": "accuracy",
           "stability": "stability"}  # fmt: skip
"""Columns with intervals, by their headings in the tables of the pages."""

ABOUT_AREAS = """\
**CPR** is the area under the curve of normalised faithfulness, for circuits of the most helpful
edges (or nodes): .999 for a ranking whose every circuit is the whole model. Above 1, circuits
overshoot, which is no merit. **CMD** is the area between this curve and 1, for circuits of the
edges with the largest magnitudes: 0 is best. **Accuracy** is the mean fraction of pairs that
are answered correctly, over the logarithm of the circuit's size. Brackets hold 95% intervals
over pairs, and the best value of a column is bold (for CPR, the value nearest to .999). Edges
are selected by top-n. Only the edges of a method without a metric (IFR) are selected greedily
from the logits, because its best edges are not connected."""


def best_in(column: str, values: pd.Series) -> object:
    """Label of the row with the best value in a column of areas."""
    if column == "cpr":
        return (values - 0.999).abs().idxmin()
    return values.idxmin() if column == "cmd" else values.idxmax()


def with_intervals(rows: pd.DataFrame) -> pd.DataFrame:
    """Columns of a page's table, with intervals in brackets and the best value in bold."""
    shown = pd.DataFrame({"method": rows["method"]})
    for column, heading in COLUMNS.items():
        if column not in rows or rows[column].isna().all():
            continue
        best = None if column in ("auroc", "exact", "stability") else best_in(column, rows[column])
        cells = []
        for label, row in rows.iterrows():
            cell = "" if row[column] != row[column] else f"{row[column]:.3f}"
            low, high = (row.get(f"{column}_{end}", float("nan")) for end in ("low", "high"))
            if low == low:
                cell += f" [{low:.3f}, {high:.3f}]"
            cells.append(f"**{cell}**" if label == best else cell)
        shown[heading] = cells
    shown["seconds"] = [f"{value:.{1 if value >= 1 else 2}f}" for value in rows["seconds"]]
    return shown


def overshooting(rows: pd.DataFrame) -> str:
    """Methods whose circuits overshoot, each with the number of tasks on which they do."""
    above = rows[rows["cpr_low"] > OVERSHOOT]["method"].value_counts()
    return ", ".join(f"{name} {n}" for name, n in above.items()) or "none"


def main() -> None:
    """Score, measure the areas, and write the table."""
    parser = shell.OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="toy", help="name, directory or GGUF file of the model")
    add("--tasks", nargs="+", default=list(PARETO_TASKS), help="tasks to score")
    add("--pairs", type=shell.positive, default=100, help="number of pairs for scoring")
    add("--judged", type=shell.positive, default=200, help="number of other pairs for areas")
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="scoring methods")
    add("--levels", nargs="+", choices=("edge", "node"), default=["edge", "node"], help="levels")
    add("--learning_steps", type=int, default=0, help="optimizer steps of MAttr; 0: no MAttr")
    add("--learning_pairs", type=shell.positive, default=1, help="pairs per optimizer step")
    add("--csv", type=Path, required=True, help="CSV file to write")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    model = eap.load_model(args.model)
    recipes = learned(args.learning_steps, args.learning_pairs) if args.learning_steps else {}
    rows = []
    for task in args.tasks:
        for level in args.levels:
            rankings = Rankings(args.methods, recipes, TASKS[task].metric, level)
            rows += judged_rows(model, task, rankings, args.pairs, args.judged)
    origin = {"command": command(), "pairs": args.pairs, "judged": args.judged}
    save_csv(pd.DataFrame(rows), args.csv, {**origin, "version": eap.__version__})


if __name__ == "__main__":
    shell.run(main)

"""The paper's claims, tested on a model's results.

Each claim is about a quantity, which has a value per task or one for all tasks, an interval, and a
bound. The claim *holds* if the whole interval lies above the bound, *does not hold* if the whole
interval lies below, and is *inconclusive* otherwise. The claims are those of Hanna, Pezzelle and
Belinkov (2024).

Intervals are over tasks. A task and its variants (`Task.variant_of`) are not independent and count
as one task: their mean is used, or the jackknife leaves them out together.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from eap.data.tasks import base_task
from eap.figures.cross_task import explained_variance
from eap.figures.tables import Table
from eap.statistics.intervals import Interval, interval_of_tasks, pseudo_values
from eap.statistics.measures import normalised

ENOUGH = 0.02
"""Largest loss of faithfulness at which fewer integration points still count as enough."""
DEPTHS = (5, 10, 25, 50, 100, 200, 400)
"""Numbers of best edges whose overlap with the best edges by exact values is tested."""
FEWEST_TASKS = 6
"""Smallest number of independent tasks for claims about pairs of tasks."""


@dataclass(frozen=True)
class Claim:
    """A claim with the measured quantity that decides it.

    Attributes:
        text: statement of the claim.
        quantity: name of the measured quantity.
        value: value of the quantity.
        low, high: 95% interval over tasks; NaN (no interval) for a single task.
        above: bound; the claim holds if the interval lies above it.
        n_tasks: number of independent tasks in the interval.
    """

    text: str
    quantity: str
    value: float
    low: float
    high: float
    above: float
    n_tasks: int

    @property
    def verdict(self) -> str:
        """*holds*, *does not hold* or *inconclusive*."""
        if self.low > self.above:
            return "holds"
        return "does not hold" if self.high < self.above else "inconclusive"

    def __str__(self) -> str:
        tasks = "1 task" if self.n_tasks == 1 else f"{self.n_tasks} tasks"
        interval = Interval(self.value, self.low, self.high)
        return f"{self.verdict:15} {self.text}: {self.quantity} {interval} over {tasks}"


def over_tasks(
    text: str, quantity: str, values: Mapping[Any, float], *, above: float = 0.0
) -> Claim:
    """A claim about the mean over tasks, with a Student's t interval over tasks.

    Args:
        text, quantity, above: attributes of `Claim`.
        values: value per task; the values of a task and its variants are averaged first.
    """
    means = pd.Series(values, dtype=float).groupby(lambda task: base_task(str(task))).mean()
    interval = interval_of_tasks(means)
    return Claim(text, quantity, interval.value, interval.low, interval.high, above, len(means))


def does_task(table: Table) -> bool:
    """Whether the model does a table's task, so that normalised faithfulness is meaningful."""
    clean, corrupted = table.baselines
    return bool(clean > corrupted or (table.metric in ("kl", "js") and clean != corrupted))


def closeness(table: Table, column: str) -> float:
    """1 minus the mean distance of normalised faithfulness from 1, over the table's sizes."""
    faithfulness = normalised(table.frame[column], *table.baselines)
    return float(1 - (1 - faithfulness).abs().mean())


def about_curves(curves: Mapping[str, Table]) -> list[Claim]:
    """Claims of Figure 3: EAP-IG against EAP, and KL against the task's metric as the loss."""
    claims = []
    for text, better, worse in (
        ("EAP-IG's circuits are more faithful than EAP's of equal size", "EAP-IG", "EAP"),
        ("KL as the loss of EAP-IG makes them more faithful", "EAP-IG-KL", "EAP-IG"),
    ):
        differences = {
            task: closeness(table, f"loss_{better}") - closeness(table, f"loss_{worse}")
            for task, table in curves.items()
            if {f"loss_{better}", f"loss_{worse}"} <= set(table.frame)
        }
        if differences:
            quantity = f"closeness of faithfulness to 1, {better} minus {worse}"
            claims.append(over_tasks(text, quantity, differences))
    return claims


def about_agreement(
    correlations: Mapping[str, float], tasks: list[str], overlaps: Table
) -> list[Claim]:
    """Claims of Figures 4 and 8: EAP-IG's scores agree with exact values better than EAP's do.

    Args:
        correlations: correlations from compare_real.py, by `<task>_{vanilla,ig}[_kendall]`.
        tasks: tasks with correlations.
        overlaps: average overlap of the top n edges, by the same names.
    """
    if not tasks:
        return []
    text = "EAP-IG agrees better with exact values than EAP"
    claims = [
        over_tasks(
            text,
            f"{name} of absolute scores, EAP-IG minus EAP",
            {task: correlations[f"{task}_ig{suffix}"] - correlations[f"{task}_vanilla{suffix}"]
             for task in tasks},
        )
        for name, suffix in (("Pearson's r", ""), ("Kendall's tau", "_kendall"))
    ]  # fmt: skip
    scored = [task for task in tasks if {f"{task}_ig", f"{task}_vanilla"} <= set(overlaps.frame)]
    rows = overlaps.frame[overlaps.frame["depth"].isin(DEPTHS)] if scored else overlaps.frame[:0]
    for _, row in rows.iterrows():
        differences = {task: row[f"{task}_ig"] - row[f"{task}_vanilla"] for task in scored}
        quantity = f"average overlap of the top {int(row['depth'])} edges, EAP-IG minus EAP"
        claims.append(over_tasks(text, quantity, differences))
    return claims


def about_overlap(overlaps: Mapping[str, pd.DataFrame], faithfulness: pd.DataFrame) -> list[Claim]:
    """Claim of Figure 5: overlap of two tasks' circuits says little about cross-task faithfulness.

    Args:
        overlaps: square tables of circuit overlap, by the name of the measure.
        faithfulness: faithfulness of each circuit (column) on each task (row), as a share of the
            faithfulness of the task's own circuit.

    Returns:
        The claim that overlap leaves more than half of the variance over pairs of tasks
        unexplained, by adjusted R^2. Pairs of tasks are not independent, so the value and the
        interval come from a jackknife over tasks, which leaves out a task together with its
        variants. No claim for fewer than `FEWEST_TASKS` independent tasks, because there are too
        few pairs.
    """
    if n_independent(faithfulness.index) < FEWEST_TASKS:
        return []
    claim = over_tasks(
        "overlap of circuits predicts cross-task faithfulness poorly",
        f"variance over pairs of tasks that {' and '.join(overlaps)} do not explain",
        dict(enumerate(unexplained_variance([*overlaps.values()], faithfulness))),
        above=0.5,
    )
    value, low, high = np.clip([claim.value, claim.low, claim.high], 0.0, 1.0)
    return [replace(claim, value=float(value), low=float(low), high=float(high))]


def unexplained_variance(
    overlaps: Sequence[pd.DataFrame], faithfulness: pd.DataFrame
) -> Float[np.ndarray, " group"]:
    """Jackknife pseudo-values of 1 minus the adjusted R^2 of faithfulness on overlaps."""
    tables = [table.to_numpy(dtype=float) for table in (*overlaps, faithfulness)]

    def unexplained(kept: np.ndarray) -> float:
        different = kept[:, None] != kept
        *x, y = (table[np.ix_(kept, kept)][different] for table in tables)
        if not np.ptp(y):
            return float("nan")
        freedom = (len(y) - 1) / (len(y) - len(x) - 1)
        return (1 - explained_variance(np.column_stack(x), y)) * freedom

    return pseudo_values(unexplained, [base_task(str(task)) for task in faithfulness.index])


def n_independent(tasks: Iterable[Hashable]) -> int:
    """Number of tasks, with the variants of a task counted once."""
    return len({base_task(str(task)) for task in tasks})


def about_points(curves: Mapping[str, Table], points: int = 5) -> list[Claim]:
    """Claim of Figure 7: 5 integration points are enough.

    The claim holds if faithfulness with the largest measured number of points is at most `ENOUGH`
    closer to 1.
    """
    losses = {}
    for task, table in curves.items():
        names = [name.removeprefix("results_") for name in map(str, table.frame)]
        most = max((int(name) for name in names if name.isdigit()), default=0)
        if str(points) in names and most > points:
            losses[task] = closeness(table, f"results_{points}") - closeness(
                table, f"results_{most}"
            )
    if not losses:
        return []
    quantity = f"closeness of faithfulness to 1, {points} points minus the most"
    return [over_tasks(f"{points} points are enough", quantity, losses, above=-ENOUGH)]


def to_frame(claims: list[Claim]) -> pd.DataFrame:
    """A table with one row per claim."""
    rows = [{**asdict(claim), "verdict": claim.verdict} for claim in claims]
    frame = pd.DataFrame(rows, columns=[*(part.name for part in fields(Claim)), "verdict"])
    return frame.rename(columns={"text": "claim", "above": "holds_above"})

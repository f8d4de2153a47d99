"""What the paper claims, asked of a model's results: held by its numbers, or not, or not told.

Each claim is a quantity with a value for every task (or one for all), an interval, and a bound. It
*holds* if the whole interval lies above the bound, *does not hold* if it lies below, and *cannot be
told* otherwise. Claims are those of Hanna, Pezzelle and Belinkov (2024).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from eap.figures.cross_task import explained_variance
from eap.figures.tables import Table
from eap.statistics.measures import normalised

CONFIDENCE = 0.95
ENOUGH = 0.02
"""Faithfulness that fewer points of integration may cost and still be enough."""
RESAMPLES = 2000


@dataclass(frozen=True)
class Claim:
    """A claim beside what a model's results say.

    Attributes:
        text: what is claimed.
        quantity: what was measured.
        value: of the quantity.
        low, high: its 95% interval; NaN where one task alone says something.
        above: the bound that the interval must lie above.
        n_tasks: that the interval is over.
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
        """*holds*, *does not hold* or *cannot be told*."""
        if self.low > self.above:
            return "holds"
        return "does not hold" if self.high < self.above else "cannot be told"


def over_tasks(
    text: str, quantity: str, values: Mapping[str, float], *, above: float = 0.0
) -> Claim:
    """A claim about the mean over tasks, with Student's interval: tasks are the sample."""
    numbers = np.array([*values.values()], dtype=float)
    value, low, high = float(numbers.mean()), float("nan"), float("nan")
    if len(numbers) > 1:
        reach = stats.t.ppf((1 + CONFIDENCE) / 2, len(numbers) - 1) * stats.sem(numbers)
        low, high = value - reach, value + reach
    return Claim(text, quantity, value, float(low), float(high), above, len(numbers))


def closeness(table: Table, column: str) -> float:
    """1 minus the mean distance of normalised faithfulness from 1, over the table's sizes."""
    shares = normalised(table.frame[column], *table.baselines)
    return float(1 - (1 - shares).abs().mean())


def about_curves(curves: Mapping[str, Table]) -> list[Claim]:
    """Of Figure 3: EAP-IG against EAP, and KL against the task's metric as its loss."""
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
            quantity = f"closeness of faithfulness to 1, {better} less {worse}"
            claims.append(over_tasks(text, quantity, differences))
    return claims


def about_agreement(
    correlations: Mapping[str, float], tasks: list[str], overlaps: Table
) -> list[Claim]:
    """Of Figures 4 and 8: EAP-IG's scores agree with exact values, and better than EAP's do.

    Args:
        correlations: of compare_real.py, by `<task>_{vanilla,ig}[_kendall]`.
        tasks: that have them.
        overlaps: its average overlap of the top n edges, by the same names.
    """
    text = "EAP-IG agrees better with exact values than EAP"
    claims = [
        over_tasks(
            text,
            f"{name} of absolute scores, EAP-IG less EAP",
            {task: correlations[f"{task}_ig{suffix}"] - correlations[f"{task}_vanilla{suffix}"]
             for task in tasks},
        )
        for name, suffix in (("Pearson's r", ""), ("Kendall's tau", "_kendall"))
    ]  # fmt: skip
    last = overlaps.frame.iloc[-1]
    there = [task for task in tasks if {f"{task}_ig", f"{task}_vanilla"} <= set(overlaps.frame)]
    if there:
        differences = {task: last[f"{task}_ig"] - last[f"{task}_vanilla"] for task in there}
        quantity = f"average overlap of the top {int(last['depth'])} edges, EAP-IG less EAP"
        claims.append(over_tasks(text, quantity, differences))
    return claims


def about_overlap(overlaps: Mapping[str, pd.DataFrame], faithfulness: pd.DataFrame) -> list[Claim]:
    """Of Figure 5: how alike two tasks' circuits are says little of how well one does the other.

    Args:
        overlaps: square tables of the tasks' circuits, by what they are of.
        faithfulness: of each circuit (column) on each task (row), as a share of the own circuit's.

    Returns:
        Whether overlap leaves more than half of the variance over pairs of tasks unexplained; the
        interval is the percentile bootstrap's over tasks.
    """
    n = len(faithfulness)
    if n < 4:
        return []
    tables = [table.to_numpy(dtype=float) for table in overlaps.values()]

    def unexplained(chosen: np.ndarray) -> float:
        different = chosen[:, None] != chosen  # a task drawn twice makes no pair with itself
        x = [table[np.ix_(chosen, chosen)][different] for table in tables]
        y = faithfulness.to_numpy(dtype=float)[np.ix_(chosen, chosen)][different]
        spread = bool(len(y) > len(x) + 1 and np.ptp(y))
        return 1 - explained_variance(np.column_stack(x), y) if spread else float("nan")

    generator = np.random.default_rng(0)
    drawn = np.array([unexplained(generator.integers(n, size=n)) for _ in range(RESAMPLES)])
    low, high = np.nanquantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return [
        Claim(
            "overlap of circuits predicts cross-task faithfulness poorly",
            f"variance over pairs of tasks that {' and '.join(overlaps)} do not explain",
            unexplained(np.arange(n)),
            float(low),
            float(high),
            0.5,
            n,
        )
    ]


def about_points(curves: Mapping[str, Table], points: int = 5) -> list[Claim]:
    """Of Figure 7: 5 points of integration are enough.

    They are if the most points measured are at most `ENOUGH` closer to 1.
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
    quantity = f"closeness of faithfulness to 1, {points} points less the most"
    return [over_tasks(f"{points} points are enough", quantity, losses, above=-ENOUGH)]


def to_frame(claims: list[Claim]) -> pd.DataFrame:
    """A row per claim."""
    return pd.DataFrame(
        {
            "claim": [claim.text for claim in claims],
            "quantity": [claim.quantity for claim in claims],
            "value": [claim.value for claim in claims],
            "low": [claim.low for claim in claims],
            "high": [claim.high for claim in claims],
            "holds_above": [claim.above for claim in claims],
            "n_tasks": [claim.n_tasks for claim in claims],
            "verdict": [claim.verdict for claim in claims],
        }
    )

"""Replication: a model's results on the paper's claims, compared with those for GPT-2 small.

The published differences and their sources are in `data/published/replication.json`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from eap.figures.tables import Table
from eap.runtime.shipped import data_folder

NEW = "new"
REPLICATES = "replicates"
DIFFERS = "differs"
INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Published:
    """One quantity of the paper.

    Attributes:
        quantity: name of the quantity, as in `claims.Claim`.
        value: value for GPT-2 small, the mean over six tasks; None if no number was published.
        says: statement of the paper in words; None if there is none.
        where: place in the paper.
    """

    quantity: str
    value: float | None
    says: str | None
    where: str


@cache
def published() -> Mapping[str, Published]:
    """Published quantities by name, in the paper's order."""
    folder = data_folder() / "published"
    rows = json.loads((folder / "replication.json").read_text(encoding="utf8"))["rows"]
    shares = json.loads((folder / "gpt2.json").read_text(encoding="utf8"))
    return {
        row["quantity"]: Published(
            row["quantity"],
            _closeness(shares, *row["curves"]) if "curves" in row else row.get("published"),
            row["says"],
            row["where"],
        )
        for row in rows
    }


def _closeness(shares: Mapping, better: str, worse: str) -> float:
    """How much closer to 1 the normalised faithfulness of `better` is, as the mean over tasks."""
    columns = [shares["methods"].index(name) for name in (better, worse)]
    sizes = ("200", "500", "1000")
    values = np.array([[task[size] for size in sizes] for task in shares["faithfulness"].values()])
    distance = np.abs(1 - values).mean(axis=(0, 1))
    return float(distance[columns[1]] - distance[columns[0]])


def word(row: Published | None, *, low: float, high: float, above: float) -> str:
    """Say whether a result replicates: *replicates*, *differs*, *inconclusive* or *new*.

    Args:
        row: published quantity; None if nothing was published.
        low, high: interval of the model's value.
        above: bound of the claim, used if the paper has a statement but no number.

    Returns:
        *replicates* if the whole interval lies on the same side of zero as the published value (or,
        without a number, on the side of the bound that the paper claims), *differs* if it lies on
        the other side, *inconclusive* if it lies on both, and *new* if nothing was published.
    """
    if row is None or (row.value is None and row.says is None):
        return NEW
    bound, sign = (above, 1.0) if row.value is None else (0.0, float(np.sign(row.value)))
    if sign * (low - bound) > 0 and sign * (high - bound) > 0:
        return REPLICATES
    return DIFFERS if sign * (low - bound) < 0 and sign * (high - bound) < 0 else INCONCLUSIVE


def beside(claims: pd.DataFrame) -> pd.DataFrame:
    """Add the columns `published` (GPT-2 small) and `replication` to a table of claims."""
    rows = [published().get(quantity) for quantity in claims["quantity"]]
    words = [
        word(row, low=low, high=high, above=above)
        for row, low, high, above in zip(
            rows, claims["low"], claims["high"], claims["holds_above"], strict=True
        )
    ]
    values = [float("nan") if row is None or row.value is None else row.value for row in rows]
    return claims.assign(published=values, replication=words)


def crossing(depths: Sequence[float], differences: Sequence[float]) -> float | None:
    """The size above which a difference stays below zero, interpolated linearly between sizes.

    Args:
        depths: sizes, ascending.
        differences: EAP-IG minus EAP at each size.

    Returns:
        The size; None if the difference does not change from positive to negative and stay there.
    """
    positive = np.flatnonzero(np.asarray(differences) >= 0)
    if not len(positive) or positive[-1] + 1 == len(differences):
        return None
    before, after = positive[-1], positive[-1] + 1
    share = differences[before] / (differences[before] - differences[after])
    return float(depths[before] + share * (depths[after] - depths[before]))


def overlap_crossing(overlaps: Table) -> float | None:
    """The size at which the difference in overlap, averaged over tasks, crosses zero."""
    frame = overlaps.frame
    tasks = [name.removesuffix("_ig") for name in map(str, frame) if name.endswith("_ig")]
    means = [
        frame[[f"{task}_{curve}" for task in tasks]].mean(axis=1) for curve in ("ig", "vanilla")
    ]
    return crossing(frame["depth"].tolist(), (means[0] - means[1]).tolist())


def published_crossing() -> float | None:
    """The size at which the published difference in overlap crosses zero."""
    start, end = "average overlap of the top ", " edges, EAP-IG minus EAP"
    at = {
        float(quantity.removeprefix(start).removesuffix(end)): row.value
        for quantity, row in published().items()
        if quantity.startswith(start) and row.value is not None
    }
    return crossing(list(at), list(at.values()))


def draw(models: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw every difference with its interval, with one row per quantity and one colour per model.

    Args:
        models: tables of `beside`, by name of the model.
    """
    names = [
        quantity
        for quantity in published()
        if " minus " in quantity
        and any((table["quantity"] == quantity).any() for table in models.values())
    ]
    figure, axes = plt.subplots(figsize=(8, 0.6 + 0.42 * len(names)), layout="constrained")
    places = np.arange(len(names))
    step = 0.6 / (len(models) + 1)
    known = [(place, published()[name].value) for place, name in enumerate(names)]
    axes.scatter(
        [value for _, value in known if value is not None],
        [place - 0.3 + step / 2 for place, value in known if value is not None],
        marker="D", color="black", s=22, label="GPT-2 small, published", zorder=3,
    )  # fmt: skip
    for number, (model, table) in enumerate(models.items(), start=1):
        rows = table.set_index("quantity").reindex(names)
        reach = np.abs(rows[["low", "high"]].to_numpy().T - rows["value"].to_numpy())
        axes.errorbar(
            rows["value"], places - 0.3 + step * (number + 0.5), xerr=reach, fmt="o", capsize=2,
            markersize=4, label=model,
        )  # fmt: skip
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.set_yticks(places, names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("mean over tasks, 95% interval over tasks")
    axes.legend(fontsize=8, loc="best")
    return figure

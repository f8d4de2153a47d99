"""Page of all real models: the paper's claims, with values for GPT-2 and for every model.

    python benchmarks/real_models.py

Reads results/gallery/<study>, which `benchmarks/real_model.py` writes, and writes
docs/real-models.md and its figure, results/gallery/real-models.png. A model has a column only if
its study has been run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from eap.figures import replication, tables
from eap.figures.tables import Results
from eap.runtime.atomic import write_atomically
from eap.statistics.intervals import Interval
from eap.studies import shell

REPOSITORY = Path(__file__).resolve().parent.parent
GALLERY = REPOSITORY / "results" / "gallery"
PAGE = REPOSITORY / "docs" / "real-models.md"
FIGURE = GALLERY / "real-models.png"

INTRODUCTION = """# Real models beside the paper

Written by `python benchmarks/real_models.py` from the tables in `results/gallery`. The
paper is Hanna, Pezzelle and Belinkov, *Have Faith in Faithfulness* (COLM 2024, arXiv
2403.17806); its numbers are of GPT-2 small. The pages of the models:
{pages}."""

READING = """\
**Words.** A row *replicates* where the model's interval lies on the side of zero on which
the published value lies, *differs* where it lies on the other, and is *inconclusive* where
it holds zero. Where the paper has words and no number, the side is that of the claim: more
than half of the variance unexplained; 5 points at most .02 less close to 1 than the most.
What the paper does not say and has no number for is *new*. Intervals are Student's, 95%,
over the tasks (the jackknife's for the variance): the tasks are the sample, and sizes
within a task are not; the three variants of greater-than count as one task.

**Kendall's tau is an observation, not a test of the claim.** Most edges move the metric so
little that it is linear in the input along the whole path. There the slope at the clean
input, which is EAP's estimate, is the exact value, and the mean of slopes at other inputs
(EAP-IG) adds the curvature of other edges. Tau counts all edges alike. Pearson's r and the
overlap of the few best edges are made of the edges that move the metric much, where the
path is curved and EAP-IG is the better estimate. So overlap changes its sign with the
number of edges that are compared."""


@dataclass(frozen=True)
class Kept:
    """Data of one model in the gallery: name, claims, overlaps and costs."""

    study: str
    model: str
    claims: pd.DataFrame
    crossing: float | None
    costs: pd.DataFrame | None


def main() -> None:
    """Write the page and the figure."""
    shell.OneLineParser(description=__doc__).parse_args()
    models = kept_models()
    figure = replication.draw({model.model: model.claims for model in models})
    with write_atomically(FIGURE) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    plt.close(figure)
    with write_atomically(PAGE) as temporary:
        temporary.write_text(page(models), encoding="utf8")
    shell.say(f"wrote {shell.shown(PAGE)} and {shell.shown(FIGURE)}")


def kept_models() -> list[Kept]:
    """Every study in the gallery that has claims, ordered by name."""
    models = []
    for path in sorted(GALLERY.glob("*/results/claims/*/csv/claims.csv")):
        folder, name = path.parents[4], path.parents[1].name
        results = Results(folder, name)
        overlaps = tables.read_table(results.csv("real_rank", "all-overlap"))
        costs = folder / "costs.csv"
        models.append(
            Kept(
                folder.name,
                name,
                pd.read_csv(path),
                replication.overlap_crossing(overlaps),
                pd.read_csv(costs) if costs.exists() else None,
            )
        )
    return models


def page(models: list[Kept]) -> str:
    """The whole page."""
    pages = ", ".join(f"[{model.model}]({model.study}.md)" for model in models)
    parts = [
        INTRODUCTION.format(pages=pages),
        "## What the paper claims",
        *claimed(),
        "## What is true of which model",
        table(models),
        crossings(models),
        READING,
        "## At a glance",
        f"![Differences with their intervals](../{FIGURE.relative_to(REPOSITORY).as_posix()})",
        "Differences of EAP-IG and EAP (or of what the row says), means over tasks with 95% "
        "intervals over tasks; diamonds: published of GPT-2 small.",
        "## What it took",
        "On two cores of a server, one thread a step, two steps side by side and other work beside "
        "them; what a GPU would take was not measured.",
        costs(models),
    ]
    return "\n\n".join(parts) + "\n"


def claimed() -> list[str]:
    """The claims in words, each once, with their places in the paper."""
    rows = [(row.says, row.where) for row in replication.published().values()]
    return ["\n".join(f"- {says[0].upper()}{says[1:]} ({where})." for says, where in rows if says)]


def table(models: list[Kept]) -> str:
    """Table with one row per quantity and one column per model."""
    lines = [
        "| measured | where | GPT-2 small, published | "
        + " | ".join(model.model for model in models) + " |",
        "|---|---|---|" + "---|" * len(models),
    ]  # fmt: skip
    for quantity, row in replication.published().items():
        value = "in words" if row.says else "not given"
        value = value if row.value is None else f"{row.value:+.3f}"
        cells = [cell(model.claims, quantity) for model in models]
        lines.append(f"| {quantity} | {row.where} | {value} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(claims: pd.DataFrame, quantity: str) -> str:
    """Cell of a model: value, interval, number of tasks, and verdict."""
    rows = claims[claims["quantity"] == quantity]
    if rows.empty:
        return "not measured"
    (row,) = rows.to_dict("records")
    interval = Interval(row["value"], row["low"], row["high"])
    return f"{interval}, {row['n_tasks']} tasks: **{row['replication']}**"


def crossings(models: list[Kept]) -> str:
    """The size at which the difference in overlap changes sign."""
    sizes: Mapping[str, float | None] = {
        "GPT-2 small (published)": replication.published_crossing(),
        **{model.model: model.crossing for model in models},
    }
    said = "; ".join(
        f"{name}: {'nowhere up to the largest size' if size is None else f'{size:.0f} edges'}"
        for name, size in sizes.items()
    )
    return (
        "**Where overlap crosses zero.** EAP-IG's best edges overlap more with the exact ones than "
        f"EAP's up to a size, and less beyond it, by the mean over tasks: {said}."
    )


def costs(models: list[Kept]) -> str:
    """Minutes and memory by step, with one column per model."""
    known = {
        model.model: model.costs.set_index("step") for model in models if model.costs is not None
    }
    if not known:
        return "No study has kept what its steps took."
    steps = sorted({step for frame in known.values() for step in frame.index})
    lines = [
        "| step | " + " | ".join(f"{name}: minutes (CPU), GiB" for name in known) + " |",
        "|---|" + "---|" * len(known),
    ]
    for step in steps:
        cells = [took(frame.loc[step]) if step in frame.index else "" for frame in known.values()]
        lines.append(f"| {step} | {' | '.join(cells)} |")
    totals = [
        f"**{frame['minutes'].sum():.0f} ({frame['cpu_minutes'].sum():.0f}), "
        f"{frame['gib'].max():.1f}**"
        for frame in known.values()
    ]
    return "\n".join([*lines, f"| **all, most** | {' | '.join(totals)} |"])


def took(row: pd.Series) -> str:
    """Minutes, CPU minutes and memory of a step."""
    if np.isnan(row["cpu_minutes"]):
        return f"{row['minutes']:.1f} (not measured)"
    return f"{row['minutes']:.1f} ({row['cpu_minutes']:.1f}), {row['gib']:.1f}"


if __name__ == "__main__":
    shell.run(main)

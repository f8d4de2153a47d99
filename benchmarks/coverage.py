"""Coverage of the printed intervals: how often each contains the true value, by simulation.

    python benchmarks/coverage.py            # 2,000 samples of each kind; about three minutes
    python benchmarks/coverage.py --write    # also writes the table into docs/reliability.md

A test runs the same simulations with fewer samples (`tests/unit/test_coverage.py`).
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from eap.analysis.screening import upper_share
from eap.figures.claims import about_overlap, unexplained_variance
from eap.figures.curves import CONFIDENCE
from eap.statistics.intervals import (
    interval_of_distances,
    interval_of_faithfulness,
    interval_of_means,
    interval_of_tasks,
)
from eap.statistics.measures import SHARES, area, faithfulness_errors

Generator = np.random.Generator
Ends = tuple[float, float]

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- coverage: begin -->", "<!-- coverage: end -->"

PAIRS, TASKS = (10, 30, 100), (6, 8)

# Draws of the bootstrap; the package takes 1,000.
N_RESAMPLES = 400


@dataclass(frozen=True)
class Simulation:
    """One kind of interval.

    Attributes:
        name: place where the interval is printed, and how it is computed.
        sizes: sample sizes, in pairs or tasks.
        truths: simulations by name; `(generator, n) -> interval, true value` draws one sample.
    """

    name: str
    sizes: tuple[int, ...]
    truths: dict[str, Callable[[Generator, int], tuple[Ends, float]]]

    def coverage(self, n: int, n_samples: int) -> dict[str, float]:
        """How often the interval contains the true value, for every truth."""
        covered = {}
        for truth, sample in self.truths.items():
            generator = np.random.default_rng(n)
            hits = 0
            for _ in range(n_samples):
                (low, high), value = sample(generator, n)
                hits += low - 1e-9 <= value <= high + 1e-9
            covered[truth] = hits / n_samples
        return covered


# ---- intervals over pairs ------------------------------------------------------------------------

# Normalised faithfulness by share of edges.
CURVES = {
    "1 from 2% of the edges on": [0.6, 0.85, 0.95, 0.99, 1, 1, 1, 1, 1, 1],
    "overshoots to 1.2": [0.3, 0.7, 1.0, 1.1, 1.2, 1.2, 1.15, 1.1, 1.05, 1],
    "slow": [0, 0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1],
}
NEARLY_RIGHT = {"nearly always right": [0.97] * len(SHARES)}
GAP = 4.0


def runs(
    generator: Generator, n: int, curve: list[float]
) -> tuple[Float[np.ndarray, "size n"], Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Simulate circuits, the clean run and the corrupted run on n pairs.

    The whole model is the clean run. Circuits differ from the curve by noise shared between sizes
    and by independent noise.
    """
    clean, corrupted = GAP + generator.normal(size=n), 0.7 * generator.normal(size=n)
    own = 1.5 * generator.normal(size=n) + 0.5 * generator.normal(size=(len(curve), n))
    own *= 1 - np.array(SHARES)[:, None]
    return corrupted + np.array(curve)[:, None] * (clean - corrupted) + own, clean, corrupted


def _seed(generator: Generator) -> int:
    return int(generator.integers(2**32))


def cpr(curve: list[float]) -> Callable[[Generator, int], tuple[Ends, float]]:
    """Interval of CPR for circuits with a given faithfulness curve."""

    def sample(generator: Generator, n: int) -> tuple[Ends, float]:
        found = interval_of_faithfulness(
            *runs(generator, n, curve), area, n_resamples=N_RESAMPLES, seed=_seed(generator)
        )
        return (found.low, found.high), area(curve)

    return sample


def cmd(curve: list[float]) -> Callable[[Generator, int], tuple[Ends, float]]:
    """Interval of CMD for circuits with a given faithfulness curve."""

    def sample(generator: Generator, n: int) -> tuple[Ends, float]:
        found = interval_of_distances(
            *runs(generator, n, curve), area, n_resamples=N_RESAMPLES, seed=_seed(generator)
        )
        return (found.low, found.high), area(np.abs(1 - np.array(curve)))

    return sample


def accuracy(curve: list[float]) -> Callable[[Generator, int], tuple[Ends, float]]:
    """Interval of accuracy: a pair is correct if the circuit's share is above its difficulty."""

    def sample(generator: Generator, n: int) -> tuple[Ends, float]:
        right = np.array(curve)[:, None] > generator.random(n)
        found = interval_of_means(right.astype(float), lambda share: area(share, log=True))
        return (found.low, found.high), area(np.clip(curve, 0, 1), log=True)

    return sample


def band(size: int) -> Callable[[Generator, int], tuple[Ends, float]]:
    """Confidence band of a curve at one size."""

    def sample(generator: Generator, n: int) -> tuple[Ends, float]:
        curve = CURVES["slow"]
        values, clean, corrupted = runs(generator, n, curve)
        share = (values[size].mean() - corrupted.mean()) / (clean.mean() - corrupted.mean())
        reach = CONFIDENCE * float(faithfulness_errors(values[size], clean, corrupted))
        return (share - reach, share + reach), curve[size]

    return sample


def missed(share: float) -> Callable[[Generator, int], tuple[Ends, float]]:
    """Upper limit of screening for the share of edges above a bound, from a sample of n edges."""

    def sample(generator: Generator, n: int) -> tuple[Ends, float]:
        return (0.0, upper_share(int(generator.binomial(n, share)), n)), share

    return sample


# ---- intervals over tasks ------------------------------------------------------------------------


def differences(spread: float) -> Callable[[Generator, int], tuple[Ends, float]]:
    """Interval of the difference between two methods, which varies between tasks."""

    def sample(generator: Generator, n: int) -> tuple[Ends, float]:
        found = interval_of_tasks(0.1 + spread * generator.normal(size=n))
        return (found.low, found.high), 0.1

    return sample


def cross_task(
    generator: Generator, n: int, slope: float
) -> tuple[list[pd.DataFrame], pd.DataFrame]:
    """Simulate circuit overlap and cross-task faithfulness for tasks with positions in a space."""
    places = generator.normal(size=(n, 3))
    alike = np.exp(-np.linalg.norm(places[:, None] - places, axis=-1))
    noise = generator.normal(size=(3, n, n))
    edges = alike + 0.05 * (noise[0] + noise[0].T) / 2
    nodes = 0.7 * alike + 0.1 * (noise[1] + noise[1].T) / 2
    effects = 0.3 * (generator.normal(size=(n, 1)) + generator.normal(size=(1, n)))
    faithfulness = slope * alike / 0.15 + effects + noise[2]
    return [pd.DataFrame(edges), pd.DataFrame(nodes)], pd.DataFrame(faithfulness)


def unexplained(slope: float) -> Callable[[Generator, int], tuple[Ends, float]]:
    """Interval of the share of variance over pairs of tasks that overlap does not explain."""
    generator = np.random.default_rng(0)
    # The true value is the jackknife's value for many tasks.
    truth = np.mean(
        [unexplained_variance(*cross_task(generator, 40, slope)).mean() for _ in range(12)]
    )

    def sample(generator: Generator, n: int) -> tuple[Ends, float]:
        overlaps, faithfulness = cross_task(generator, n, slope)
        (claim,) = about_overlap({"edge IoU": overlaps[0], "node IoU": overlaps[1]}, faithfulness)
        return (claim.low, claim.high), float(min(truth, 1.0))

    return sample


def simulations() -> list[Simulation]:
    """All printed intervals."""
    return [
        Simulation("CPR: percentiles of a bootstrap", PAIRS,
                   {name: cpr(curve) for name, curve in CURVES.items()}),
        Simulation("CMD: triangle inequality, bootstrap", PAIRS,
                   {name: cmd(curve) for name, curve in CURVES.items()}),
        Simulation("accuracy: Student's, of the logit", PAIRS,
                   {name: accuracy(curve) for name, curve in (CURVES | NEARLY_RIGHT).items()}),
        Simulation("band of a curve: 1.96 standard errors of a ratio", PAIRS,
                   {f"faithfulness {CURVES['slow'][size]}": band(size) for size in (3, 5, 7)}),
        Simulation("edges missed by screening: Clopper-Pearson, one-sided", PAIRS,
                   {f"share {share}": missed(share) for share in (0.27, 0.4, 0.51)}),
        Simulation("claims: Student's, over tasks", TASKS,
                   {f"spread {spread}": differences(spread) for spread in (0.05, 0.2)}),
        Simulation("claim of Figure 5: jackknife over tasks", TASKS,
                   {f"slope {slope}": unexplained(slope) for slope in (0.0, 1.0, 3.0)}),
    ]  # fmt: skip


def rows(n_samples: int) -> Iterator[tuple[str, dict[int, dict[str, float]]]]:
    """Coverage of every interval, by sample size and truth."""
    for simulation in simulations():
        yield simulation.name, {n: simulation.coverage(n, n_samples) for n in simulation.sizes}


def table(n_samples: int) -> str:
    """Table with one row per interval; cells have the lowest and highest coverage over truths."""
    sizes = [f"{n} pairs" for n in PAIRS] + [f"{n} tasks" for n in TASKS]
    lines = [f"| 95% interval | {' | '.join(sizes)} |", "|---" * (1 + len(sizes)) + "|"]
    for name, covered in rows(n_samples):
        cells = [
            f"{min(covered[n].values()):.2f} to {max(covered[n].values()):.2f}"
            if n in covered
            else ""
            for n in (*PAIRS, *TASKS)
        ]  # fmt: skip
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table, or write it into the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=2000, help="number of simulated samples")
    parser.add_argument("--write", action="store_true", help="write the table into the page")
    args = parser.parse_args()
    lines = table(args.samples)
    print(lines)
    if args.write:
        before, _, rest = PAGE.read_text(encoding="utf8").partition(BEGIN)
        after = rest.partition(END)[2]
        PAGE.write_text(f"{before}{BEGIN}\n{lines}\n{END}{after}", encoding="utf8")


if __name__ == "__main__":
    main()

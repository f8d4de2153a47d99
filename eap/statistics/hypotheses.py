"""p-values for the verdicts on a circuit, computed from arrays.

Each p-value controls false positives under its null hypothesis, as a test checks by simulation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from eap.runtime.ranges import whole


@dataclass(frozen=True)
class Evidence:
    """Evidence of a test: its amount, and the lowest p-value that the test could give with it.

    Attributes:
        lowest_p: p-value if every comparison spoke against the null hypothesis.
        text: amount of evidence in words, such as "10 random circuits".
    """

    lowest_p: float
    text: str

    @classmethod
    def of_ranks(cls, n: int, what: str) -> "Evidence":
        """Evidence of a rank among n exchangeable items."""
        return cls(1 / (n + 1), f"{n} {what}")

    @classmethod
    def least(cls, n_examples: int, exact: float, n_draws: int, draws: str) -> "Evidence":
        """The higher of two bounds: from the number of examples, and from the number of draws."""
        bounds = cls.of_ranks(n_draws, draws), cls(exact, f"{n_examples} examples")
        return max(bounds, key=lambda bound: bound.lowest_p)

    def word(self, p_value: float, alpha: float, yes: str, no: str) -> str:
        """`yes` if significant, else `no`; "inconclusive" if the test could not be significant."""
        if self.lowest_p > alpha:
            return f"inconclusive with {self.text}"
        return yes if p_value <= alpha else no


def holm(p_values: Any) -> Float[np.ndarray, " test"]:
    """p-values with Holm's correction (1979), which controls the chance of any false positive."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(steps, 1.0)[order.argsort()]


def rank_p(value: float, reference: Any) -> float:
    """P-value of a value's rank among exchangeable ones, itself included; ties count against it."""
    others = np.asarray(reference, dtype=np.float64)
    return float((1 + (others >= value).sum()) / (1 + len(others)))


def sign_test(changes: Any) -> tuple[float, float]:
    """Share of positive changes, and p-value of the null that signs are equally likely.

    Changes of 0 have no sign, and count half in the share; if all changes are 0, p is 1.
    """
    values = np.asarray(changes, dtype=np.float64)
    up, down = int((values > 0).sum()), int((values < 0).sum())
    share = (up + (len(values) - up - down) / 2) / len(values)
    p = float(stats.binomtest(up, up + down).pvalue) if up + down else 1.0
    return share, p


def mean_p(changes: Float[np.ndarray, "*test example"]) -> Float[np.ndarray, "*test"]:
    """p-values of the null that changes are 0 on average (two-sided t test over examples).

    If all changes of a test are equal, they have no spread, and the p-value is that of a sign test.
    """
    values = np.asarray(changes, dtype=np.float64)
    n = values.shape[-1]
    mean, spread = values.mean(axis=-1), values.std(axis=-1, ddof=1) if n > 1 else 0.0
    flat = spread <= 1e-9 * np.abs(mean)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = mean / (spread / np.sqrt(n))
    p = 2 * stats.t.sf(np.abs(t), max(n - 1, 1))
    return np.where(flat, np.where(mean == 0, 1.0, min(1.0, 2.0 ** (1 - n))), p)


def hsic_p(x: Any, y: Any, *, n_permutations: int = 499, seed: int = 0) -> tuple[float, float]:
    """Dependence of two series (HSIC, Gretton et al. 2007), and its p-value by permutation.

    The kernels are Gaussian, as wide as the median distance. A constant series depends on nothing.
    """
    n_permutations, seed = whole("n_permutations", n_permutations), whole("seed", seed)
    kernels = [_centred_kernel(np.asarray(sample, dtype=np.float64)) for sample in (x, y)]
    n = len(kernels[0])
    value = float((kernels[0] * kernels[1]).mean())
    if not kernels[0].any() or not kernels[1].any():
        return 0.0, 1.0
    random = np.random.default_rng(seed)
    shuffled = [
        (kernels[0] * kernels[1][np.ix_(order, order)]).mean()
        for order in (random.permutation(n) for _ in range(n_permutations))
    ]
    return value, rank_p(value, shuffled)


def _centred_kernel(values: Float[np.ndarray, " example"]) -> Float[np.ndarray, "example example"]:
    distances = np.abs(values[:, None] - values[None])
    if distances.max() <= 1e-9 * max(1.0, float(np.abs(values).max())):
        return np.zeros_like(distances)
    width = np.median(distances[distances > 0])
    kernel = np.exp(-0.5 * (distances / width) ** 2)
    return kernel - kernel.mean(axis=0) - kernel.mean(axis=1, keepdims=True) + kernel.mean()


def unseen_p(n_examples: int, tolerance: float) -> float:
    """Chance that a circuit that fails on a fraction `tolerance` of all examples fails on none.

    Such a circuit is exactly as far from the model as is tolerated, and looks perfect on n examples
    with probability (1 - tolerance)^n. No test of a mean over these examples can do better.
    """
    return (1.0 - tolerance) ** n_examples


def beyond_tolerance_p(
    distances: Sequence[float] | np.ndarray, tolerance: float, n_examples: int
) -> float:
    """p-value of the null that a distance exceeds a tolerance, by the share of such resamples.

    For distances that are biased upwards, such as means of absolute values.
    """
    return max(rank_p(tolerance, distances), unseen_p(n_examples, tolerance))


def ratio_beyond_p(
    losses: Float[np.ndarray, " example"],
    gaps: Float[np.ndarray, " example"],
    tolerance: float,
    counts: Float[np.ndarray, "resample example"],
) -> float:
    """p-value of the null that the ratio of two means is further than a tolerance from 0.

    Two one-sided tests by the studentised bootstrap (Hall 1988, Annals of Statistics 16): resamples
    say how far a ratio lies from its true value in units of its own standard error, which takes
    into account that few examples, and those of a skewed distribution, underestimate both. Plain
    percentiles would call a circuit at the bound faithful up to one time in three with 5 examples.

    Args:
        losses: clean minus circuit value of every example.
        gaps: clean minus ablated value of every example.
        tolerance: bound of the null.
        counts: number of times that each resample has each example.
    """
    n = losses.shape[-1]
    ratio = losses.mean() / gaps.mean()
    (error,) = _ratio_errors(losses, gaps, np.ones((1, n)))[1]
    least = unseen_p(n, tolerance)
    if error <= 1e-12:
        return least if abs(ratio) < tolerance else 1.0
    ratios, errors = _ratio_errors(losses, gaps, counts)
    flat = errors <= 1e-12  # such a resample says nothing: it counts against the circuit
    distances = (ratios - ratio) / np.where(flat, 1.0, errors)
    above = np.where(flat, -np.inf, distances) <= (ratio - tolerance) / error
    below = np.where(flat, np.inf, distances) >= (ratio + tolerance) / error
    p = (1 + max(above.sum(), below.sum())) / (1 + len(counts))
    return float(max(p, least))


def _ratio_errors(
    losses: Float[np.ndarray, " example"],
    gaps: Float[np.ndarray, " example"],
    counts: Float[np.ndarray, "resample example"],
) -> tuple[Float[np.ndarray, " resample"], Float[np.ndarray, " resample"]]:
    """Ratio of two means in every resample, and its standard error by the delta method."""
    n = counts.shape[-1]
    weights = counts / n
    gap = weights @ gaps
    ratios = (weights @ losses) / gap
    residuals = losses - ratios[:, None] * gaps  # their weighted mean is 0
    variances = np.einsum("re,re->r", weights, residuals**2) / max(n - 1, 1)
    return ratios, np.sqrt(variances) / np.abs(gap)

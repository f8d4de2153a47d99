"""p-values that verdicts on a circuit rest on: arrays in, numbers out.

Each controls false positives under its null: a test simulates it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import factorial
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from eap.runtime.ranges import whole


@dataclass(frozen=True)
class Evidence:
    """What a test rests on, and the lowest p-value that it could give, whatever the values.

    Attributes:
        lowest_p: the p-value if every comparison spoke against the null hypothesis.
        text: what there is of it, such as "10 random circuits".
    """

    lowest_p: float
    text: str

    @classmethod
    def of_ranks(cls, n: int, what: str) -> "Evidence":
        """A rank among n exchangeable things."""
        return cls(1 / (n + 1), f"{n} {what}")

    @classmethod
    def of_signs(cls, n_examples: int) -> "Evidence":
        """A two-sided sign test."""
        return cls(2.0 ** (1 - n_examples), f"{n_examples} examples")

    @classmethod
    def of_resamples(cls, n_examples: int, n_resamples: int) -> "Evidence":
        """Resamples of examples that all lie on one side of a bound: one side of a sign test."""
        return cls.least(n_examples, 2.0**-n_examples, n_resamples, "resamples")

    @classmethod
    def of_permutations(cls, n_examples: int, n_permutations: int) -> "Evidence":
        """Permutations of examples, of which there are n! at the most."""
        exact = 1 / factorial(min(n_examples, 20))
        return cls.least(n_examples, exact, n_permutations, "permutations")

    @classmethod
    def least(cls, n_examples: int, exact: float, n_draws: int, draws: str) -> "Evidence":
        """The higher of two bounds: by the examples, and by the draws made of them."""
        by_draws = 1 / (n_draws + 1)
        return (
            cls(exact, f"{n_examples} examples")
            if exact > by_draws
            else cls(by_draws, f"{n_draws} {draws}")
        )

    def word(self, p_value: float, alpha: float, yes: str, no: str) -> str:
        """`yes` up to a significance level, `no` above it; no claim that could not be refuted."""
        if self.lowest_p > alpha:
            return f"inconclusive with {self.text}"
        return yes if p_value <= alpha else no


def holm(p_values: Any) -> Float[np.ndarray, " test"]:
    """p-values corrected for their number (Holm 1979): the chance of any false positive is kept."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    steps = p[order] * np.arange(len(p), 0, -1)
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected


def rank_p(value: float, reference: Any) -> float:
    """P(a value as large as this) among exchangeable ones, itself included; ties count against."""
    others = np.asarray(reference, dtype=np.float64)
    return float((1 + (others >= value).sum()) / (1 + len(others)))


def sign_test(changes: Any) -> tuple[float, float]:
    """The share of positive changes, and the p-value that they are as often negative.

    Changes of 0 say neither, and count half in the share; with nothing else p is 1.
    """
    values = np.asarray(changes, dtype=np.float64)
    up, down = int((values > 0).sum()), int((values < 0).sum())
    share = (up + (len(values) - up - down) / 2) / len(values)
    p = float(stats.binomtest(up, up + down).pvalue) if up + down else 1.0
    return share, p


def mean_p(changes: Float[np.ndarray, "*test example"]) -> Float[np.ndarray, "*test"]:
    """The p-value that changes are 0 on average (a two-sided t test over examples).

    Where all are equal there is no spread to compare with: then that of a sign test.
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

    Gaussian kernels as wide as the median distance. A series that never changes depends on nothing.
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


def beyond_tolerance_p(distances: Sequence[float] | np.ndarray, tolerance: float) -> float:
    """The p-value that a distance is not within a tolerance: the share of resamples beyond it."""
    beyond = np.asarray(distances) >= tolerance
    return float((1 + beyond.sum()) / (1 + len(beyond)))

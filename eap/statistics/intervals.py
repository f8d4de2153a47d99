"""Intervals over examples and over tasks: arrays in, numbers out.

The coverage of each is simulated under a known truth, at the sizes of samples that are common here:
`benchmarks/coverage.py` writes the table, and a test holds it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import special

from eap.runtime.ranges import real, whole
from eap.statistics.measures import normalised

FEWEST = 5
"""Examples below which no interval is given: resamples of fewer are too much alike."""


@dataclass(frozen=True)
class Interval:
    """A measured number, and an interval for its value over all examples of the task.

    Attributes:
        value: value of the examples at hand.
        low, high: ends of the interval (95%, unless said otherwise); NaN where there is none:
            fewer than `FEWEST` examples, or resamples whose clean and ablated means do not keep
            their order, so that there is nothing to normalise by.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        known = not np.isnan([self.low, self.high]).any()
        ends = f"[{self.low:.3f}, {self.high:.3f}]" if known else "(no interval)"
        return f"{self.value:.3f} {ends}"


def resampled_counts(
    n_examples: int, n_resamples: int, seed: int
) -> Float[np.ndarray, "resample example"]:
    """How often each example is drawn in resamples of `n_examples`, with replacement."""
    even = np.full(n_examples, 1 / n_examples)
    n_resamples, seed = whole("n_resamples", n_resamples), whole("seed", seed)
    draws = np.random.default_rng(seed).multinomial(n_examples, even, size=n_resamples)
    return draws.astype(np.float64)


def interval_of_shares(
    values: Float[np.ndarray, "*size example"],
    clean: Float[np.ndarray, " example"],
    ablated: Float[np.ndarray, " example"],
    measure: Callable[[Any], Any],
    *,
    n_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """A smooth measure of normalised faithfulness, and its percentile interval over examples.

    The means over a resample's examples come first and then the ratio, as for the number itself;
    clean, ablated and circuit values of an example are drawn together, as they vary together.
    For distances, such as |1 - f|, use `interval_of_distances`.

    Args:
        values: the metric, per circuit and example.
        clean, ablated: the metric of the two runs.
        measure: measure of normalised faithfulness [.., *size] a number [..], such as `area`.
        n_resamples: number of bootstrap resamples.
        confidence: probability that the interval holds the true value.
        seed: seed of the resamples.
    """
    confidence = real("confidence", confidence)
    share, resampled = _resampled_shares(values, clean, ablated, n_resamples, seed)
    value = float(measure(share))
    if resampled is None:
        return Interval(value, float("nan"), float("nan"))
    return Interval(value, *_percentiles(measure(resampled), confidence, values.shape[-1]))


def interval_of_distances(
    values: Float[np.ndarray, "size example"],
    clean: Float[np.ndarray, " example"],
    ablated: Float[np.ndarray, " example"],
    mean: Callable[[Any], Any],
    *,
    n_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The mean distance of normalised faithfulness f from 1, and its interval over examples.

    A mean of |1 - f| is biased upwards where f is near 1, and resamples are biased once more: their
    percentiles may lie above the true value in every data set. So the interval rests on the
    triangle inequality: the measured mean of |1 - f| is no further from the true one than the mean
    of |f - true f|, whose distribution over resamples has no such bias.

    Args:
        values, clean, ablated, n_resamples, confidence, seed: values and options as of
            `interval_of_shares`.
        mean: the weighted mean of distances [.., size], such as `area`.
    """
    confidence = real("confidence", confidence)
    share, resampled = _resampled_shares(values, clean, ablated, n_resamples, seed)
    value = float(mean(np.abs(1 - share)))
    if resampled is None:
        return Interval(value, float("nan"), float("nan"))
    n = values.shape[-1]
    # Resamples of n examples spread as if there were n - 1 of them.
    reach = np.quantile(mean(np.abs(resampled - share)), confidence) * np.sqrt(n / (n - 1))
    return Interval(value, max(0.0, value - float(reach)), value + float(reach))


def _resampled_shares(
    values: Float[np.ndarray, "*size example"],
    clean: Float[np.ndarray, " example"],
    ablated: Float[np.ndarray, " example"],
    n_resamples: int,
    seed: int,
) -> tuple[Any, Any]:
    """Normalised faithfulness [*size], and that of resamples [resample, *size] (None: no sense)."""
    values, clean, ablated = (np.asarray(run, dtype=np.float64) for run in (values, clean, ablated))
    share = normalised(values.mean(axis=-1), float(clean.mean()), float(ablated.mean()))
    counts = resampled_counts(values.shape[-1], n_resamples, seed) / values.shape[-1]
    base, gap = counts @ ablated, counts @ (clean - ablated)  # [resample]
    in_order = np.sign(gap) == np.sign((clean - ablated).mean())
    if values.shape[-1] < FEWEST or not in_order.all():
        return share, None
    means = np.moveaxis(values @ counts.T, -1, 0)  # [resample, *size]
    shape = (-1, *[1] * (means.ndim - 1))
    return share, (means - base.reshape(shape)) / gap.reshape(shape)


def interval_of_means(
    values: Float[np.ndarray, "*size example"],
    measure: Callable[[Any], Any],
    *,
    confidence: float = 0.95,
) -> Interval:
    """A mean over sizes of means over examples of numbers from 0 to 1, such as of decisions.

    Student's interval of the logit, whose ends stay within 0 and 1 and reach further to the middle
    where the mean is near an end. Where all examples have 0, or all 1, the other end is Clopper and
    Pearson's (1934).

    Args:
        values: values from 0 to 1, per circuit and example.
        measure: measure of means [.., *size] a number [..] from 0 to 1, linear in them.
        confidence: probability that the interval holds the true value.
    """
    confidence = real("confidence", confidence)
    each = np.asarray(measure(np.moveaxis(np.asarray(values, dtype=np.float64), -1, 0)))
    n, value = len(each), float(each.mean())
    if n < FEWEST:
        return Interval(value, float("nan"), float("nan"))
    certain = ((1 - confidence) / 2) ** (1 / n)
    if min(value, 1 - value) < 1e-12:
        return Interval(value, certain, 1.0) if value > 0.5 else Interval(value, 0.0, 1 - certain)
    error = each.std(ddof=1) / np.sqrt(n) / (value * (1 - value))
    reach = special.stdtrit(n - 1, (1 + confidence) / 2) * error
    low, high = special.expit(special.logit(value) + np.array([-reach, reach]))
    return Interval(value, float(low), float(high))


def _percentiles(
    resampled: Float[np.ndarray, " resample"], confidence: float, n_examples: int
) -> tuple[float, float]:
    """Ends of the percentile interval, as much wider as Student's is (Hesterberg 2015).

    Percentiles of a bootstrap are as narrow as if the spread of n examples were known, and of n
    and not n - 1 degrees of freedom: in samples of ten they would hold nine in ten, not 95%.
    """
    reach = special.stdtrit(n_examples - 1, (1 + confidence) / 2)
    tail = float(special.ndtr(-reach * np.sqrt(n_examples / (n_examples - 1))))
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return float(low), float(high)


# ---- over tasks ----------------------------------------------------------------------------------


def interval_of_tasks(values: Any, *, confidence: float = 0.95) -> Interval:
    """The mean over tasks and Student's interval: tasks are the sample.

    Args:
        values: one number for every task; of a single task there is no interval.
        confidence: probability that the interval holds the true mean.
    """
    numbers, confidence = np.asarray(values, dtype=np.float64), real("confidence", confidence)
    n, value = len(numbers), float(numbers.mean())
    if n < 2:
        return Interval(value, float("nan"), float("nan"))
    error = numbers.std(ddof=1) / np.sqrt(n)
    reach = float(special.stdtrit(n - 1, (1 + confidence) / 2) * error)
    return Interval(value, value - reach, value + reach)


def pseudo_values(
    statistic: Callable[[Int[np.ndarray, " kept"]], float], groups: Sequence[str]
) -> Float[np.ndarray, " group"]:
    """The jackknife's pseudo-values of a statistic of tasks (Tukey 1958).

    Their mean is the statistic less its bias to first order, and Student's interval of them is the
    jackknife's: for a statistic of pairs of tasks, which are not independent of each other.

    Args:
        statistic: statistic of the numbers of the tasks that are kept.
        groups: group of every task; tasks of one group are left out together.
    """
    of_task = np.asarray(groups)
    names = list(dict.fromkeys(groups))
    without = np.array([statistic(np.flatnonzero(of_task != name)) for name in names])
    return len(names) * statistic(np.arange(len(of_task))) - (len(names) - 1) * without

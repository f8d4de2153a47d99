"""Intervals over examples and over tasks, computed from arrays.

The coverage of each interval was simulated under a known truth, at sample sizes that are common
here: `benchmarks/coverage.py` writes the table, and a test checks it.
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
"""Fewest examples for an interval; resamples of fewer examples are too similar."""


@dataclass(frozen=True)
class Interval:
    """Measured number, with an interval for its value over all examples of the task.

    Attributes:
        value: value over the given examples.
        low, high: ends of the interval (by default 95%). NaN if there is no interval: fewer than
            `FEWEST` examples, or resamples whose clean and ablated means do not keep their order,
            so that faithfulness cannot be normalised.
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
    """Counts of each example in bootstrap resamples of `n_examples`, drawn with replacement."""
    even = np.full(n_examples, 1 / n_examples)
    n_resamples, seed = whole("n_resamples", n_resamples), whole("seed", seed)
    draws = np.random.default_rng(seed).multinomial(n_examples, even, size=n_resamples)
    return draws.astype(np.float64)


def interval_of_faithfulness(
    values: Float[np.ndarray, "*size example"],
    clean: Float[np.ndarray, " example"],
    ablated: Float[np.ndarray, " example"],
    measure: Callable[[Any], Any],
    *,
    n_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval over examples for a smooth measure of normalised faithfulness.

    In each resample, means over examples are taken first and then the ratio, as for the number
    itself. The clean, ablated and circuit values of an example are drawn together, because they
    vary together. For distances, such as |1 - f|, use `interval_of_distances`.

    Args:
        values: metric of each circuit on each example.
        clean, ablated: metric of the clean and of the ablated run on each example.
        measure: function from normalised faithfulness [.., *size] to numbers [..], such as `area`.
        n_resamples: number of bootstrap resamples.
        confidence: probability that the interval contains the true value.
        seed: seed of the resamples.
    """
    confidence = real("confidence", confidence)
    faithfulness, resampled = _resampled_faithfulness(values, clean, ablated, n_resamples, seed)
    value = float(measure(faithfulness))
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
    """Interval over examples for the mean distance of normalised faithfulness f from 1.

    A mean of |1 - f| is biased upwards where f is near 1, and resamples are biased once more: their
    percentiles may lie above the true value in every data set. So the interval uses the triangle
    inequality: the measured mean of |1 - f| differs from the true one by at most the mean of
    |f - true f|, whose distribution over resamples has no such bias.

    Args:
        values, clean, ablated, n_resamples, confidence, seed: values and options, as for
            `interval_of_faithfulness`.
        mean: function that takes a weighted mean of distances [.., size], such as `area`.
    """
    confidence = real("confidence", confidence)
    faithfulness, resampled = _resampled_faithfulness(values, clean, ablated, n_resamples, seed)
    value = float(mean(np.abs(1 - faithfulness)))
    if resampled is None:
        return Interval(value, float("nan"), float("nan"))
    n = values.shape[-1]
    # Resamples of n examples vary as if there were n - 1 of them.
    reach = np.quantile(mean(np.abs(resampled - faithfulness)), confidence) * np.sqrt(n / (n - 1))
    return Interval(value, max(0.0, value - float(reach)), value + float(reach))


def _resampled_faithfulness(
    values: Float[np.ndarray, "*size example"],
    clean: Float[np.ndarray, " example"],
    ablated: Float[np.ndarray, " example"],
    n_resamples: int,
    seed: int,
) -> tuple[Any, Any]:
    """Normalised faithfulness [*size], and its resamples [resample, *size] (None: undefined)."""
    values, clean, ablated = (np.asarray(run, dtype=np.float64) for run in (values, clean, ablated))
    faithfulness = normalised(values.mean(axis=-1), float(clean.mean()), float(ablated.mean()))
    counts = resampled_counts(values.shape[-1], n_resamples, seed) / values.shape[-1]
    base, gap = counts @ ablated, counts @ (clean - ablated)  # [resample]
    in_order = np.sign(gap) == np.sign((clean - ablated).mean())
    if values.shape[-1] < FEWEST or not in_order.all():
        return faithfulness, None
    means = np.moveaxis(values @ counts.T, -1, 0)  # [resample, *size]
    shape = (-1, *[1] * (means.ndim - 1))
    return faithfulness, (means - base.reshape(shape)) / gap.reshape(shape)


def interval_of_means(
    values: Float[np.ndarray, "*size example"],
    measure: Callable[[Any], Any],
    *,
    confidence: float = 0.95,
) -> Interval:
    """Interval for a mean over sizes of means over examples of numbers from 0 to 1.

    This is Student's interval of the logit, whose ends stay within 0 and 1, and which reaches
    further towards the middle if the mean is near an end. It is never narrower than equal examples
    allow: even if all n agree, a fraction q of all examples may differ, where (1 - q)^n is half of
    1 - confidence, and may be 0 or 1. If all examples have 0, or all have 1, this is the interval
    of Clopper and Pearson (1934).

    Args:
        values: values from 0 to 1 of each circuit on each example, such as decisions.
        measure: linear function from means [.., *size] to numbers [..] from 0 to 1.
        confidence: probability that the interval contains the true value.
    """
    confidence = real("confidence", confidence)
    each = np.asarray(measure(np.moveaxis(np.asarray(values, dtype=np.float64), -1, 0)))
    n, value = len(each), float(each.mean())
    if n < FEWEST:
        return Interval(value, float("nan"), float("nan"))
    seen = ((1 - confidence) / 2) ** (1 / n)  # fraction of all examples that are as those seen
    low, high = value * seen, value * seen + 1 - seen
    if min(value, 1 - value) > 1e-12:
        error = each.std(ddof=1) / np.sqrt(n) / (value * (1 - value))
        reach = special.stdtrit(n - 1, (1 + confidence) / 2) * error
        ends = special.expit(special.logit(value) + np.array([-reach, reach]))
        low, high = min(low, float(ends[0])), max(high, float(ends[1]))
    return Interval(value, low, high)


def _percentiles(
    resampled: Float[np.ndarray, " resample"], confidence: float, n_examples: int
) -> tuple[float, float]:
    """Ends of the percentile interval, widened as much as Student's interval (Hesterberg 2015).

    Bootstrap percentiles are too narrow, because they treat the spread of the n examples as known
    and have n instead of n - 1 degrees of freedom. In samples of ten, they would contain the true
    value nine times in ten instead of 95%.
    """
    reach = special.stdtrit(n_examples - 1, (1 + confidence) / 2)
    tail = float(special.ndtr(-reach * np.sqrt(n_examples / (n_examples - 1))))
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return float(low), float(high)


# ---- over tasks ----------------------------------------------------------------------------------


def interval_of_tasks(values: Any, *, confidence: float = 0.95) -> Interval:
    """Student's interval for the mean over tasks, with the tasks as the sample.

    Args:
        values: one number for every task; a single task has no interval.
        confidence: probability that the interval contains the true mean.
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
    """Pseudo-values of the jackknife for a statistic of tasks (Tukey 1958).

    Their mean is the statistic without its first-order bias, and their Student's interval is that
    of the jackknife. Use them for a statistic of pairs of tasks, because the pairs are not
    independent.

    Args:
        statistic: function from the numbers of the kept tasks to the statistic.
        groups: group of every task; tasks of one group are left out together.
    """
    of_task = np.asarray(groups)
    names = list(dict.fromkeys(groups))
    without = np.array([statistic(np.flatnonzero(of_task != name)) for name in names])
    return len(names) * statistic(np.arange(len(of_task))) - (len(names) - 1) * without

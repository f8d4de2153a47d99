"""Ranges of all numbers in the public interface, defined in one place.

A verb passes each number that it is given through `whole` or `real`, with the argument's name.
Numbers of numpy become Python numbers; booleans do not count as numbers; a number out of range is
refused with one line that gives the range.
"""

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeGuard

from eap.runtime.errors import UserError, quoted


@dataclass(frozen=True)
class Range:
    """Range of numbers from `least` to `most`.

    Attributes:
        least, most: ends of the range.
        open: whether both ends are excluded.
        above: whether only `least` is excluded.
    """

    least: float
    most: float
    open: bool = False
    above: bool = False

    def __contains__(self, number: Any) -> bool:
        if self.above:
            return self.least < number <= self.most
        if self.open:
            return self.least < number < self.most
        return self.least <= number <= self.most

    def __str__(self) -> str:
        if self.above:
            return f"above {self.least:,} and at most {self.most:,}"
        if self.open:
            return f"above {self.least:,} and below {self.most:,}"
        return f"from {self.least:,} to {self.most:,}"


COUNT = Range(1, 10**9)
BYTES = Range(1, 2**50)
FRACTION = Range(0, 1, open=True)
SEED = Range(0, 2**32 - 1)
"""Seeds have 32 bits in numpy."""
STEPS = Range(1, 1000)
"""Numbers of integration points; a larger number is probably a typing error."""

ALPHA = 0.05
"""Default significance level."""

RANGES = {
    # Counts.
    "batch_size": COUNT,
    "edges": COUNT,
    "gram_budget": BYTES,
    "head": COUNT,
    "learning_steps": COUNT,
    "memory_budget": BYTES,
    "n": COUNT,
    "n_clusters": COUNT,
    "n_examples": COUNT,
    "n_permutations": Range(1, 10**6),
    "n_random": Range(1, 10**5),
    "n_resamples": Range(2, 10**5),
    "n_subsets": Range(1, 10**5),
    "pairs": COUNT,
    "sample": Range(0, 10**9),
    "size": COUNT,
    "steps": STEPS,
    "top": Range(0, 10**9),
    # Levels, tolerances and other real numbers.
    "alpha": FRACTION,
    "confidence": FRACTION,
    "largest_overlap": FRACTION,
    "p_delete": FRACTION,
    "prices": Range(0, 10**9, open=True),
    "learning_rate": Range(0, 10**9, open=True),
    "temperature": Range(0, 10**9, open=True),
    "tolerance": FRACTION,
    # Seeds.
    "seed": SEED,
}
"""Range of each argument; `learning_steps` is for the argument `steps` of `eap.Recipe`."""


def whole(name: str, value: object, within: Range | None = None) -> int:
    """Check that a value is a whole number in its range, and return it as an int.

    Args:
        name: name of the argument, for the message.
        value: value that was given.
        within: range; None: the range of `name` in `RANGES`.

    Raises:
        UserError: a value that is not a whole number, or that is out of range.
    """
    within = within or RANGES[name]
    if not is_whole(value) or int(value) not in within:
        raise UserError(f"{name} is {shown(value)}; it must be a whole number {within}")
    return int(value)


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value is a whole number, of Python or numpy."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def real(name: str, value: object, within: Range | None = None) -> float:
    """Check that a value is a real number in its range, like `whole`, and return it as a float."""
    within = within or RANGES[name]
    if isinstance(value, bool) or not isinstance(value, Real) or value not in within:
        raise UserError(f"{name} is {shown(value)}; it must be a number {within}")
    return float(value)


def enough_random(n_random: int, alpha: float) -> int:
    """Check that a p-value among `n_random` random circuits can be as low as `alpha`.

    The p-value of the best of n + 1 circuits is 1 / (n + 1).

    Raises:
        UserError: the p-value cannot be as low, or a number is out of range.
    """
    n_random, alpha = whole("n_random", n_random), real("alpha", alpha)
    if 1 / (n_random + 1) > alpha:
        raise UserError(
            f"n_random is {n_random}: no p-value among so few random circuits is below "
            f"{1 / (n_random + 1):.2g}, and alpha is {alpha:.2g}; give at least {_fewest(alpha)}"
        )
    return n_random


def _fewest(alpha: float) -> int:
    n = int(1 / alpha)
    return next(k for k in (n - 1, n, n + 1) if k > 0 and 1 / (k + 1) <= alpha)


def shown(value: object) -> str:
    """Number for a message."""
    if isinstance(value, int) and value.bit_length() > 300:
        return "a number of more than 90 digits"
    return str(value) if isinstance(value, Real) else quoted(value, 60)

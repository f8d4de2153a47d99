"""Recipe of a learned ranking: loss, optimizer, and the sizes drawn in each step."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from eap.runtime.errors import UserError, quoted
from eap.runtime.ranges import RANGES, real, whole

STEPS = {"edge": 5000, "node": 500}
LEARNING_RATES = {"adam": 0.05, "sgd": 3.0}
LOSSES = ("metric", "kl", "faithfulness", "cmd")
SIZES = ("uniform", "log")


@dataclass(frozen=True)
class Recipe:
    """Recipe of a learned ranking (`eap.learn_ranking`): loss, optimizer, steps and sizes.

    Attributes:
        steps: number of optimizer steps; None: 5000 for edges, 500 for nodes.
        loss: quantity to minimise: 'metric' (minus the metric, or the metric itself if low values
            are better); 'kl'; 'faithfulness' (`|1 - f|`, with the faithfulness f of all pairs of a
            step together, normalised by the data set's difference between the clean and the ablated
            model); 'cmd' (mean of `|1 - f|` over the pairs of a step, each normalised by its own
            difference, which counts as at least 1).
        optimizer: 'adam' or 'sgd' (without momentum).
        learning_rate: learning rate; None: 0.05 for adam, 3 for sgd.
        k: distribution of the sizes from 1 to n: 'uniform', or 'log' (uniform in the logarithm).
        pairs: largest number of examples per step; only pairs with the same length and the same
            first difference are run together.
        temperature: temperature T of the masks.
        seed: seed of the sizes and pairs.

    Raises:
        UserError: an unknown name, or a number out of range.

    Example:
        >>> eap.Recipe(steps=500, loss="kl", k="log").optimizer
        'adam'
    """

    steps: int | None = None
    loss: str = "metric"
    optimizer: str = "adam"
    learning_rate: float | None = None
    k: str = "uniform"
    pairs: int = 1
    temperature: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "learning_rate"):
            if getattr(self, name) is not None:
                self._check(name)
        for name in ("pairs", "seed", "temperature"):
            self._check(name)
        for name, known in (("loss", LOSSES), ("optimizer", LEARNING_RATES), ("k", SIZES)):
            word_of(name, getattr(self, name), known)

    def _check(self, name: str) -> None:
        """Convert a number to a Python number, and check its range."""
        within = RANGES["learning_steps" if name == "steps" else name]
        number = real if name in ("learning_rate", "temperature") else whole
        object.__setattr__(self, name, number(name, getattr(self, name), within))

    def complete(self, level: str) -> "Recipe":
        """The recipe with all numbers filled in for 'edge' or 'node'.

        Raises:
            UserError: an unknown level.
        """
        word_of("level", level, STEPS)
        rate = LEARNING_RATES[self.optimizer] if self.learning_rate is None else self.learning_rate
        steps = STEPS[level] if self.steps is None else self.steps
        return replace(self, steps=steps, learning_rate=rate)

    def draw(self, step: int, n: int, sizes: Sequence[int]) -> tuple[int, float]:
        """Draw the batch that a step runs, and the number of edges or nodes that it keeps.

        The probability of a batch is proportional to its number of pairs (`sizes`).

        The draw depends on the seed and the step alone, so that a run can resume at any step.
        """
        source = np.random.default_rng([self.seed, step])
        pair = int(source.integers(sum(sizes)))
        batch = int(np.searchsorted(np.cumsum(sizes), pair, side="right"))
        if self.k == "uniform":
            return batch, float(source.integers(1, n + 1))
        return batch, float(np.exp(source.uniform(0.0, np.log(n))))


def word_of(name: str, word: object, known: Iterable[str]) -> None:
    """Check that a word is among the known ones.

    Raises:
        UserError: an unknown word.
    """
    if word not in list(known):
        raise UserError(f"unknown {name} {quoted(str(word))}; known are {', '.join(known)}")

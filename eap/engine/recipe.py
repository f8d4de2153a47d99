"""How a ranking is learned: loss, optimizer, and the sizes that steps draw."""

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
    """Recipe of a learned ranking: loss, optimizer, steps and sizes (`eap.learn_ranking`).

    Attributes:
        steps: steps of the optimizer; None: 5000 for edges, 500 for nodes.
        loss: 'metric' (minus the metric, or the metric itself where low is better); 'kl';
            'faithfulness': `|1 - f|`, f of a step's pairs together, over the data set's difference
            between the clean and the ablated model; 'cmd': the mean of `|1 - f|` of a step's pairs,
            each over its own difference, which counts as at least 1.
        optimizer: 'adam' or 'sgd' (no momentum).
        learning_rate: None: 0.05 for adam, 3 for sgd.
        k: distribution of the sizes, from 1 to n: 'uniform', or 'log' (uniform in the logarithm).
        pairs: examples per step, at the most; those of one length and first difference go together.
        temperature: T of the masks.
        seed: seed of sizes and pairs.

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
        """Make a number Python's, if it is in its range."""
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
        """Which batch a step runs, each as likely as it has pairs (`sizes`), and how many are kept.

        Depends on the seed and the step alone, so that a run can go on from any step.
        """
        source = np.random.default_rng([self.seed, step])
        pair = int(source.integers(sum(sizes)))
        batch = int(np.searchsorted(np.cumsum(sizes), pair, side="right"))
        if self.k == "uniform":
            return batch, float(source.integers(1, n + 1))
        return batch, float(np.exp(source.uniform(0.0, np.log(n))))


def word_of(name: str, word: object, known: Iterable[str]) -> None:
    """Check a word against those that are known.

    Raises:
        UserError: it is none of them.
    """
    if word not in list(known):
        raise UserError(f"unknown {name} {quoted(str(word))}; known are {', '.join(known)}")

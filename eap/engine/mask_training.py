"""How `eap.learning` learns: masks that add up to a size, gradients through them, and the steps."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from eap.ablation import Ablation
from eap.data.dataset import Dataset
from eap.engine.prepared import PreparedBatch, Work
from eap.engine.soft_runs import demand_of_masks, run_soft_circuit
from eap.errors import UserError, quoted
from eap.graph import GraphConfig
from eap.graph.contents import edge_exists
from eap.metrics.metric import Metric, Predictions
from eap.model.model import Model
from eap.runtime import distributed
from eap.runtime.checkpoint import Checkpoint
from eap.runtime.memory import Budget
from eap.runtime.progress import progress_bar
from eap.runtime.ranges import RANGES, real, whole
from eap.runtime.resources import Resources

STEPS = {"edge": 5000, "node": 500}
LEARNING_RATES = {"adam": 0.05, "sgd": 3.0}
LOSSES = ("metric", "kl", "faithfulness")
SIZES = ("uniform", "log")

SHOWN = 100
"""Progress is shown as the mean loss of this many steps."""


@dataclass(frozen=True)
class Recipe:
    """How a ranking is learned; see `learn_ranking`."""

    level: str
    loss: str
    optimizer: str
    learning_rate: float
    k: str
    steps: int
    pairs: int
    temperature: float
    seed: int

    def checked(self) -> "Recipe":
        """The recipe with Python's own numbers, if all names are known and numbers in range.

        Raises:
            UserError: says which is not.
        """
        names = {"level": STEPS, "loss": LOSSES, "optimizer": LEARNING_RATES, "k": SIZES}
        for name, known in names.items():
            value = getattr(self, name)
            if value not in tuple(known):
                raise UserError(
                    f"unknown {name} {quoted(str(value))}; known are {', '.join(known)}"
                )
        return replace(
            self,
            steps=whole("steps", self.steps, RANGES["learning_steps"]),
            pairs=whole("pairs", self.pairs),
            seed=whole("seed", self.seed),
            learning_rate=real("learning_rate", self.learning_rate),
            temperature=real("temperature", self.temperature),
        )

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


# ---- masks ---------------------------------------------------------------------------------------


def find_threshold(scores: Float64[Tensor, " n"], k: float, temperature: float) -> float:
    """The tau at which the masks sigmoid((scores - tau) / temperature) add up to `k`.

    Bisection, by Newton's step where that stays inside the bracket. Where `k` is nearly 0 or nearly
    all, masks of 1e-17 stand for nothing.
    """
    reach = 40 * temperature
    low, high = float(scores.min()) - reach, float(scores.max()) + reach
    tau = float(scores.mean()) + temperature * float(np.log(max(len(scores) - k, 1e-12) / k))
    for _ in range(200):
        if not low < tau < high:
            tau = (low + high) / 2
        masks = ((scores - tau) / temperature).sigmoid()
        excess = float(masks.sum()) - k
        if excess > 0:
            low = tau
        else:
            high = tau
        if abs(excess) <= 1e-12 * k or high - low <= 1e-15 * max(1.0, abs(low), abs(high)):
            break
        slope = float((masks * (1 - masks)).sum()) / temperature
        tau = tau + excess / slope if slope > 0 else low
    return tau


def make_masks(
    scores: Float64[Tensor, " n"], k: float, temperature: float
) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " n"]]:
    """The masks that add up to `k`, and a = m (1 - m)."""
    x = (scores - find_threshold(scores, k, temperature)) / temperature
    masks = x.sigmoid()
    return masks, masks * (-x).sigmoid()


def gradient_of_scores(
    gradient: Float64[Tensor, " n"], slopes: Float64[Tensor, " n"], temperature: float
) -> Float64[Tensor, " n"]:
    """dL/ds from dL/dm and a = m (1 - m), the threshold's own change included."""
    total = slopes.sum()
    if total == 0:  # all masks are 0 or 1
        return torch.zeros_like(gradient)
    return slopes / temperature * (gradient - gradient @ slopes / total)


# ---- training ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class State:
    """What changes from step to step, in one tensor, which is what a checkpoint keeps."""

    totals: Float64[Tensor, " n_numbers"]
    n: int

    @classmethod
    def start(cls, n: int, steps: int) -> "State":
        """Before the first of `steps` steps, with `n` scores."""
        return cls(torch.zeros(3 * n + steps, dtype=torch.float64), n)

    @cached_property
    def scores(self) -> Float64[Tensor, " n"]:
        """What is learned."""
        return self.totals[: self.n]

    @cached_property
    def averages(self) -> Float64[Tensor, "2 n"]:
        """Adam's, of gradients and of their squares."""
        return self.totals[self.n : 3 * self.n].view(2, self.n)

    @cached_property
    def losses(self) -> Float64[Tensor, " step"]:
        """Of every step so far, then zeros."""
        return self.totals[3 * self.n :]

    def descend(self, gradient: Float64[Tensor, " n"], recipe: Recipe, step: int) -> None:
        """One step of the optimizer; `step` counts from 0."""
        if recipe.optimizer == "sgd":
            self.scores.sub_(recipe.learning_rate * gradient)
            return
        first, second = self.averages
        first.lerp_(gradient, 0.1)
        second.lerp_(gradient.square(), 0.001)
        mean, square = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
        self.scores.sub_(recipe.learning_rate * mean / (square.sqrt() + 1e-8))


@dataclass(frozen=True, eq=False)
class Training:
    """What stays the same from step to step.

    Attributes:
        work: the examples; its batches are what steps draw.
        recipe: how to learn.
        places: of the scores, in the masks [n_forward, n_backward] laid flat; or the nodes.
        difference: of the metric between the clean and the ablated model (1 where not needed).
        batch_size: examples that run together at the most.
        kept: batches whose prefix, clean and ablated runs are kept.
    """

    work: Work
    recipe: Recipe
    places: Int[Tensor, " n"]
    difference: float
    batch_size: int
    kept: "Kept"

    @classmethod
    def plan(
        cls,
        model: Model,
        dataset: Dataset,
        metric: Metric,
        ablation: Ablation,
        config: GraphConfig,
        recipe: Recipe,
        limits: Resources,
        checkpoint: Checkpoint | None,
        difference: float,
    ) -> "Training":
        """Cut the examples into the batches of steps."""
        budget = Budget.of(model.device, limits.memory_budget).n_bytes
        half = replace(
            limits, memory_budget=max(1, budget // 2)
        )  # the other half is for what is kept
        demand = demand_of_masks(config)
        batch_size = limits.batch_size
        if batch_size is None and checkpoint is not None:  # what free memory allowed then
            batch_size = checkpoint.setting("batch_size")
        if batch_size is None:
            batch_size = Work.plan(
                model, dataset, [metric], ablation, config, half, demand
            ).batch_size
        of_steps = replace(half, batch_size=recipe.pairs)
        work = Work.plan(model, dataset, [metric], ablation, config, of_steps, demand)
        if recipe.level == "edge":
            places = edge_exists(config).flatten().nonzero().flatten()
        else:
            places = torch.arange(1, config.n_forward)
        with_clean = metric.reads_clean or recipe.loss == "faithfulness"
        return cls(
            work, recipe, places, difference, batch_size, Kept(budget // 2, with_clean=with_clean)
        )

    def run(self, state: State, checkpoint: Checkpoint | None, *, quiet: bool) -> None:
        """All steps that the checkpoint does not have."""
        recipe, done = self.recipe, 0
        saves = checkpoint is not None and distributed.is_first()
        if checkpoint is not None:
            done = self._resume(state, checkpoint)
        sizes = [len(rows) for rows in self.work.rows_of]
        step = done

        def note() -> str:
            recent = state.losses[max(0, step + 1 - SHOWN) : step + 1]
            return f"loss {float(recent.mean()):.4f}"

        name = f"MAttr {self.work.metrics[0].name}"
        steps = range(done, recipe.steps)
        for step in progress_bar(steps, name, quiet=quiet, done=done, note=note):
            number, k = recipe.draw(step, state.n, sizes)
            loss, gradient = self.gradient(state.scores, k, self.work.rows_of[number])
            state.losses[step] = loss
            state.descend(gradient, recipe, step)
            if checkpoint is not None and saves:
                checkpoint.save(state.totals, step + 1)

    @staticmethod
    def _resume(state: State, checkpoint: Checkpoint) -> int:
        """Every process goes on from what the first has kept: they work on every step together."""
        done = torch.zeros(1, dtype=torch.float64)
        if distributed.is_first():
            done += checkpoint.resume(state.totals)
        distributed.sum_over_processes(state.totals)
        return int(distributed.sum_over_processes(done))

    def gradient(
        self, scores: Float64[Tensor, " n"], k: float, rows: Sequence[int]
    ) -> tuple[float, Float64[Tensor, " n"]]:
        """The loss of some examples at the masks that add up to `k`, and its gradient."""
        recipe, config = self.recipe, self.work.config
        masks, slopes = make_masks(scores, k, recipe.temperature)
        full = torch.zeros(config.n_forward, config.n_backward, dtype=torch.float64)
        if recipe.level == "edge":
            full.view(-1)[self.places] = masks
        else:
            full[0], full[1:] = 1.0, masks[:, None]
        value, target, of_masks = self._measure(full, rows)
        if recipe.level == "edge":
            of_scores = of_masks.view(-1)[self.places]
        else:
            of_scores = of_masks[1:].sum(1)
        if not np.isfinite(value):
            raise UserError(f"metric {self.work.metrics[0].name!r} is {value} on example {rows[0]}")
        loss, factor = self._loss(value, target)
        return loss, gradient_of_scores(factor * of_scores, slopes, recipe.temperature)

    def _loss(self, value: float, target: float) -> tuple[float, float]:
        """The loss where the metric is `value` (and `target` in the clean run), its derivative."""
        if self.recipe.loss == "faithfulness":
            distance, scale = value - target, abs(self.difference)
            return abs(distance) / scale, float(np.sign(distance)) / scale
        direction = -1.0 if self.work.metrics[0].direction("learned rankings") else 1.0
        return direction * value, direction

    def _measure(
        self, masks: Float64[Tensor, "n_forward n_backward"], rows: Sequence[int]
    ) -> tuple[float, float, Float64[Tensor, "n_forward n_backward"]]:
        """Means of the metric and (where used) of the clean run's, and the mean gradient."""
        model, metric = self.work.model, self.work.metrics[0]
        gradient, sums = torch.zeros_like(masks), torch.zeros(2, dtype=torch.float64)
        shares = distributed.own_share(rows)
        for first in range(0, len(shares), self.batch_size):
            ready = self.kept.get(self.work, tuple(shares[first : first + self.batch_size]))
            with torch.enable_grad():
                leaf = masks.to(model.device, model.residual_dtype).requires_grad_()
                final = run_soft_circuit(model, leaf, ready.batch)
                predictions = Predictions(ready.batch.unembed(final), ready.clean)
                values = metric.measure(predictions, ready.batch.answers)
                if not values.requires_grad:
                    raise UserError(
                        f"metric {metric.name!r} has no gradient (it counts, compares or "
                        "detaches), so nothing can be learned from it"
                    )
                (of_batch,) = torch.autograd.grad(values.sum(), leaf)
            gradient += of_batch.cpu()
            sums[0] += float(values.detach().sum())
            if self.recipe.loss == "faithfulness" and ready.clean is not None:
                sums[1] += float(metric.measure(ready.clean, ready.batch.answers).sum())
        distributed.sum_over_processes(gradient)
        distributed.sum_over_processes(sums)
        value, target = (sums / len(rows)).tolist()
        return value, target, gradient / len(rows)


# ---- batches that are kept -----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Ready:
    """A batch whose ablated run is made, and what its clean run predicts where that is used."""

    batch: PreparedBatch
    clean: Predictions | None


class Kept:
    """Batches with their prefix, clean and ablated runs, as many as fit: steps come back to them.

    Attributes:
        left: bytes that may still be filled.
        with_clean: make the clean run.
    """

    def __init__(self, budget: int, *, with_clean: bool) -> None:
        """Keep at most `budget` bytes."""
        self.left, self.with_clean = budget, with_clean
        self._batches: dict[tuple[int, ...], Ready] = {}

    @torch.no_grad()
    def get(self, work: Work, rows: tuple[int, ...]) -> Ready:
        """The batch of some examples."""
        if rows in self._batches:
            return self._batches[rows]
        batch = work.load(rows)
        parts: list[object] = [batch.cache, batch.ablated_run, batch.clean, batch.ablated]
        clean = None
        if self.with_clean:
            clean = Predictions(batch.unembed(batch.run_clean()[:, 0]))
            parts += [clean.logits, clean.exponentials, clean.probabilities]
        ready = Ready(batch, clean)
        size = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(parts))
        if size <= self.left:
            self.left -= size
            self._batches[rows] = ready
        return ready


def _tensors(thing: object) -> Iterator[Tensor]:
    """All tensors in a nest of dataclasses and sequences."""
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, list | tuple):
        for part in thing:
            yield from _tensors(part)
    elif is_dataclass(thing):
        for part in fields(thing):
            yield from _tensors(getattr(thing, part.name))

"""Learning of rankings: masks that sum to a size, gradients through them, and optimizer steps."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property, partial

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from eap.ablation import Ablation
from eap.data.dataset import Dataset
from eap.engine.prepared import PreparedBatch, Work, demand_of_gradients
from eap.engine.recipe import Recipe
from eap.engine.soft_runs import run_soft_circuit
from eap.graph import Graph, GraphConfig
from eap.graph.contents import edge_exists
from eap.metrics.metric import Metric, Predictions
from eap.model.devices import float64_device
from eap.model.model import Model
from eap.runtime import distributed
from eap.runtime.checkpoint import Checkpoint
from eap.runtime.errors import UserError
from eap.runtime.memory import Budget
from eap.runtime.progress import progress_bar
from eap.runtime.resources import Resources

SHOWN = 100
"""Number of steps over which progress shows the mean loss."""


# ---- masks ---------------------------------------------------------------------------------------


def find_threshold(scores: Float64[Tensor, " n"], k: float, temperature: float) -> float:
    """The threshold tau at which the masks sigmoid((scores - tau) / temperature) sum to `k`.

    The search is Newton's method, with bisection for steps that leave the bracket. If `k` is nearly
    0 or nearly n, masks of about 1e-17 are negligible.
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
    """Masks that sum to `k`, and their slopes a = m (1 - m)."""
    x = (scores - find_threshold(scores, k, temperature)) / temperature
    masks = x.sigmoid()
    return masks, masks * (-x).sigmoid()


def gradient_of_scores(
    gradient: Float64[Tensor, " n"], slopes: Float64[Tensor, " n"], temperature: float
) -> Float64[Tensor, " n"]:
    """dL/ds from dL/dm and a = m (1 - m), including the change of the threshold."""
    total = slopes.sum()
    if total == 0:  # all masks are 0 or 1
        return torch.zeros_like(gradient)
    return slopes / temperature * (gradient - gradient @ slopes / total)


# ---- training ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class State:
    """State that changes from step to step, in one tensor, so that a checkpoint can keep it."""

    totals: Float64[Tensor, " n_numbers"]
    n: int

    @classmethod
    def start(cls, n: int, steps: int) -> "State":
        """State before the first of `steps` steps, with `n` scores."""
        return cls(torch.zeros(3 * n + steps, dtype=torch.float64), n)

    @cached_property
    def scores(self) -> Float64[Tensor, " n"]:
        """Learned scores."""
        return self.totals[: self.n]

    @cached_property
    def averages(self) -> Float64[Tensor, "2 n"]:
        """Running averages of Adam, of gradients and of their squares."""
        return self.totals[self.n : 3 * self.n].view(2, self.n)

    @cached_property
    def losses(self) -> Float64[Tensor, " step"]:
        """Losses of the steps so far, followed by zeros."""
        return self.totals[3 * self.n :]

    def descend(self, gradient: Float64[Tensor, " n"], recipe: Recipe, step: int) -> None:
        """Take one step of the optimizer; `step` counts from 0."""
        rate = recipe.learning_rate
        assert rate is not None  # the recipe is complete
        if recipe.optimizer == "sgd":
            self.scores.sub_(rate * gradient)
            return
        first, second = self.averages
        first.lerp_(gradient, 0.1)
        second.lerp_(gradient.square(), 0.001)
        mean, square = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
        self.scores.sub_(rate * mean / (square.sqrt() + 1e-8))


@dataclass(frozen=True, eq=False)
class MaskLayout:
    """The order of the masks: one for every edge, or for every node but the input, at each span.

    Attributes:
        config: shape of the graph.
        level: 'edge' or 'node'.
        span_names: names of the spans; empty if a mask holds for the whole prompt.
    """

    config: GraphConfig
    level: str
    span_names: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the masks of all edges: [*span, n_forward, n_backward]."""
        spans = [len(self.span_names)] if self.span_names else []
        return (*spans, self.config.n_forward, self.config.n_backward)

    @cached_property
    def places(self) -> Int[Tensor, " n"]:
        """Indices in the flattened masks of all edges; for nodes, in [*span, n_forward]."""
        n_spans, n_forward = max(1, len(self.span_names)), self.config.n_forward
        if self.level == "edge":
            return edge_exists(self.config).repeat(n_spans, 1).flatten().nonzero().flatten()
        return torch.arange(n_spans * n_forward).view(n_spans, -1)[:, 1:].flatten()

    def at_edges(
        self, masks: Float64[Tensor, " n"]
    ) -> Float64[Tensor, "*span n_forward n_backward"]:
        """Masks of all edges; at level "node", those of their senders, with 1 for the input."""
        full = torch.zeros(self.shape, dtype=torch.float64)
        if self.level == "edge":
            full.view(-1)[self.places] = masks
        else:
            by_node = full.view(-1, self.config.n_backward)
            by_node[:] = 1.0
            by_node[self.places] = masks[:, None]
        return full

    def gradient(
        self, at_edges: Float64[Tensor, "*span n_forward n_backward"]
    ) -> Float64[Tensor, " n"]:
        """Gradient of the masks, from that of the masks of all edges."""
        if self.level == "edge":
            return at_edges.view(-1)[self.places]
        return at_edges.view(-1, self.config.n_backward)[self.places].sum(1)

    def to_graph(self, scores: Float[Tensor, " n"]) -> Graph:
        """Graph with the scores, one per mask; without scores of nodes, edges have NaN."""
        graph = Graph.from_config(self.config, self.span_names)
        if self.level == "node":
            nodes = torch.full(self.shape[:-1], torch.nan, dtype=scores.dtype)
            nodes.view(-1)[self.places] = scores
            return replace(
                graph, scores=torch.full_like(graph.scores, torch.nan), node_scores=nodes
            )
        of_edges = torch.zeros(self.shape, dtype=scores.dtype)
        of_edges.view(-1)[self.places] = scores
        return replace(graph, scores=of_edges)


@dataclass(frozen=True, eq=False)
class Training:
    """Quantities that stay the same from step to step.

    Attributes:
        work: examples, in the batches that steps draw.
        recipe: complete recipe: loss, optimizer and steps.
        layout: order of the masks.
        prices: price of each mask, which is added to the loss in proportion to the mask.
        difference: difference of the metric between the clean and the ablated model (1 where not
            needed).
        batch_size: largest number of examples that run together.
        kept: batches whose prefix, clean and ablated runs are kept.
    """

    work: Work
    recipe: Recipe
    layout: MaskLayout
    prices: Float64[Tensor, " n"] | None
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
        layout: MaskLayout,
        recipe: Recipe,
        limits: Resources,
        *,
        prices: Float[Tensor, "*span n_forward n_backward"] | None = None,
        difference: float = 1.0,
    ) -> "Training":
        """Divide the examples into the batches of the steps."""
        budget = Budget.of(model.device, limits.memory_budget).n_bytes
        # the other half is for what is kept
        half = replace(limits, memory_budget=max(1, budget // 2))
        n_spans = len(layout.span_names)
        demand = demand_of_gradients("a soft circuit", layout.config, n_spans=n_spans)
        plan = partial(Work.plan, model, dataset, [metric], ablation, layout.config, demand=demand)
        batch_size = limits.batch_size or plan(limits=half).batch_size
        work = plan(limits=replace(half, batch_size=recipe.pairs))
        if prices is not None:
            prices = prices.detach().cpu().double().flatten()[layout.places]
        kept = Kept(budget // 2, baselines=recipe.loss in ("faithfulness", "cmd"))
        return cls(work, recipe, layout, prices, difference, batch_size, kept)

    def run(self, state: State, checkpoint: Checkpoint | None, *, quiet: bool) -> None:
        """Run all steps that the checkpoint does not have."""
        recipe, done = self.recipe, 0
        assert recipe.steps is not None
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
        """Resume every process from the state of the first, because all work on every step."""
        done = torch.zeros(1, dtype=torch.float64)
        if distributed.is_first():
            done += checkpoint.resume(state.totals)
        distributed.sum_over_processes(state.totals)
        return int(distributed.sum_over_processes(done))

    def gradient(
        self, scores: Float64[Tensor, " n"], k: float, rows: Sequence[int]
    ) -> tuple[float, Float64[Tensor, " n"]]:
        """Loss of some examples with masks that sum to `k`, and its gradient."""
        temperature = self.recipe.temperature
        masks, slopes = make_masks(scores, k, temperature)
        value, target, at_edges = self._measure(self.layout.at_edges(masks), rows)
        if not np.isfinite(value):
            raise UserError(f"metric {self.work.metrics[0].name!r} is {value} on example {rows[0]}")
        loss, factor = self._loss(value, target)
        gradient = factor * self.layout.gradient(at_edges)
        if self.prices is not None:
            loss, gradient = loss + float(self.prices @ masks), gradient + self.prices
        return loss, gradient_of_scores(gradient, slopes, temperature)

    @property
    def direction(self) -> float:
        """1 if low values of the metric are better, else -1."""
        return -1.0 if self.work.metrics[0].higher_is_better else 1.0

    def _loss(self, value: float, target: float) -> tuple[float, float]:
        """Loss of a step with the mean `value` (`target` in the clean run), and its derivative."""
        if self.recipe.loss == "cmd":  # `value` is a mean of distances already
            return value, 1.0
        if self.recipe.loss == "faithfulness":
            distance, scale = value - target, abs(self.difference)
            return abs(distance) / scale, float(np.sign(distance)) / scale
        return self.direction * value, self.direction

    def _distances(
        self, values: Float[Tensor, " batch"], baselines: Float[Tensor, "2 batch"]
    ) -> Float[Tensor, " batch"]:
        """|1 - f| of every example, normalised by its own difference, which is at least 1."""
        clean, ablated = baselines
        return (values - clean).abs() / (self.direction * (ablated - clean)).clamp(min=1.0)

    def _measure(
        self, masks: Float64[Tensor, "*span n_forward n_backward"], rows: Sequence[int]
    ) -> tuple[float, float, Float64[Tensor, "*span n_forward n_backward"]]:
        """Means of the metric in the circuit and (if used) in the clean run, and the mean gradient.

        For the loss 'cmd', the first mean is that of the distances |1 - f|.
        """
        model, metric = self.work.model, self.work.metrics[0]
        home = float64_device(model.device)
        gradient = torch.zeros_like(masks, device=home)
        sums = torch.zeros(2, dtype=torch.float64, device=home)
        own_rows = distributed.own_items(rows)
        for first in range(0, len(own_rows), self.batch_size):
            ready = self.kept.get(self.work, tuple(own_rows[first : first + self.batch_size]))
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
                if self.recipe.loss == "cmd" and ready.baselines is not None:
                    values = self._distances(values, ready.baselines)
                (of_batch,) = torch.autograd.grad(values.sum(), leaf)
            gradient += of_batch.to(home)
            sums[0] += values.detach().sum().to(home)
            if ready.baselines is not None:
                sums[1] += ready.baselines[0].sum().to(home)
        gradient = distributed.sum_over_processes(gradient.cpu())
        sums = distributed.sum_over_processes(sums.cpu())
        value, target = (sums / len(rows)).tolist()
        return value, target, gradient / len(rows)


# ---- kept batches --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Ready:
    """Batch with its ablated run.

    Attributes:
        batch: batch of examples.
        clean: predictions of the clean run, if they are read.
        baselines: metric of the clean and of the ablated run, if the loss reads them.
    """

    batch: PreparedBatch
    clean: Predictions | None
    baselines: Float[Tensor, "2 batch"] | None


class Kept:
    """Cache of batches with their prefix, clean and ablated runs, for as many as fit.

    Attributes:
        left: number of bytes that are free.
        baselines: whether to measure the clean and the ablated run.
    """

    def __init__(self, budget: int, *, baselines: bool) -> None:
        """Keep at most `budget` bytes."""
        self.left, self.baselines = budget, baselines
        self._batches: dict[tuple[int, ...], Ready] = {}

    @torch.no_grad()
    def get(self, work: Work, rows: tuple[int, ...]) -> Ready:
        """Batch of the given examples, from the cache or newly run."""
        if rows in self._batches:
            return self._batches[rows]
        batch, metric = work.load(rows), work.metrics[0]
        clean = baselines = None
        parts: list[object] = [batch.cache, batch.ablated_run, batch.clean, batch.ablated]
        if self.baselines or metric.reads_clean:
            clean = Predictions(batch.unembed(batch.run_clean()[:, 0]))
            parts += [clean.logits, clean.exponentials, clean.probabilities]
            if self.baselines:
                ablated = Predictions(batch.unembed(batch.ablated_run.final[:, 0]), clean)
                runs = (clean, ablated)
                baselines = torch.stack([metric.measure(run, batch.answers) for run in runs])
        ready = Ready(batch, clean, baselines)
        size = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(parts))
        if size <= self.left:
            self.left -= size
            self._batches[rows] = ready
        return ready


def _tensors(thing: object) -> Iterator[Tensor]:
    """All tensors in nested dataclasses and sequences."""
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, list | tuple):
        for part in thing:
            yield from _tensors(part)
    elif is_dataclass(thing):
        for part in fields(thing):
            yield from _tensors(getattr(thing, part.name))

"""Preparation common to all verbs: checking examples, making batches, and preparing their runs.

Checks, batch size, the rows of each process, the prefix cache, embeddings, positions, answers and
the ablated run are made here once, for attribution, exact patching and evaluation.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil

import torch
from jaxtyping import Float, Int
from torch import Tensor

from eap.ablation import AblatedRun, Ablation
from eap.data.answers import Answers
from eap.data.batches import (
    Batch,
    check_dataset,
    check_pairs,
    group_examples,
    load_batch,
    one_group,
    plan_batches,
)
from eap.data.dataset import Dataset
from eap.engine.span_layout import SpanLayout
from eap.graph import GraphConfig
from eap.metrics.metric import Metric, check_answer_sets
from eap.model.model import Model
from eap.model.prefix import PrefixCache
from eap.model.rules import EXACT, BackwardRules
from eap.model.runs import LayerTrace, run_layers, run_prefix
from eap.model.shapes import shapes_of
from eap.runtime import distributed, processes
from eap.runtime.errors import UserError
from eap.runtime.memory import Budget, Extent, Need, Shapes, attribution_need
from eap.runtime.progress import progress_bar
from eap.runtime.resources import Resources


@dataclass(frozen=True)
class Demand:
    """Memory that a verb needs.

    Attributes:
        what: name of the work, for messages.
        need: function from the sizes of the model, the size of the batch and the number of
            unembedded columns to the memory of one example.
        n_results: number of values that the verb accumulates over all batches.
        n_observed: number of further bytes that observers take.
    """

    what: str
    need: Callable[[Shapes, Extent, int], Need]
    n_results: int
    n_observed: int = 0


def demand_of_gradients(
    what: str, config: GraphConfig, *, n_points: int = 1, n_spans: int = 0, n_observed: int = 0
) -> Demand:
    """Memory of gradients at all receivers for some points at once, and of a score per edge."""
    n_spans = max(1, n_spans)

    def need(shapes: Shapes, extent: Extent, n_columns: int) -> Need:
        return attribution_need(shapes, extent, n_points, n_columns, n_spans)

    return Demand(what, need, n_spans * config.n_forward * config.n_backward, n_observed)


@dataclass(frozen=True, eq=False)
class Work:
    """Work of a verb over a data set.

    Attributes:
        model, dataset, metrics, ablation: arguments of the verb.
        config: shape of the graph.
        rows_of: rows of the data set in each batch (of all processes).
        budget: memory budget.
        demand: memory that the verb needs.
        n_columns: number of columns of the vocabulary that are unembedded.
        without_gradient: examples of each run with a gradient, and a mask of those whose gradient
            is not finite.
    """

    model: Model
    dataset: Dataset
    metrics: tuple[Metric, ...]
    ablation: Ablation
    config: GraphConfig
    rows_of: list[tuple[int, ...]]
    budget: Budget
    demand: Demand
    n_columns: int
    without_gradient: list[tuple[tuple[int, ...], Tensor]] = field(default_factory=list)

    @classmethod
    def plan(
        cls,
        model: Model,
        dataset: Dataset,
        metrics: Sequence[Metric],
        ablation: Ablation,
        config: GraphConfig,
        limits: Resources,
        demand: Demand,
    ) -> "Work":
        """Divide the data set into batches.

        Args:
            limits: batch size and memory budget.
            demand: memory that the verb needs.

        Raises:
            UserError: examples that this model cannot run (see `check_dataset`), or an example
                that does not fit in the memory.
        """
        check_dataset(model, dataset)
        examples, shapes = dataset.examples, shapes_of(model)
        if ablation.has_pair:
            check_pairs(dataset, f"{ablation.name} ablation")
        check_answer_sets(metrics, examples)
        n_columns = shapes.d_vocab
        if metrics and all(metric.answers_only for metric in metrics):
            answers = {token for e in examples for token in (*e.correct, *e.incorrect)}
            n_columns = len(answers)
        # Moments take three float64 values each, and the scores and masks made of them two more.
        budget = Budget.of(
            model.device, limits.memory_budget, reserved=40 * demand.n_results + demand.n_observed
        )
        batch_size = limits.batch_size
        if batch_size is None:
            groups = group_examples(examples, ablation.start)
            extents = [Extent(len(g.rows), g.n_positions, g.end) for g in groups]
            batch_size = budget.batch_size(
                extents, lambda extent: demand.need(shapes, extent, n_columns), demand.what
            )
            # Otherwise, examples of one length would be one batch, and other processes idle.
            batch_size = min(batch_size, ceil(len(examples) / processes.count()))
        rows_of = plan_batches(examples, batch_size, ablation.start)
        return cls(
            model, dataset, tuple(metrics), ablation, config, rows_of, budget, demand, n_columns
        )

    @property
    def batch_size(self) -> int:
        """Number of examples of the largest batch."""
        return max(len(rows) for rows in self.rows_of)

    def batches(self, what: str, *, quiet: bool) -> Iterator["PreparedBatch"]:
        """This process's batches, with a progress bar."""
        for rows in progress_bar(distributed.own_items(self.rows_of), what, quiet=quiet):
            yield self.load(rows)

    def extent(self, number: int) -> Extent:
        """Size of the batch with this number."""
        examples = self.dataset.examples
        group = one_group([examples[row] for row in self.rows_of[number]], self.ablation.start)
        return Extent(len(group.rows), group.n_positions, group.end)

    def runs_at_once(self, extent: Extent) -> int:
        """Number of runs of a batch that may be stacked."""
        return self.budget.runs_at_once(extent, self._need(extent), self.demand.what)

    def n_bytes(self) -> int:
        """Memory of the largest batch, not counting the weights."""
        extents = {self.extent(number) for number in range(len(self.rows_of))}
        return max(
            self.budget.bytes_of(extent, self._need(extent), self.runs_at_once(extent))
            for extent in extents
        )

    def _need(self, extent: Extent) -> Need:
        return self.demand.need(shapes_of(self.model), extent, self.n_columns)

    def load(self, rows: Sequence[int]) -> "PreparedBatch":
        """Load one batch, and run its prefix."""
        model = self.model
        batch = load_batch(self.dataset.examples, rows, model.device, self.ablation.start)
        cache = run_prefix(model, batch.prefix, batch.last, batch.n_positions)
        token_ids, answers = None, batch.answers
        if self.metrics and all(metric.answers_only for metric in self.metrics):
            token_ids, answers = answers.token_ids, answers.among_themselves()
        return PreparedBatch(self, batch, cache, answers, token_ids)


@dataclass(frozen=True, eq=False)
class PreparedBatch:
    """Batch whose prefix has been run.

    Attributes:
        work: work that the batch belongs to.
        batch: tokens of the batch.
        cache: keys and values of the prefix.
        answers: answers, as numbers of the unembedded columns.
        token_ids: token ids of the unembedded columns; None: the whole vocabulary.
    """

    work: Work
    batch: Batch
    cache: PrefixCache
    answers: Answers
    token_ids: Int[Tensor, " n_tokens"] | None

    def __len__(self) -> int:
        return len(self.batch)

    @property
    def rows(self) -> tuple[int, ...]:
        """Index of each example in the data set."""
        return self.batch.rows

    @property
    def extent(self) -> Extent:
        """Sizes of the batch."""
        return Extent(len(self.batch), self.cache.n_positions, self.cache.end)

    @cached_property
    def layout(self) -> SpanLayout:
        """Layout of the batch's positions in the spans of the data set."""
        starts = [self.work.dataset.examples[row].spans for row in self.rows]
        return SpanLayout.of(torch.tensor(starts), self.cache)

    @cached_property
    def positions(self) -> Float[Tensor, "pos d_model"] | float:
        """Position embeddings; 0.0 if the model has none."""
        return self.work.model.position_embedding(self.cache.start, self.cache.n_positions)

    @cached_property
    def clean(self) -> Float[Tensor, "batch pos d_model"]:
        """Token embeddings of the clean prompts."""
        return self.work.model.embed(self.batch.clean)

    @cached_property
    def ablated(self) -> Float[Tensor, "batch pos d_model"]:
        """Output of the input node when it is ablated."""
        return self.work.ablation.embedding(self.work.model, self.batch)

    @cached_property
    def ablated_run(self) -> AblatedRun:
        """Run in which all edges are ablated."""
        ablation = self.work.ablation
        run = ablation.run(
            self.work.model, self.batch, self.cache, expanded_kv=self.work.config.expanded_kv
        )
        if ablation.has_pair and run.offsets is not None:
            raise UserError(
                f"the ablation {ablation.name!r} has offsets, so its activations are not those of "
                "one run on the corrupted prompts; set has_pair to False"
            )
        return run

    @torch.no_grad()
    def run_clean(
        self, *, trace: list[LayerTrace] | None = None
    ) -> Float[Tensor, "batch 1 d_model"]:
        """Final residual stream of the clean run at the last token."""
        x = self.clean + self.positions
        expanded = self.work.config.expanded_kv
        return run_layers(self.work.model, x, self.cache, trace=trace, expanded_kv=expanded)

    def unembed(
        self, final: Float[Tensor, "*rows d_model"], rules: BackwardRules = EXACT
    ) -> Float[Tensor, "*rows n_tokens"]:
        """Logits of the columns that the metrics read."""
        return self.work.model.unembed(final, self.token_ids, rules)

"""What all verbs begin with: examples checked, cut into batches, and each batch's runs prepared.

Checking, batch size, the share of a process, the prefix cache, embeddings, positions, answers and
the ablated run are made here, once, for attribution, exact patching and evaluation alike.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from eap.ablation import AblatedRun, Ablation
from eap.data.answers import Answers
from eap.data.batches import Batch, Group, check_dataset, load_batch, one_group, plan_batches
from eap.data.dataset import Dataset
from eap.graph import GraphConfig
from eap.metrics import Metric, check_answer_sets
from eap.model.model import Model
from eap.model.prefix import PrefixCache
from eap.model.rules import EXACT, BackwardRules
from eap.model.runs import LayerTrace, run_layers, run_prefix
from eap.runtime import distributed
from eap.runtime.progress import progress_bar


@dataclass(frozen=True, eq=False)
class Work:
    """A verb's work over a data set.

    Attributes:
        model, dataset, metrics, ablation: as the verb was given them.
        config: the shape of the graph that is worked on.
        rows_of: rows of the data set in each batch (of all processes).
    """

    model: Model
    dataset: Dataset
    metrics: tuple[Metric, ...]
    ablation: Ablation
    config: GraphConfig
    rows_of: list[tuple[int, ...]]

    @classmethod
    def plan(
        cls,
        model: Model,
        dataset: Dataset,
        metrics: Sequence[Metric],
        ablation: Ablation,
        config: GraphConfig,
        batch_size: int,
    ) -> "Work":
        """Cut the data set into batches.

        Raises:
            UserError: examples that this model cannot run (see `check_examples`).
        """
        check_dataset(model, dataset)
        check_answer_sets(metrics, dataset.examples)
        rows_of = plan_batches(dataset.examples, batch_size, ablation.start)
        return cls(model, dataset, tuple(metrics), ablation, config, rows_of)

    def batches(self, what: str, *, quiet: bool) -> Iterator["PreparedBatch"]:
        """This process's batches, with a progress bar."""
        for rows in progress_bar(distributed.own_share(self.rows_of), what, quiet=quiet):
            yield self.load(rows)

    def groups(self) -> list[Group]:
        """Of every batch, where its runs begin and end."""
        examples = self.dataset.examples
        return [
            one_group([examples[row] for row in rows], self.ablation.start) for rows in self.rows_of
        ]

    def load(self, rows: Sequence[int]) -> "PreparedBatch":
        """One batch, its prefix run."""
        model = self.model
        batch = load_batch(self.dataset.examples, rows, model.device, self.ablation.start)
        cache = run_prefix(model, batch.prefix, batch.last, batch.n_positions)
        token_ids, answers = None, batch.answers
        if self.metrics and all(metric.answers_only for metric in self.metrics):
            token_ids, answers = answers.token_ids, answers.among_themselves()
        return PreparedBatch(self, batch, cache, answers, token_ids)


@dataclass(frozen=True, eq=False)
class PreparedBatch:
    """A batch whose prefix has been run.

    Attributes:
        work: what it belongs to.
        batch: its tokens.
        cache: the prefix's keys and values.
        answers: over the columns that are unembedded.
        token_ids: those columns; None: the whole vocabulary.
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

    @cached_property
    def positions(self) -> Float[Tensor, "pos d_model"] | float:
        """Position embeddings, or 0.0."""
        return self.work.model.position_embedding(self.cache.start, self.cache.n_positions)

    @cached_property
    def clean(self) -> Float[Tensor, "batch pos d_model"]:
        """Token embeddings of the clean prompts."""
        return self.work.model.embed(self.batch.clean)

    @cached_property
    def ablated(self) -> Float[Tensor, "batch pos d_model"]:
        """What the input node sends when it is ablated."""
        return self.work.ablation.embedding(self.work.model, self.batch)

    @cached_property
    def ablated_run(self) -> AblatedRun:
        """What every node computes when all edges are ablated."""
        return self.work.ablation.run(
            self.work.model, self.batch, self.cache, expanded_kv=self.work.config.expanded_kv
        )

    @torch.no_grad()
    def run_clean(
        self, *, trace: list[LayerTrace] | None = None
    ) -> Float[Tensor, "batch 1 d_model"]:
        """The clean run's final residual stream at the last token."""
        x = self.clean + self.positions
        expanded = self.work.config.expanded_kv
        return run_layers(self.work.model, x, self.cache, trace=trace, expanded_kv=expanded)

    def unembed(
        self, final: Float[Tensor, "*rows d_model"], rules: BackwardRules = EXACT
    ) -> Float[Tensor, "*rows n_tokens"]:
        """Logits of the columns that the metrics read."""
        return self.work.model.unembed(final, self.token_ids, rules)

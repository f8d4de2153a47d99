"""How sure a circuit is: the same circuit found again and again, on resampled examples.

A Poisson bootstrap rides along with one attribution run: every example has, in every resample, a
weight drawn from a Poisson distribution of mean 1, and the resamples' scores are weighted sums of
the per-example scores that are made anyway. An example's weights are drawn from its own content, so
neither the order of the examples, nor batches, nor the number of processes change them.

For each size of circuit: the probability that an edge is in it, the mean Jaccard similarity of two
resamples' circuits beside what chance would give, and a consensus circuit. A circuit can be stable
without being about the task, so the same is measured for a *null task*, whose answers are shuffled.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from random import Random
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from eap.analysis.compare import nodes
from eap.attribution import attribute
from eap.data.batches import named_spans
from eap.data.dataset import Dataset, Example
from eap.engine.score_blocks import WeightedSums
from eap.graph.graph import Graph, GraphConfig
from eap.graph.selection import check_number
from eap.model.model import Model
from eap.model.shapes import graph_config
from eap.model.verbs import verb
from eap.runtime.errors import UserError
from eap.runtime.progress import progress_bar
from eap.runtime.ranges import whole

SIZES = (0.01, 0.02, 0.05, 0.1)
"""Sizes of circuits, as shares of all edges, whose stability is measured unless said otherwise."""

# Numbers that sets are compared by at a time, in float64.
MOST_COLUMNS = 2**17

# ---- resampling ----------------------------------------------------------------------------------


def poisson_weights(
    examples: Sequence[Example], n_resamples: int, seed: int
) -> Float[Tensor, "example resample"]:
    """How often every example counts in every resample: Poisson draws of mean 1.

    They are seeded by an example's content (and, if several are equal, by which of them it is), so
    they go with the example wherever it stands.
    """
    rows = [random.poisson(1.0, n_resamples) for random in generators(examples, seed)]
    return torch.from_numpy(np.stack(rows).astype(np.float32))


def generators(examples: Sequence[Example], seed: int) -> Iterator[np.random.Generator]:
    """A source of random numbers for every example, seeded by what the example is."""
    seen: Counter[Example] = Counter()
    for example in examples:
        content = repr((seed, seen[example], example)).encode()
        seen[example] += 1
        own_seed = int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
        yield np.random.default_rng(own_seed)


class Resamples(WeightedSums):
    """Scores of every resample, gathered while a run scores its examples (an `Observer`)."""

    def __init__(
        self,
        config: GraphConfig,
        examples: Sequence[Example],
        *,
        n_resamples: int = 50,
        seed: int = 0,
        n_spans: int | None = None,
        n_kept: int = 0,
    ) -> None:
        self.n_resamples, self.seed = whole("n_resamples", n_resamples), whole("seed", seed)
        self.weights = poisson_weights(examples, self.n_resamples, self.seed)
        # A resample without any example has nothing to say (likely only for a handful of examples).
        super().__init__(config, self.weights[:, self.weights.sum(dim=0) > 0], n_spans=n_spans)
        self._n_kept = n_kept

    @property
    def n_bytes(self) -> int:
        """Memory of sums, weights, circuits made of the sums, and of what is kept already."""
        n_sums = self._shape[0]
        kept = super().n_bytes + 2 * prod(self._shape)
        # As if no resample were left out.
        return kept * self.n_resamples // max(1, n_sums) + 2 * self.weights.nbytes + self._n_kept

    @property
    def scores(self) -> Float[Tensor, "resample *span n_forward n_backward"]:
        """Mean scores of every resample."""
        sizes = self.weights.double().sum(dim=0)
        return self.totals / sizes.view(-1, *[1] * (len(self._shape) - 1))

    def each(self) -> Iterator[Float[Tensor, "*span n_forward n_backward"]]:
        """Mean scores of one resample after the other."""
        yield from (
            total / size
            for total, size in zip(self.totals, self.weights.double().sum(dim=0), strict=True)
        )

    @property
    def standard_errors(self) -> Float[Tensor, "*span n_forward n_backward"]:
        """Standard errors of the scores: the standard deviation of the resamples' means."""
        return self.scores.std(dim=0)


# ---- stability -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SizeStability:
    """How alike the resamples' circuits of one size are.

    Attributes:
        size: edges (with spans, pairs of an edge and a span) selected, before pruning.
        n_edges: mean number of them after pruning.
        frequency: the probability that an edge is in the circuit.
        edge_jaccard, node_jaccard: mean over pairs of resamples.
        edge_chance, node_chance: the same for random sets of as many edges, and of as many nodes.
        consensus: the edges that are in at least half of the circuits, pruned.
    """

    size: int
    n_edges: float
    frequency: Float[Tensor, "*span n_forward n_backward"]
    edge_jaccard: float
    edge_chance: float
    node_jaccard: float
    node_chance: float
    consensus: Graph


@dataclass(frozen=True, eq=False)
class Stability:
    """The stability of one ranking.

    Attributes:
        graph: the ranking of all examples.
        resamples: scores of every resample, and their spread.
        sizes: one entry for every size of circuit.
        null: the same for the null task; None if it was not asked for.
    """

    graph: Graph
    resamples: Resamples
    sizes: tuple[SizeStability, ...]
    null: "Stability | None" = None

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the numbers come from."""
        drawn = {"n_resamples": self.resamples.n_resamples, "seed": self.resamples.seed}
        return self.graph.provenance | {"resampling": {"bootstrap": "Poisson", **drawn}}

    def to_frame(self) -> pd.DataFrame:
        """A row per size: Jaccard of edges and nodes, chance, and the null task's."""
        rows = []
        for position, size in enumerate(self.sizes):
            row = {
                "size": size.size,
                "n_edges": size.n_edges,
                "edge_jaccard": size.edge_jaccard,
                "edge_chance": size.edge_chance,
                "node_jaccard": size.node_jaccard,
                "node_chance": size.node_chance,
                "consensus_edges": size.consensus.count_edges(),
            }
            if self.null is not None:
                null = self.null.sizes[position]
                row |= {"null_edge_jaccard": null.edge_jaccard}
                row |= {"null_node_jaccard": null.node_jaccard}
            rows.append(row)
        return pd.DataFrame(rows)


@verb
def bootstrap(
    model: Model,
    dataset: Dataset,
    *,
    sizes: Sequence[int] | None = None,
    n_resamples: int = 50,
    selection: str = "top_n",
    null: bool = True,
    seed: int = 0,
    expanded_kv: bool = False,
    spans: bool = False,
    **attribution: Any,
) -> Stability:
    """Score all edges once, and measure how stable the ranking's circuits are over examples.

    Args:
        model: loaded model (`eap.load_model`).
        dataset: pairs of prompts (`eap.load_dataset`).
        sizes: numbers of edges to select; None: 1, 2, 5 and 10% of all.
        n_resamples: number of resamples; 50 tell a Jaccard of .6 from one of .7.
        selection: 'top_n' or 'greedy', by magnitude; circuits are pruned.
        null: whether to measure a null task too: the same prompts, with the answers shuffled.
        seed: random seed of resamples and shuffling.
        expanded_kv: one k and v receiver per query head where key/value heads are shared.
        spans: whether circuits are of pairs of an edge and a span of the data set's prompts.
        **attribution: method (one that scores by gradients), metric, ablation, steps, rule, and
            resources, as for `eap.attribute`; all resamples together must fit in `memory_budget`.

    Raises:
        UserError: as `eap.attribute`; an unknown selection, or a size that the graph does not have.

    Example:
        >>> stability = eap.bootstrap(model, dataset, method="EAP", sizes=[30], n_resamples=5)
        >>> frame = stability.to_frame()
    """
    config = graph_config(model, expanded_kv=expanded_kv)
    names = named_spans(model, dataset) if spans else ()
    n_edges = config.n_edges * max(1, len(names))
    if sizes is None:
        sizes = [max(1, int(share * n_edges)) for share in SIZES]
    if selection not in ("top_n", "greedy"):
        raise UserError(f"unknown selection {selection!r}; known are top_n and greedy")
    n_resamples, seed = whole("n_resamples", n_resamples), whole("seed", seed)
    # Shares of a small graph can be the same size.
    sizes = list(dict.fromkeys(check_number(size, n_edges) for size in sizes))
    if not sizes or 0 in sizes:
        raise UserError(f"sizes are numbers of edges from 1 to {n_edges:,}, one at least")

    # The sums of the task and of the null task are there together.
    n_sums = n_resamples * config.n_forward * config.n_backward * max(1, len(names))
    n_kept = 8 * n_sums if null else 0

    def measure(examples: Dataset) -> Stability:
        resamples = Resamples(
            config, examples.examples, n_resamples=n_resamples, seed=seed, n_kept=n_kept,
            n_spans=len(names) if spans else None,
        )  # fmt: skip
        graph = attribute(
            model, examples, expanded_kv=expanded_kv, spans=spans, observers=[resamples],
            **attribution,
        )  # fmt: skip
        resamples.merge_processes()
        quiet = attribution.get("quiet", True)
        sizes_measured = tuple(
            stability_of_size(graph, resamples, size, selection, quiet=quiet) for size in sizes
        )
        return Stability(graph, resamples, sizes_measured)

    stability = measure(dataset)
    return replace(stability, null=measure(null_task(dataset, seed=seed))) if null else stability


def stability_of_size(
    graph: Graph, resamples: Resamples, size: int, selection: str = "top_n", *, quiet: bool = True
) -> SizeStability:
    """Select and prune a circuit from every resample's scores, and compare them."""
    n = len(resamples.totals)
    members = torch.zeros(n, int(graph.edge_exists.sum()), dtype=torch.bool)
    members_of = torch.zeros(n, nodes(graph).numel(), dtype=torch.bool)
    total = torch.zeros(graph.scores.shape, dtype=torch.float64)
    scores = resamples.each()
    for row in progress_bar(range(n), f"circuits of {size:,} edges", quiet=quiet):
        circuit = getattr(replace(graph, scores=next(scores)), selection)(size).prune()
        members[row], members_of[row] = (
            circuit.in_graph[graph.edge_exists],
            nodes(circuit).flatten(),
        )
        total += circuit.in_graph
    frequency = total / n
    edge_jaccard, edge_chance = mean_jaccard(members)
    node_jaccard, node_chance = mean_jaccard(members_of)
    return SizeStability(
        size=size,
        n_edges=float(members.sum(dim=1).double().mean()),
        frequency=frequency,
        edge_jaccard=edge_jaccard,
        edge_chance=edge_chance,
        node_jaccard=node_jaccard,
        node_chance=node_chance,
        consensus=graph.with_edges(frequency >= 0.5).prune(),
    )


def mean_jaccard(members: Bool[Tensor, "set thing"]) -> tuple[float, float]:
    """Mean Jaccard similarity over pairs of sets, and that of random sets of the same sizes.

    Random sets of n and m out of N things share nm/N of them on average; chance is their share of
    the union that this leaves. Two empty sets are no evidence: such pairs are left out, and the
    result is NaN if no others are there.
    """
    parts = members.split(max(1, MOST_COLUMNS // max(1, len(members))), dim=1)
    shared = torch.zeros(len(members), len(members), dtype=torch.float64)
    for part in parts:
        shared += part.double() @ part.double().T
    sizes = members.sum(dim=1).double()
    together = sizes[:, None] + sizes[None]
    pairs = torch.triu(torch.ones_like(shared, dtype=torch.bool), diagonal=1) & (together > 0)
    if not pairs.any():
        return float("nan"), float("nan")
    by_chance = sizes[:, None] * sizes[None] / members.shape[1]
    jaccard, chance = (common[pairs] / (together - common)[pairs] for common in (shared, by_chance))
    return float(jaccard.mean()), float(chance.mean())


def null_task(dataset: Dataset, *, seed: int = 0) -> Dataset:
    """The same prompts with answers that have nothing to do with them.

    Answers go to random other examples, and a coin decides which of their two sets is called
    correct, so that every edge's score is 0 on average.
    """
    random = Random(whole("seed", seed))
    order = random.sample(range(len(dataset)), len(dataset))
    examples = []
    for example, source in zip(dataset.examples, order, strict=True):
        answers = [dataset.examples[source].correct, dataset.examples[source].incorrect]
        random.shuffle(answers)
        examples.append(replace(example, correct=answers[0], incorrect=answers[1]))
    provenance = {**dataset.provenance, "answers": f"shuffled (seed {seed})"}
    return replace(dataset, examples=tuple(examples), provenance=provenance)

"""Stability of a circuit: how similar the circuits are that are found on resampled examples.

A Poisson bootstrap is computed along with one attribution run: in every resample, every example has
a weight drawn from a Poisson distribution of mean 1, and the scores of the resample are weighted
sums of the per-example scores that the run computes anyway. The weights of an example are seeded by
its content, so they do not depend on the order of the examples, the batches, or the number of
processes.

For each size of circuit, the results are the probability that an edge is in the circuit, the mean
Jaccard similarity of the circuits of two resamples beside its chance level, and a consensus
circuit. A circuit can be stable without being about the task, so the same is measured for a *null
task*, whose answers are shuffled.
"""

import hashlib
import warnings
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
from eap.methods import get_method
from eap.model.model import Model
from eap.model.shapes import graph_config
from eap.model.verbs import verb
from eap.runtime.errors import UserError
from eap.runtime.progress import progress_bar
from eap.runtime.ranges import whole

SIZES = (0.01, 0.02, 0.05, 0.1)
"""Default sizes of the circuits whose stability is measured, as shares of all edges."""

# Largest number of columns (edges or nodes) that are compared at a time, in float64.
MOST_COLUMNS = 2**17

# ---- resampling ----------------------------------------------------------------------------------


def poisson_weights(
    examples: Sequence[Example], n_resamples: int, seed: int
) -> Float[Tensor, "example resample"]:
    """Weight of every example in every resample: Poisson draws of mean 1.

    The weights are seeded by the content of the example (and by a counter, for equal examples), so
    they do not depend on the example's position in the data set.
    """
    rows = [random.poisson(1.0, n_resamples) for random in generators(examples, seed)]
    return torch.from_numpy(np.stack(rows).astype(np.float32))


def generators(examples: Sequence[Example], seed: int) -> Iterator[np.random.Generator]:
    """Random number generator of every example, seeded by the content of the example."""
    seen: Counter[Example] = Counter()
    for example in examples:
        content = repr((seed, seen[example], example)).encode()
        seen[example] += 1
        own_seed = int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
        yield np.random.default_rng(own_seed)


class Resamples(WeightedSums):
    """Observer that accumulates the scores of every resample during an attribution run."""

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
        # Leave out resamples without any example (likely only if there are very few examples).
        super().__init__(config, self.weights[:, self.weights.sum(dim=0) > 0], n_spans=n_spans)
        self._n_kept = n_kept

    @property
    def n_bytes(self) -> int:
        """Memory of the sums, the weights, the circuits found from them, and of earlier results."""
        n_sums = self._shape[0]
        kept = super().n_bytes + 2 * prod(self._shape)
        # Count the resamples that were left out, too.
        return kept * self.n_resamples // max(1, n_sums) + 2 * self.weights.nbytes + self._n_kept

    @property
    def scores(self) -> Float[Tensor, "resample *span n_forward n_backward"]:
        """Mean scores of every resample."""
        sizes = self.weights.double().sum(dim=0)
        return self.totals / sizes.view(-1, *[1] * (len(self._shape) - 1))

    def each(self) -> Iterator[Float[Tensor, "*span n_forward n_backward"]]:
        """Mean scores of the resamples, one after the other."""
        for total, size in zip(self.totals, self.weights.double().sum(dim=0), strict=True):
            yield total / size

    @property
    def standard_errors(self) -> Float[Tensor, "*span n_forward n_backward"]:
        """Standard errors of the scores: standard deviations of the means of the resamples."""
        return self.scores.std(dim=0)


# ---- stability -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SizeStability:
    """Similarity of the resamples' circuits of one size.

    Attributes:
        size: number of edges (with spans, pairs of an edge and a span) selected, before pruning.
        n_edges: mean number of edges after pruning.
        frequency: probability that an edge is in the circuit.
        edge_jaccard, node_jaccard: mean Jaccard similarity over pairs of resamples.
        edge_chance, node_chance: mean Jaccard similarity of random sets of the same sizes.
        consensus: circuit of the edges that are in at least half of the circuits, pruned.
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
    """Stability of one ranking.

    Attributes:
        graph: ranking from all examples.
        resamples: scores of every resample, and their standard errors.
        sizes: stability for every size of circuit.
        null: stability of the null task; None: not measured.
    """

    graph: Graph
    resamples: Resamples
    sizes: tuple[SizeStability, ...]
    null: "Stability | None" = None

    @property
    def provenance(self) -> dict[str, Any]:
        """Origin of the results."""
        drawn = {"n_resamples": self.resamples.n_resamples, "seed": self.resamples.seed}
        return self.graph.provenance | {"resampling": {"bootstrap": "Poisson", **drawn}}

    def to_frame(self) -> pd.DataFrame:
        """Make a table with a row per size: Jaccard of edges and nodes, chance, and null task."""
        names = ["size", "n_edges", "edge_jaccard", "edge_chance", "node_jaccard", "node_chance"]
        frame = pd.DataFrame([vars(size) for size in self.sizes], columns=names)
        frame["consensus_edges"] = [size.consensus.count_edges() for size in self.sizes]
        if self.null is not None:
            for name in ("edge_jaccard", "node_jaccard"):
                frame[f"null_{name}"] = [getattr(size, name) for size in self.null.sizes]
        return frame


@verb
def bootstrap(
    model: Model,
    dataset: Dataset,
    *,
    sizes: Sequence[int] | None = None,
    n_resamples: int = 50,
    selection: str | None = None,
    null: bool = True,
    seed: int = 0,
    expanded_kv: bool = False,
    spans: bool = False,
    **attribution: Any,
) -> Stability:
    """Score all edges once, and measure how stable circuits are under resampling of the examples.

    Args:
        model: loaded model (`eap.load_model`).
        dataset: pairs of prompts (`eap.load_dataset`).
        sizes: numbers of edges to select; None: 1, 2, 5 and 10% of all edges.
        n_resamples: number of bootstrap resamples; 50 suffice to tell a Jaccard similarity of .6
            from one of .7.
        selection: rule that selects edges, by magnitude: 'top_n' or 'greedy'; circuits are pruned.
            None: 'top_n', but 'greedy' for a method that uses no metric (IFR), whose best edges are
            seldom connected.
        null: whether to measure a null task too, which has the same prompts with shuffled answers.
            If that changes no score, because neither the metric (KL, JS) nor the method (IFR) reads
            the answers, there is no null task: `null` of the result is None, with a warning.
        seed: seed of the resamples and of the shuffling.
        expanded_kv: whether every query head has its own k and v receiver, even where query heads
            share key/value heads.
        spans: whether circuits consist of pairs of an edge and a span of the data set's prompts.
        **attribution: method (one that scores by gradients), metric, ablation, steps, rule and
            resources, as for `eap.attribute`; all resamples together must fit in `memory_budget`.

    Raises:
        UserError: as for `eap.attribute`; also for node scores, an unknown selection, or a size out
            of range.

    Example:
        >>> stability = eap.bootstrap(model, dataset, method="EAP", sizes=[30], n_resamples=5)
        >>> frame = stability.to_frame()
    """
    config = graph_config(model, expanded_kv=expanded_kv)
    names = named_spans(model, dataset) if spans else ()
    n_edges = config.n_edges * max(1, len(names))
    if sizes is None:
        sizes = [max(1, int(share * n_edges)) for share in SIZES]
    if attribution.get("level", "edge") != "edge":
        raise UserError("resamples are of edges, whose circuits have nodes; leave out level='node'")
    uses_metric = get_method(attribution.get("method", "EAP-IG")).uses_metric
    if selection is None:
        selection = "top_n" if uses_metric else "greedy"
    if selection not in ("top_n", "greedy"):
        raise UserError(f"unknown selection {selection!r}; known are top_n and greedy")
    n_resamples, seed = whole("n_resamples", n_resamples), whole("seed", seed)
    # Two shares of a small graph can give the same size.
    sizes = list(dict.fromkeys(check_number(size, n_edges) for size in sizes))
    if not sizes or 0 in sizes:
        raise UserError(f"sizes must be numbers of edges from 1 to {n_edges:,}, at least one")

    # The sums of the task and of the null task are in memory at the same time.
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
    if not null:
        return stability
    with warnings.catch_warnings():  # nobody does the null task
        warnings.filterwarnings("ignore", "by .* the clean model")
        of_null = measure(null_task(dataset, seed=seed)) if uses_metric else stability
    if of_null.graph.scores.equal(stability.graph.scores):
        warnings.warn(
            "no null task is measured: with shuffled answers all scores are the same, because "
            "nothing in them reads the answers",
            stacklevel=3,
        )
        return stability
    return replace(stability, null=of_null)


def stability_of_size(
    graph: Graph, resamples: Resamples, size: int, selection: str = "top_n", *, quiet: bool = True
) -> SizeStability:
    """Select and prune a circuit from the scores of every resample, and compare the circuits."""
    n, exists = len(resamples.totals), graph.edge_exists
    members = torch.zeros(n, int(exists.sum()), dtype=torch.bool)
    members_of = torch.zeros(n, nodes(graph).numel(), dtype=torch.bool)
    total = torch.zeros(graph.scores.shape, dtype=torch.float64)
    scores = resamples.each()
    for row in progress_bar(range(n), f"circuits of {size:,} edges", quiet=quiet):
        circuit = getattr(replace(graph, scores=next(scores)), selection)(size).prune()
        members[row], members_of[row] = circuit.in_graph[exists], nodes(circuit).flatten()
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
    """Mean Jaccard similarity over pairs of sets, and its value for random sets of the same sizes.

    Two random sets of n and m out of N elements share nm/N elements on average; the chance level is
    the Jaccard similarity at that overlap. Pairs of two empty sets are no evidence and are left
    out; the result is NaN if there are no other pairs.
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
    """Make a null task: the same prompts, with answers that have nothing to do with them.

    The answers of every example come from a random other example, and a coin flip decides which of
    the two answer sets is called correct, so that the score of every edge is 0 on average.
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

"""Groups of examples that may use different mechanisms, found from their per-example scores.

Every example has a score for every edge; two examples are similar if these vectors point in similar
directions. The Gram matrix of the vectors is accumulated over groups of receivers, so that the
scores of all examples and edges are never held at once; if a smaller budget allows fewer receivers
per group, more passes over the data are made. Kernel k-means groups the examples, and the
separation is compared with that of examples of a single group. Each group gets its own circuit. How
well the circuit of one group works on other examples, of this and of the other groups, tells
whether the groups use different mechanisms.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Unpack

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from eap.attribution import attribute
from eap.circuits import faithfulness
from eap.data.dataset import Dataset
from eap.engine.score_blocks import ScoreBlock
from eap.graph.graph import Graph
from eap.metrics.metric import Metric, get_metric
from eap.model.model import Model
from eap.model.shapes import graph_config
from eap.model.verbs import verb
from eap.runtime import distributed
from eap.runtime.errors import UserError
from eap.runtime.ranges import whole
from eap.runtime.resources import ResourceOptions
from eap.statistics.hypotheses import rank_p
from eap.statistics.measures import normalised

# Default memory for per-example scores: 1 GiB.
GRAM_BUDGET = 2**30

RESTARTS = 20

NO_EFFECT = 1e-5
"""Length of an example's score vector, relative to the longest, below which it is rounding."""


class ScoresInto:
    """Observer that keeps the per-example scores of all edges into some receivers."""

    def __init__(self, n_examples: int, n_forward: int, receivers: range) -> None:
        self.receivers = receivers
        self.scores = torch.zeros(n_examples, n_forward, len(receivers), dtype=torch.float32)

    def add(self, rows: Sequence[int], block: ScoreBlock) -> None:
        """Keep the columns of the chosen receivers."""
        receivers, scores = block.receivers, block.scores
        chosen = [i for i, receiver in enumerate(receivers) if receiver in self.receivers]
        if not chosen:
            return
        columns = torch.tensor([receivers[i] - self.receivers.start for i in chosen])
        held = self.scores[:, block.senders]  # a view
        held[torch.tensor(rows)[:, None], :, columns] = (
            scores[:, :, chosen].detach().float().cpu().transpose(1, 2)
        )


@verb
def gram_matrix(
    model: Model,
    dataset: Dataset,
    *,
    gram_budget: int = GRAM_BUDGET,
    expanded_kv: bool = False,
    **settings: Any,
) -> Float[np.ndarray, "example example"]:
    """Inner products of the score vectors of all pairs of examples.

    Args:
        model: loaded model (`eap.load_model`).
        dataset: pairs of prompts (`eap.load_dataset`).
        gram_budget: bytes for per-example scores; a smaller budget means more passes over the data.
        expanded_kv: whether every query head has its own k and v receiver, even where query heads
            share key/value heads.
        **settings: arguments of `eap.attribute`: method, metric, steps, batch_size, ...

    Raises:
        UserError: as for `eap.attribute`.
    """
    if settings.get("spans") or settings.get("level", "edge") != "edge":
        raise UserError("inner products use the scores of edges; leave out spans and level='node'")
    config = graph_config(model, expanded_kv=expanded_kv)
    n_examples = len(dataset)
    group = max(1, gram_budget // (4 * n_examples * config.n_forward))  # receivers
    gram = np.zeros((n_examples, n_examples))
    for first in range(0, config.n_backward, group):
        receivers = range(first, min(first + group, config.n_backward))
        part = ScoresInto(n_examples, config.n_forward, receivers)
        attribute(model, dataset, observers=[part], expanded_kv=expanded_kv, **settings)
        distributed.sum_over_processes(part.scores)
        rows = part.scores.flatten(1).double()
        gram += (rows @ rows.T).numpy()
    return gram


def cosines(gram: Float[np.ndarray, "example example"]) -> Float[np.ndarray, "example example"]:
    """Cosine similarities; for an example without effect, 1 with itself and 0 with all others."""
    effective = have_effect(gram)
    length = np.where(effective, np.sqrt(np.diag(gram).clip(min=0)), 1.0)
    similar = gram / length[:, None] / length * (effective[:, None] & effective)
    np.fill_diagonal(similar, 1.0)
    return similar


def have_effect(gram: Float[np.ndarray, "example example"]) -> Bool[np.ndarray, " example"]:
    """Mask of the examples whose scores are more than rounding, relative to the largest."""
    length = np.sqrt(np.diag(gram).clip(min=0))
    return length > NO_EFFECT * length.max()


def kernel_k_means(
    kernel: Float[np.ndarray, "example example"], n_clusters: int, *, seed: int = 0
) -> Int[np.ndarray, " example"]:
    """Cluster labels that minimise the spread within clusters; the best of several random starts.

    Clusters are numbered in the order of their first examples.

    Raises:
        UserError: more clusters than examples, or fewer than one.
    """
    n, n_clusters = len(kernel), whole("n_clusters", n_clusters)
    if n_clusters > n:
        raise UserError(f"{n} examples with an effect cannot be grouped into {n_clusters} clusters")
    random = np.random.default_rng(seed)
    best_cost, best = np.inf, np.zeros(n, dtype=np.int64)
    for _ in range(RESTARTS):
        centres = _spread_out(kernel, n_clusters, random)
        labels = _distances_to_points(kernel, centres).argmin(axis=1)
        for _ in range(100):
            distances = _distances_to_means(kernel, labels, n_clusters)
            following = distances.argmin(axis=1)
            if (following == labels).all():
                break
            labels = following
        cost = _distances_to_means(kernel, labels, n_clusters)[np.arange(n), labels].sum()
        if cost < best_cost - 1e-12:
            best_cost, best = cost, labels
    order = list(dict.fromkeys(best.tolist()))
    return np.array([order.index(label) for label in best.tolist()])


def _spread_out(kernel: np.ndarray, n_clusters: int, random: np.random.Generator) -> list[int]:
    """Examples that are far from one another, as initial centres (k-means++)."""
    chosen = [int(random.integers(len(kernel)))]
    while len(chosen) < n_clusters:
        nearest = _distances_to_points(kernel, chosen).min(axis=1).clip(min=0)
        total = nearest.sum()
        even = np.full(len(kernel), 1 / len(kernel))
        chosen.append(int(random.choice(len(kernel), p=nearest / total if total > 0 else even)))
    return chosen


def _distances_to_points(kernel: np.ndarray, points: Sequence[int]) -> np.ndarray:
    squared_norms = np.diag(kernel)
    return squared_norms[:, None] + squared_norms[list(points)] - 2 * kernel[:, list(points)]


def _distances_to_means(kernel: np.ndarray, labels: np.ndarray, n_clusters: int) -> np.ndarray:
    """Squared distance of every example to every cluster's mean; infinite for empty clusters."""
    members = (labels[:, None] == np.arange(n_clusters)).astype(np.float64)
    sizes = members.sum(axis=0)
    shares = members / np.where(sizes > 0, sizes, 1.0)
    to_mean = kernel @ shares
    within = np.einsum("ec,ec->c", shares, to_mean)
    distances = np.diag(kernel)[:, None] - 2 * to_mean + within
    return np.where(sizes > 0, distances, np.inf)


@dataclass(frozen=True, eq=False)
class Clusters:
    """Groups of examples, and the circuit of each group.

    Attributes:
        similarity: cosines between the score vectors of the examples.
        labels: group of each example; -1 for an example without effect.
        separation: mean similarity within groups minus mean similarity between groups.
        null_separations: separations of random examples of a single group, clustered the same way.
        p_value: p-value of the null hypothesis of a single group, which is the rank of `separation`
            among `null_separations`.
        found_on: mask of the examples that scores and circuits were found on: every second one of
            each group.
        graphs: scores of each group, over its examples in `found_on`.
        circuits: circuit of each group, selected from these scores and pruned.
        faithfulness: normalised faithfulness of each group's circuit on each group's other
            examples. NaN for a group in which the model does not perform the task, that is, whose
            clean mean is not two standard errors better than its ablated mean.
        provenance: origin of the results.
    """

    similarity: Float[np.ndarray, "example example"]
    labels: Int[np.ndarray, " example"]
    separation: float
    null_separations: Float[np.ndarray, " null"]
    p_value: float
    found_on: Bool[np.ndarray, " example"]
    graphs: tuple[Graph, ...]
    circuits: tuple[Graph, ...]
    faithfulness: Float[np.ndarray, "circuit group"]
    provenance: dict[str, Any] = field(default_factory=dict)


@verb
def find_clusters(
    model: Model,
    dataset: Dataset,
    *,
    n_clusters: int = 2,
    size: int = 200,
    method: str = "EAP-IG",
    metric: str | Metric = "logit_diff",
    steps: int | None = None,
    n_random: int = 99,
    seed: int = 0,
    gram_budget: int = GRAM_BUDGET,
    **resources: Unpack[ResourceOptions],
) -> Clusters:
    """Group the examples of a task by their scores, and test each group's circuit on all groups.

    k-means separates any examples; `null_separations` says how far it separates examples of a
    single group. Circuits are found on half of the examples of each group and measured on the other
    half.

    Args:
        model: loaded model (`eap.load_model`).
        dataset: pairs of prompts (`eap.load_dataset`).
        n_clusters: number of groups.
        size: number of edges of each group's circuit before pruning; at most all edges.
        method: name of a method, as for `eap.attribute`.
        metric: metric of scores and faithfulness.
        steps: number of integration points, as for `eap.attribute`; None: the default.
        n_random: number of random data sets of a single group to compare the separation with.
        seed: seed of the random starts of k-means and of the random data sets.
        gram_budget: bytes for per-example scores.
        **resources: batch_size, memory_budget (bytes), quiet; see `eap.runtime.resources`.

    Raises:
        UserError: as for `eap.attribute`; also for more groups than examples with an effect, or a
            number out of range.

    Example:
        >>> clusters = eap.find_clusters(model, dataset, size=30, method="EAP", n_random=5)
    """
    metric, size = get_metric(metric), whole("size", size)
    metric.direction("clusters")  # fails early, before anything is run
    n_clusters, n_random = whole("n_clusters", n_clusters), whole("n_random", n_random)
    seed, gram_budget = whole("seed", seed), whole("gram_budget", gram_budget)
    settings: dict[str, Any] = {"method": method, "metric": metric, "steps": steps, **resources}
    gram = gram_matrix(model, dataset, gram_budget=gram_budget, **settings)
    similarity, rows = cosines(gram), np.flatnonzero(have_effect(gram))
    labels = np.full(len(dataset), -1)
    kernel = similarity[np.ix_(rows, rows)]
    labels[rows] = kernel_k_means(kernel, n_clusters, seed=seed)
    separation = separation_of(kernel, labels[rows])
    null = null_separations(gram[np.ix_(rows, rows)], n_clusters, n_random=n_random, seed=seed)
    members = [np.flatnonzero(labels == group) for group in range(labels.max() + 1)]
    found_on = np.zeros(len(dataset), dtype=bool)
    graphs = []
    for group in members:
        found_on[group[::2]] = True
        examples = tuple(dataset.examples[row] for row in group[::2])
        graphs.append(attribute(model, replace(dataset, examples=examples), **settings))
    circuits = [graph.top_n(min(size, graph.n_edges)).prune() for graph in graphs]
    values = faithfulness(model, circuits, dataset, metric=metric, **resources)
    runs = [run.double().numpy() for run in (values.circuits, values.clean, values.ablated)]
    served = [
        _served(*(run[..., group[1::2]] for run in runs), better=metric.direction("clusters"))
        for group in members
    ]
    drawn = {"n_clusters": n_clusters, "size": size, "n_random": n_random, "seed": seed}
    return Clusters(
        similarity=similarity,
        labels=labels,
        separation=separation,
        null_separations=null,
        p_value=rank_p(separation, null) if np.isfinite(separation) else float("nan"),
        found_on=found_on,
        graphs=tuple(graphs),
        circuits=tuple(circuits),
        faithfulness=np.stack(served, axis=1),
        provenance={**values.provenance, "method": "clusters", "settings": drawn,
                    "scores": graphs[0].provenance},
    )  # fmt: skip


def _served(
    values: Float[np.ndarray, "circuit example"],
    clean: Float[np.ndarray, " example"],
    ablated: Float[np.ndarray, " example"],
    *,
    better: bool,
) -> Float[np.ndarray, " circuit"]:
    """Normalised faithfulness of circuits; NaN if the clean mean is not clearly the better one."""
    n, gaps = len(clean), clean - ablated if better else ablated - clean
    if n < 2 or gaps.mean() <= max(2 * gaps.std(ddof=1) / np.sqrt(n), 0.0):
        return np.full(len(values), np.nan)
    return normalised(values.mean(axis=1), float(clean.mean()), float(ablated.mean()))


def separation_of(
    similarity: Float[np.ndarray, "example example"], labels: Int[np.ndarray, " example"]
) -> float:
    """Mean similarity within groups minus that between groups; NaN if there are no such pairs."""
    same = labels[:, None] == labels[None]
    others = ~np.eye(len(labels), dtype=bool)
    within, between = similarity[same & others], similarity[~same]
    if not len(within) or not len(between):
        return float("nan")
    return float(within.mean() - between.mean())


def null_separations(
    gram: Float[np.ndarray, "example example"],
    n_clusters: int,
    *,
    n_random: int,
    seed: int,
) -> Float[np.ndarray, " null"]:
    """Separations by k-means of random examples that all belong to one group.

    The group is a Gaussian with the mean and covariance of the examples' score vectors (as in
    SigClust, Liu et al. 2008), before these are normalised: normalised vectors vary less along the
    group's main axis, and samples of them would be less far apart than the examples. Samples are
    drawn as mixtures of the examples, so only the inner products are needed.
    """
    random, n = np.random.default_rng(seed), len(gram)
    centred = np.eye(n) - 1 / n
    separations = []
    for _ in range(n_random):
        mixture = 1 / n + random.normal(size=(n, n)) @ centred / np.sqrt(max(1, n - 1))
        kernel = cosines(mixture @ gram @ mixture.T)
        labels = kernel_k_means(kernel, n_clusters, seed=int(random.integers(2**32)))
        separations.append(separation_of(kernel, labels))
    return np.array(separations)

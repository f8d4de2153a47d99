"""Does one task hide several mechanisms? Examples grouped by which edges their scores are large on.

Every example has a score for every edge; two examples are alike if these vectors point the same
way. Their Gram matrix is gathered over groups of receivers, so that examples times edges is never
held at once: what does not fit the budget takes more passes over the data. Examples are grouped by
kernel k-means; each group has a circuit of its own, and how each circuit serves the other groups'
examples says whether they are mechanisms of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Unpack

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from eap.attribution import attribute
from eap.circuits import faithfulness
from eap.data.dataset import Dataset
from eap.errors import UserError
from eap.graph.graph import Graph
from eap.metrics.metric import Metric, get_metric
from eap.model.model import Model
from eap.model.verbs import verb
from eap.runtime import distributed
from eap.runtime.resources import ResourceOptions
from eap.statistics.measures import normalised

# Memory for per-example scores unless said otherwise: 1 GiB.
GRAM_BUDGET = 2**30

RESTARTS = 20


class ScoresInto:
    """Per-example scores of all edges into some receivers (an `Observer`)."""

    def __init__(self, n_examples: int, n_forward: int, receivers: range) -> None:
        self.receivers = receivers
        self.scores = torch.zeros(n_examples, n_forward, len(receivers), dtype=torch.float32)

    def add(
        self,
        rows: Sequence[int],
        senders: slice,
        receivers: Sequence[int],
        scores: Float[Tensor, "batch sender receiver"],
    ) -> None:
        """Keep the columns that are asked for."""
        chosen = [i for i, receiver in enumerate(receivers) if receiver in self.receivers]
        if not chosen:
            return
        columns = torch.tensor([receivers[i] - self.receivers.start for i in chosen])
        held = self.scores[:, senders]  # a view
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
    """Inner products of the examples' score vectors.

    Args:
        model: from `eap.load_model`.
        dataset: from `eap.load_dataset`.
        gram_budget: bytes for per-example scores; less of it means more passes over the data.
        expanded_kv: one k and v receiver per query head where key/value heads are shared.
        **settings: of `eap.attribute`: method, metric, steps, batch_size, ...

    Raises:
        UserError: as `eap.attribute`.
    """
    config = replace(model.config, expanded_kv=expanded_kv)
    n_examples = len(dataset)
    per_receiver = n_examples * config.n_forward * 4
    group = max(1, gram_budget // per_receiver)
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
    """Cosine similarities; an example whose scores are all 0 is like no other (0), and itself."""
    length = np.sqrt(np.diag(gram))
    similar = gram / np.where(length > 0, length, 1.0)[:, None] / np.where(length > 0, length, 1.0)
    np.fill_diagonal(similar, 1.0)
    return similar


def kernel_k_means(
    kernel: Float[np.ndarray, "example example"], n_clusters: int, *, seed: int = 0
) -> Int[np.ndarray, " example"]:
    """Labels that make clusters compact in the kernel's space: the best of several beginnings.

    Clusters are numbered by their first example.

    Raises:
        UserError: more clusters than examples, or fewer than one.
    """
    n = len(kernel)
    if not 1 <= n_clusters <= n:
        raise UserError(f"{n} examples cannot be grouped into {n_clusters} clusters")
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
    """Examples far from one another (k-means++)."""
    chosen = [int(random.integers(len(kernel)))]
    while len(chosen) < n_clusters:
        nearest = _distances_to_points(kernel, chosen).min(axis=1).clip(min=0)
        total = nearest.sum()
        even = np.full(len(kernel), 1 / len(kernel))
        chosen.append(int(random.choice(len(kernel), p=nearest / total if total > 0 else even)))
    return chosen


def _distances_to_points(kernel: np.ndarray, points: Sequence[int]) -> np.ndarray:
    own = np.diag(kernel)
    return own[:, None] + own[list(points)] - 2 * kernel[:, list(points)]


def _distances_to_means(kernel: np.ndarray, labels: np.ndarray, n_clusters: int) -> np.ndarray:
    """Squared distance of every example to every cluster's mean; infinity where it is empty."""
    members = (labels[:, None] == np.arange(n_clusters)).astype(np.float64)
    sizes = members.sum(axis=0)
    shares = members / np.where(sizes > 0, sizes, 1.0)
    to_mean = kernel @ shares
    within = np.einsum("ec,ec->c", shares, to_mean)
    distances = np.diag(kernel)[:, None] - 2 * to_mean + within
    return np.where(sizes > 0, distances, np.inf)


@dataclass(frozen=True, eq=False)
class Clusters:
    """Groups of examples, and the circuit of each.

    Attributes:
        similarity: cosines between the examples' scores.
        labels: the group of each example.
        separation: mean similarity within groups minus that between them.
        graphs: scores of each group's examples.
        circuits: selected from them, and pruned.
        faithfulness: normalised, of each group's circuit on each group's examples.
        provenance: where the numbers come from.
    """

    similarity: Float[np.ndarray, "example example"]
    labels: Int[np.ndarray, " example"]
    separation: float
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
    steps: int = 5,
    seed: int = 0,
    gram_budget: int = GRAM_BUDGET,
    **resources: Unpack[ResourceOptions],
) -> Clusters:
    """Group a task's examples by their scores, and see how the groups' circuits serve each other.

    Args:
        model: from `eap.load_model`.
        dataset: from `eap.load_dataset`.
        n_clusters: how many groups.
        size: edges of each group's circuit, before pruning; at most as many as there are.
        method: of `eap.attribute`.
        metric: of scores and faithfulness.
        steps: points of integrated gradients.
        seed: of the beginnings of k-means.
        gram_budget: bytes for per-example scores.
        **resources: batch_size, memory_budget (bytes), quiet.

    Raises:
        UserError: as `eap.attribute`; more groups than examples; nothing to normalise by.
    """
    metric = get_metric(metric)
    settings: dict[str, Any] = {"method": method, "metric": metric, "steps": steps, **resources}
    similarity = cosines(gram_matrix(model, dataset, gram_budget=gram_budget, **settings))
    labels = kernel_k_means(similarity, n_clusters, seed=seed)
    n_found = int(labels.max()) + 1
    graphs = []
    for group in range(n_found):
        rows = np.flatnonzero(labels == group).tolist()
        examples = tuple(dataset.examples[row] for row in rows)
        graphs.append(attribute(model, replace(dataset, examples=examples), **settings))
    circuits = [graph.top_n(min(size, graph.n_edges)).prune() for graph in graphs]
    found = faithfulness(model, circuits, dataset, metric=metric, **resources)
    values, clean, corrupted = (
        own.double().numpy() for own in (found.circuits, found.clean, found.corrupted)
    )
    served = np.empty((n_found, n_found))
    for group in range(n_found):
        rows = labels == group
        means = values[:, rows].mean(axis=1)
        served[:, group] = normalised(
            means, float(clean[rows].mean()), float(corrupted[rows].mean())
        )
    return Clusters(
        similarity=similarity,
        labels=labels,
        separation=_separation(similarity, labels),
        graphs=tuple(graphs),
        circuits=tuple(circuits),
        faithfulness=served,
        provenance={**found.provenance, "method": "clusters", "scores": graphs[0].provenance},
    )


def _separation(similarity: np.ndarray, labels: np.ndarray) -> float:
    same = labels[:, None] == labels[None]
    others = ~np.eye(len(labels), dtype=bool)
    within, between = similarity[same & others], similarity[~same]
    if not len(within) or not len(between):
        return float("nan")
    return float(within.mean() - between.mean())

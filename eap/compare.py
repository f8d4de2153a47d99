"""How alike two circuits, or two sets of scores, are: overlaps, chance, rank agreement.

Circuits are compared by their edges, and by their nodes: heads and MLPs with an edge. The input and
the logits belong to every circuit, so they are no evidence and never counted.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor

from eap.errors import UserError
from eap.graph import Graph


@dataclass(frozen=True)
class Overlap:
    """Sizes of two sets out of `n_all` things, and of what they share."""

    n_shared: int
    n_first: int
    n_second: int
    n_all: int

    @property
    def iou(self) -> float:
        """Intersection over union; two empty sets are the same set: 1."""
        union = self.n_first + self.n_second - self.n_shared
        return self.n_shared / union if union else 1.0

    @property
    def recall(self) -> float:
        """The share of the second set that the first has; NaN if the second is empty."""
        return self.n_shared / self.n_second if self.n_second else float("nan")

    @property
    def precision(self) -> float:
        """The share of the first set that is in the second; NaN if the first is empty."""
        return self.n_shared / self.n_first if self.n_first else float("nan")

    @property
    def p_value(self) -> float:
        """P(X >= n_shared) when the first set is drawn at random (hypergeometric)."""
        return float(stats.hypergeom.sf(self.n_shared - 1, self.n_all, self.n_second, self.n_first))


def edge_overlap(first: Graph, second: Graph) -> Overlap:
    """Of the edges of two circuits of one shape."""
    _check_shapes(first, second)
    return _overlap(first.in_graph, second.in_graph, first.n_edges)


def node_overlap(first: Graph, second: Graph) -> Overlap:
    """Of the heads and MLPs of two circuits of one shape."""
    _check_shapes(first, second)
    return _overlap(nodes(first), nodes(second), first.n_forward - 1)


def nodes(graph: Graph) -> Bool[Tensor, " n_heads_and_mlps"]:
    """Which heads and MLPs have an edge in the circuit."""
    present = graph.nodes_in_graph()
    return torch.tensor([name in present for name in graph.sender_names[1:]])


def _overlap(first: Tensor, second: Tensor, n_all: int) -> Overlap:
    return Overlap(int((first & second).sum()), int(first.sum()), int(second.sum()), n_all)


def _check_shapes(first: Graph, second: Graph) -> None:
    if first.scores.shape != second.scores.shape:
        raise UserError(f"{first} and {second} are of different shapes and cannot be compared")


# ---- scores --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """Of the absolute values of two sets of scores.

    Attributes:
        pearson: correlation of the absolute values.
        kendall: rank correlation of the absolute values (tau-b).
        mean_difference: mean absolute difference of the scores themselves.
    """

    pearson: float
    kendall: float
    mean_difference: float


def agreement(estimate: Graph, exact: Graph) -> Agreement:
    """How well an estimate's scores agree with exact ones, over all edges."""
    _check_shapes(estimate, exact)
    a, b = (graph.scores[graph.edge_exists].double().numpy() for graph in (estimate, exact))
    return Agreement(
        pearson=float(stats.pearsonr(np.abs(a), np.abs(b))[0]),
        kendall=float(stats.kendalltau(np.abs(a), np.abs(b))[0]),
        mean_difference=float(np.abs(a - b).mean()),
    )


def overlap_at_depths(
    first: Graph, second: Graph, max_depth: int
) -> Float[np.ndarray, " max_depth"]:
    """Shared fraction of both rankings' first n edges by absolute score, for n = 1 .. max_depth."""
    _check_shapes(first, second)
    exists = first.edge_exists
    ranks = []
    for graph in (first, second):
        order = torch.sort(graph.scores[exists].abs(), descending=True, stable=True).indices
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order))
        ranks.append(rank.numpy())
    # An edge is in both top n's from the worse of its two ranks on.
    both = np.maximum(*ranks)
    depths = np.arange(1, max_depth + 1)
    shared = np.searchsorted(np.sort(both), depths, side="left")
    return shared / depths


def average_overlap(first: Graph, second: Graph, max_depth: int) -> Float[np.ndarray, " max_depth"]:
    """Average overlap (Webber, Moffat and Zobel 2010): mean shared fraction down to each depth."""
    shared = overlap_at_depths(first, second, max_depth)
    return np.cumsum(shared) / np.arange(1, max_depth + 1)

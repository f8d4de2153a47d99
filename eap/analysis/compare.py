"""Comparison of two circuits, or of two sets of scores: overlap, chance level, rank agreement.

Circuits are compared by their edges, and by their nodes: the heads and MLPs that send along an
edge. The input and the logits are in every circuit, so they are no evidence and are never counted.
With spans of the prompt, pairs of a span and an edge, or of a span and a node, are compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor

from eap.graph.graph import Graph
from eap.runtime.errors import UserError
from eap.runtime.kinds import checked
from eap.runtime.ranges import Range, whole


@dataclass(frozen=True)
class Overlap:
    """Overlap of two sets out of `n_all` elements: sizes of the sets and of their intersection."""

    n_shared: int
    n_first: int
    n_second: int
    n_all: int

    @property
    def iou(self) -> float:
        """Intersection over union; NaN if both sets are empty, which is no evidence."""
        union = self.n_first + self.n_second - self.n_shared
        return self.n_shared / union if union else float("nan")

    @property
    def recall(self) -> float:
        """Share of the second set that is in the first; NaN if the second is empty."""
        return self.n_shared / self.n_second if self.n_second else float("nan")

    @property
    def precision(self) -> float:
        """Share of the first set that is in the second; NaN if the first is empty."""
        return self.n_shared / self.n_first if self.n_first else float("nan")

    @property
    def p_value(self) -> float:
        """Probability P(X >= n_shared) when the first set is drawn at random (hypergeometric)."""
        return float(stats.hypergeom.sf(self.n_shared - 1, self.n_all, self.n_second, self.n_first))


@checked
def edge_overlap(first: Graph, second: Graph, *, include_mlps: bool = True) -> Overlap:
    """Overlap of the edges of two circuits of one shape; optionally, edges at MLPs do not count."""
    _check_shapes(first, second)
    counted = first.edge_exists
    if not include_mlps:
        senders, receivers = ~_are_mlps(first.sender_names), ~_are_mlps(first.receiver_names)
        counted = counted & senders[:, None] & receivers
    return _overlap(first.in_graph, second.in_graph, counted)


@checked
def node_overlap(first: Graph, second: Graph, *, include_mlps: bool = True) -> Overlap:
    """Overlap of the heads and MLPs of two circuits of one shape; optionally, MLPs do not count."""
    _check_shapes(first, second)
    counted = ~_are_mlps(first.sender_names[1:]) | include_mlps
    return _overlap(nodes(first), nodes(second), counted.expand(nodes(first).shape))


def nodes(graph: Graph) -> Bool[Tensor, "*span n_heads_and_mlps"]:
    """Mask of the heads and MLPs that send along an edge of the circuit (with spans, per span)."""
    return graph.in_graph[..., 1:, :].any(dim=-1)


def _are_mlps(names: Sequence[str]) -> Bool[Tensor, " n_names"]:
    return torch.tensor([name.startswith("m") for name in names], device="cpu")


def _overlap(first: Tensor, second: Tensor, counted: Tensor) -> Overlap:
    first, second = first & counted, second & counted
    return Overlap(*(int(mask.sum()) for mask in (first & second, first, second, counted)))


def _check_shapes(first: Graph, second: Graph) -> None:
    if first.config.shape != second.config.shape:
        raise UserError(f"{first} and {second} are of different shapes and cannot be compared")
    if first.span_names != second.span_names:
        raise UserError(f"{first} and {second} have different spans and cannot be compared")


# ---- scores --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """Agreement of the absolute values of two sets of scores.

    Attributes:
        pearson: correlation of the absolute values.
        kendall: rank correlation of the absolute values (tau-b).
        mean_difference: mean absolute difference of the scores themselves.
    """

    pearson: float
    kendall: float
    mean_difference: float


@checked
def agreement(
    estimate: Graph,
    exact: Graph,
    *,
    weights: Float[Tensor, "*span n_forward n_backward"] | None = None,
) -> Agreement:
    """Agreement of estimated with exact scores, over the edges that have both.

    If a graph records which of its scores are exact, only those count. A correlation with constant
    scores is NaN.

    Args:
        estimate: graph of estimated scores.
        exact: graph of exact scores, of the same shape.
        weights: number of edges that each edge stands for, if the exact scores are a sample
            (`eap.screening.weights_of`); None: one each.

    Raises:
        UserError: graphs without a common edge, or weights of another shape.
    """
    counted = _both_scored(estimate, exact)
    if weights is not None and weights.shape != counted.shape:
        raise UserError(
            f"weights is {list(weights.shape)}; these graphs have {list(counted.shape)}"
        )
    a, b = (graph.scores[counted].double().numpy() for graph in (estimate, exact))
    w = None if weights is None else weights[counted].double().numpy()
    mean_difference = float(np.average(np.abs(a - b), weights=w))
    a, b = np.abs(a), np.abs(b)
    if not np.ptp(a) or not np.ptp(b):
        return Agreement(float("nan"), float("nan"), mean_difference)
    if w is None:
        pearson, kendall = stats.pearsonr(a, b)[0], stats.kendalltau(a, b)[0]
    else:
        covariance = np.cov(a, b, aweights=w, ddof=0)
        pearson = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
        kendall = weighted_kendall(a, b, w)
    return Agreement(float(pearson), float(kendall), mean_difference)


def weighted_kendall(
    a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"], weights: Float[np.ndarray, " n"]
) -> float:
    """Kendall's tau-b with weights: a pair of values counts as the product of its two weights.

    The running time is quadratic in n. With equal weights, the result is that of
    `scipy.stats.kendalltau`.
    """
    agreeing = untied_a = untied_b = 0.0
    for i in range(len(a) - 1):
        sign_a, sign_b = np.sign(a[i + 1 :] - a[i]), np.sign(b[i + 1 :] - b[i])
        counts = weights[i] * weights[i + 1 :]
        agreeing += counts @ (sign_a * sign_b)
        untied_a += counts @ np.abs(sign_a)
        untied_b += counts @ np.abs(sign_b)
    return float(agreeing / np.sqrt(untied_a * untied_b))


def paired_scores(
    first: Graph, second: Graph
) -> tuple[Float[np.ndarray, " n_edges"], Float[np.ndarray, " n_edges"]]:
    """Scores of the edges that have a score in both graphs, in index order."""
    counted = _both_scored(first, second)
    a, b = (graph.scores[counted].double().numpy() for graph in (first, second))
    return a, b


def _both_scored(first: Graph, second: Graph) -> Bool[Tensor, "*span n_forward n_backward"]:
    """Mask of the edges with a score in both graphs (an exact one, if a graph has exact scores)."""
    _check_shapes(first, second)
    counted = first.edge_exists.clone()
    for graph in (first, second):
        counted &= graph.scores.isfinite()
        if graph.is_exact is not None:
            counted &= graph.is_exact
    if not counted.any():
        raise UserError(f"{first} and {second} have no edge with a score in both")
    return counted


@checked
def overlap_at_depths(
    first: Graph, second: Graph, max_depth: int
) -> Float[np.ndarray, " max_depth"]:
    """Overlap of the top n edges of two rankings by absolute score, for n = 1 .. max_depth.

    The overlap is the fraction of the n edges that the rankings share. Ties go to the earlier edge.
    """
    pair = paired_scores(first, second)
    max_depth = whole("max_depth", max_depth, Range(1, len(pair[0])))
    ranks = np.argsort(-np.abs(pair), kind="stable").argsort()  # the second sort inverts
    # An edge is in both top-n sets as soon as n exceeds the worse of its two ranks.
    enters = np.bincount(ranks.max(axis=0), minlength=max_depth)[:max_depth]
    return np.cumsum(enters) / np.arange(1, max_depth + 1)


def average_overlap(first: Graph, second: Graph, max_depth: int) -> Float[np.ndarray, " max_depth"]:
    """Average overlap (Webber, Moffat and Zobel 2010): mean overlap up to each depth."""
    shared = overlap_at_depths(first, second, max_depth)
    return np.cumsum(shared) / np.arange(1, max_depth + 1)

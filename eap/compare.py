"""How alike two circuits are, and how well estimated scores agree with exact ones.

Nodes are the heads and MLPs: every circuit that does anything has the input and the logits, so they
would only make all overlaps look larger.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from eap.errors import UserError
from eap.graph import Graph


@dataclass(frozen=True)
class Overlap:
    """The overlap of two sets of edges (or nodes) out of a population.

    Attributes:
        first: size of the first set.
        second: size of the second set.
        shared: how many belong to both.
        population: how many edges (or nodes) the whole graph has.
    """

    first: int
    second: int
    shared: int
    population: int

    @property
    def iou(self) -> float:
        """Intersection over union, the Jaccard index; NaN if both sets are empty."""
        return _ratio(self.shared, self.first + self.second - self.shared)

    @property
    def precision(self) -> float:
        """Share of the first set that belongs to the second; NaN if the first is empty."""
        return _ratio(self.shared, self.first)

    @property
    def recall(self) -> float:
        """Share of the second set that belongs to the first; NaN if the second is empty."""
        return _ratio(self.shared, self.second)

    @property
    def p_value(self) -> float:
        """Probability that random sets of these sizes share as many or more: P(X >= shared).

        Hypergeometric, both sets drawn without replacement from the population.
        """
        # sf(x) is P(X > x); X is a whole number.
        return float(stats.hypergeom.sf(self.shared - 1, self.population, self.first, self.second))


def edge_overlap(first: Graph, second: Graph, *, include_mlps: bool = True) -> Overlap:
    """Overlap of two circuits' edges; without `include_mlps`, of those that touch no MLP."""
    _check_same_shape(first, second)
    counted = first.edge_exists
    if not include_mlps:
        senders = np.array([not name.startswith("m") for name in first.sender_names])
        receivers = np.array([not name.startswith("m") for name in first.receiver_names])
        counted = counted.numpy() & senders[:, None] & receivers
    a, b = (np.asarray(graph.in_graph) & np.asarray(counted) for graph in (first, second))
    return Overlap(int(a.sum()), int(b.sum()), int((a & b).sum()), int(counted.sum()))


def node_overlap(first: Graph, second: Graph, *, include_mlps: bool = True) -> Overlap:
    """Overlap of two circuits' heads and MLPs; without `include_mlps`, of their heads."""
    _check_same_shape(first, second)
    a, b = (circuit_nodes(graph, include_mlps=include_mlps) for graph in (first, second))
    counted = [n for n in first.sender_names[1:] if include_mlps or n.startswith("a")]
    return Overlap(len(a), len(b), len(a & b), len(counted))


def circuit_nodes(graph: Graph, *, include_mlps: bool = True) -> set[str]:
    """Names of the heads and MLPs with an edge in the circuit: no input, no logits."""
    nodes = graph.nodes_in_graph() - {"input", "logits"}
    return nodes if include_mlps else {name for name in nodes if name.startswith("a")}


def overlap_tables(circuits: Mapping[str, Graph]) -> dict[str, pd.DataFrame]:
    """Overlaps of all pairs of circuits, one row and one column per circuit, in the given order.

    Returns:
        `edge_ious`, `edge_iou_ps`, `edge_overlap` and the same for `node_`: intersection over
        union, P(X >= intersection) for random circuits of the same sizes, and the share of the
        row's circuit that belongs to the column's.
    """
    tables = {}
    for kind, overlap in (("edge", edge_overlap), ("node", node_overlap)):
        rows = [[overlap(a, b) for b in circuits.values()] for a in circuits.values()]
        values = {
            "ious": [[pair.iou for pair in row] for row in rows],
            "iou_ps": [[pair.p_value for pair in row] for row in rows],
            "overlap": [[pair.precision for pair in row] for row in rows],
        }
        for name, matrix in values.items():
            tables[f"{kind}_{name}"] = pd.DataFrame(
                matrix, index=list(circuits), columns=list(circuits)
            )
    return tables


def average_overlap(first: Graph, second: Graph, *, depth: int) -> Float[np.ndarray, " depth"]:
    """Average overlap of the two rankings of edges by absolute score, for n = 1 .. `depth`.

    At n: the mean over d = 1 .. n of |top d of both| / d. Ties go to the earlier edge.
    """
    exact, estimate = paired_scores(first, second)
    if not 1 <= depth <= len(exact):
        raise UserError(f"no top {depth} of {len(exact):,} edges")
    ranks = []
    for scores in (exact, estimate):
        rank = np.empty(len(scores), dtype=np.int64)
        rank[np.argsort(-np.abs(scores), kind="stable")] = np.arange(len(scores))
        ranks.append(rank)
    # An edge belongs to both tops from its worse rank on.
    enters = np.bincount(np.maximum(*ranks), minlength=depth)[:depth]
    sizes = np.arange(1, depth + 1)
    return np.cumsum(np.cumsum(enters) / sizes) / sizes


def pearson(first: Graph, second: Graph) -> float:
    """Pearson's r of the absolute scores; NaN if one graph's are all equal."""
    a, b = (np.abs(scores) for scores in paired_scores(first, second))
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(stats.pearsonr(a, b).statistic)


def kendall_tau(first: Graph, second: Graph) -> float:
    """Kendall's tau-b of the absolute scores; NaN if one graph's are all equal."""
    a, b = (np.abs(scores) for scores in paired_scores(first, second))
    return float(stats.kendalltau(a, b).statistic)


def mean_absolute_difference(first: Graph, second: Graph) -> float:
    """Mean over edges of |score in the first - score in the second|, signs kept."""
    a, b = paired_scores(first, second)
    return float(np.abs(a - b).mean())


def paired_scores(
    first: Graph, second: Graph
) -> tuple[Float[np.ndarray, " n_edges"], Float[np.ndarray, " n_edges"]]:
    """Scores of the edges that both graphs have a score for, in index order.

    Where a graph says which of its scores are exact, only those count.
    """
    _check_same_shape(first, second)
    counted = first.edge_exists.numpy().copy()
    for graph in (first, second):
        counted &= np.isfinite(graph.scores.numpy())
        if graph.is_exact is not None and graph.is_exact.any():
            counted &= graph.is_exact.numpy()
    if not counted.any():
        raise UserError("the two graphs have no edge that both have a score for")
    a, b = (graph.scores.numpy()[counted].astype(np.float64) for graph in (first, second))
    return a, b


def _check_same_shape(first: Graph, second: Graph) -> None:
    same = first.receiver_names == second.receiver_names and first.n_edges == second.n_edges
    if not same:
        raise UserError(
            "cannot compare graphs of two shapes: "
            + " and ".join(
                f"{graph.config.n_layers} layers with {graph.config.n_heads} heads "
                f"({graph.n_edges:,} edges)"
                for graph in (first, second)
            )
        )


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")

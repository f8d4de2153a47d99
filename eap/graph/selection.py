"""Selection of edges by rank, by a threshold, greedily from the logits, or by nodes; and pruning.

Every function returns a mask of the kept edges, `[n_forward, n_backward]`, and modifies nothing. If
scores have an axis of spans before these, pairs of a span and an edge are selected, and nodes are
pairs of a span and a node; a graph without spans is treated like a graph with one span.

The order of the edges is given by `by`:

- `magnitude`: absolute value of the score (the choice of the paper);
- `helpful`: how much worse the metric gets when the edge is corrupted;
- `harmful`: how much better the metric gets when the edge is corrupted.

Raw signed scores are never ranked, because the meaning of their sign depends on the metric.
"""

import heapq
from math import inf
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from eap.graph.contents import (
    GraphContents,
    edge_exists,
    has_incoming,
    reads_keys,
    receiver_of,
)
from eap.graph.numbering import GraphConfig
from eap.runtime.errors import UserError, quoted
from eap.runtime.ranges import Range, is_whole, real, shown

By = Literal["magnitude", "helpful", "harmful"]
Edges = Bool[Tensor, "*span n_forward n_backward"]
Order = Int[np.ndarray, "axis n"]
"""Indices of edges along each axis of the scores: (span,) sender, receiver."""


def top_n(graph: GraphContents, n: int, by: By = "magnitude") -> Edges:
    """Select the `n` edges that rank highest; ties go to the earlier edge.

    Raises:
        UserError: fewer than `n` edges, unknown scores, or an unknown order.
    """
    n = check_number(n, graph.n_edges)
    values = edge_ranks(graph, by)
    if n == 0:
        return torch.zeros_like(graph.in_graph)
    last = torch.topk(values.flatten(), n, sorted=False).values.min()  # faster than a full sort
    kept = values > last
    ties = ((values == last) & edge_exists(graph.config)).flatten().nonzero().flatten()
    kept.view(-1)[ties[: n - int(kept.sum())]] = True
    return kept


def threshold(graph: GraphContents, minimum: float | Tensor, by: By = "magnitude") -> Edges:
    """Select all edges whose rank value is at least `minimum`, in units of the metric.

    Raises:
        UserError: `minimum` is not a finite number, scores are unknown, or an unknown order.
    """
    if isinstance(minimum, Tensor) and minimum.numel() == 1:
        minimum = minimum.item()
    minimum = real("minimum", minimum, Range(-inf, inf, open=True))
    return (edge_ranks(graph, by) >= minimum) & edge_exists(graph.config)


def first_edges(graph: GraphContents, order: Order) -> Edges:
    """Mask of the edges in an order, or in the beginning of one."""
    kept = torch.zeros_like(graph.in_graph)
    kept[tuple(torch.from_numpy(order))] = True
    return kept


def greedy_order(graph: GraphContents, n: int, by: By = "magnitude") -> Order:
    """Indices of the first `n` edges, in the order in which greedy selection adds them.

    The selection starts from the logits alone; in each step, it adds the best edge whose receiver's
    node is in the circuit, and with it the edge's sender (Hanna et al. 2024, section 4.1). Ties go
    to the earlier receiver, then to the earlier sender. The circuit of any smaller size is the
    beginning of this order, `order[:, :m]`.

    Raises:
        UserError: fewer than `n` edges, unknown scores, or an unknown order.
    """
    n = check_number(n, graph.n_edges)
    config, values = graph.config, edge_ranks(graph, by)
    values = values if graph.span_names else values[None]
    # [span and receiver, n_forward]; a sort along strided memory takes twice as long.
    inputs = values.transpose(1, 2).flatten(0, 1).contiguous()
    n_backward = config.n_backward  # outside the loop, because the property computes it
    # The edges of every receiver are sorted by score; the heap holds the next edge of each.
    ranked = torch.sort(inputs, descending=True, stable=True)
    wide = torch.promote_types(inputs.dtype, torch.float32)  # numpy has no bfloat16
    sorted_values, order = ranked.values.to(wide).numpy(), ranked.indices.numpy()
    n_incoming = edge_exists(config).sum(dim=0).tolist()
    receivers_of, at_keys = receiver_of(config).tolist(), reads_keys(config).tolist()
    heap: list[tuple[float, int, int]] = []  # (-score, span and receiver, rank in its sorted edges)
    opened, in_circuit = set(), set()
    chosen = np.empty((3, n), dtype=np.int64)

    def open_receiver(span: int, receiver: int) -> None:
        place = span * n_backward + receiver
        if receiver >= 0 and place not in opened:
            opened.add(place)
            heapq.heappush(heap, (-float(sorted_values[place, 0]), place, 0))

    for span in range(len(values)):
        open_receiver(span, config.logits_receiver)
    for step in range(n):
        _, place, rank = heap[0]
        span, receiver = divmod(place, n_backward)
        if rank + 1 < n_incoming[receiver]:
            following = -float(sorted_values[place, rank + 1])
            heapq.heapreplace(heap, (following, place, rank + 1))
        else:
            heapq.heappop(heap)
        sender = int(order[place, rank])
        chosen[:, step] = span, sender, receiver
        if (span, sender) not in in_circuit:
            in_circuit.add((span, sender))
            for opening in receivers_of[sender]:
                # A head reads keys and values at its own and at all earlier spans.
                for earlier in range(0 if at_keys[opening] else span, span + 1):
                    open_receiver(earlier, opening)
    return chosen[-graph.scores.ndim :]


def prune(config: GraphConfig, in_graph: Edges) -> Edges:
    """Remove nodes that are on no path from the input to the logits, with their edges.

    A head stays if at least one of its q, k and v inputs has an edge and its output has one.
    """
    while True:
        alive = has_incoming(config, in_graph) & in_graph.any(dim=-1)
        kept = in_graph & among(config, alive)
        if torch.equal(kept, in_graph):
            return kept
        in_graph = kept


def top_n_nodes(
    graph: GraphContents, n: int, by: By = "magnitude", *, rank_input: bool = False
) -> Edges:
    """Select all edges among the input, the logits, and the `n` heads and MLPs that rank highest.

    With `rank_input`, the input is ranked and counted too, and kept only if it is one of the `n`
    (as in MIB). Ties go to the earlier node. A node without a score (NaN) is always kept and not
    counted, as in the EAP-IG library.

    Raises:
        UserError: a graph without node scores, fewer than `n` nodes, or an unknown order.
    """
    if graph.node_scores is None:
        raise UserError(
            "this graph has no node scores: make them with attribute(..., level='node'), or select "
            "edges with top_n or greedy"
        )
    first = 0 if rank_input else 1
    values = _directed(graph, graph.node_scores, by)[..., first:]
    unscored = values.isnan()
    n = check_number(n, int((~unscored).sum()), "scored nodes")
    nodes = unscored.flatten()
    scored = (~nodes).nonzero().flatten()
    ranks = values.flatten()[scored]
    nodes[scored[torch.sort(ranks, descending=True, stable=True).indices[:n]]] = True
    kept = torch.ones_like(graph.node_scores, dtype=torch.bool)
    kept[..., first:] = nodes.view_as(values)
    return among(graph.config, kept) & edge_exists(graph.config)


def among(config: GraphConfig, nodes: Bool[Tensor, "*span n_forward"]) -> Edges:
    """Mask of the pairs with both ends among `nodes` (senders); the logits are always included.

    A receiver that several heads share is included if one of the heads is. A k or v input at a span
    is included if its head is included at that span or a later one.
    """
    inputs, readers = receiver_of(config)[1:].flatten(), nodes[..., 1:].repeat_interleave(3, dim=-1)
    reached = torch.zeros(
        *nodes.shape[:-1], config.n_backward, dtype=torch.long, device=nodes.device
    )
    reached.index_add_(-1, inputs, readers.long())
    if nodes.ndim > 1:
        later = reached.flip(0).cumsum(0).flip(0)
        reached = torch.where(reads_keys(config), later, reached)
    reached[..., config.logits_receiver] = 1
    return nodes[..., :, None] & (reached > 0)[..., None, :]


def edge_ranks(graph: GraphContents, by: By) -> Float[Tensor, "*span n_forward n_backward"]:
    """Values by which edges are ranked; minus infinity for pairs that are not edges.

    Raises:
        UserError: unknown scores, or an unknown order.
    """
    exists = edge_exists(graph.config)
    if (graph.scores.isnan() & exists).any():
        raise UserError("cannot select edges: some scores are NaN (never computed)")
    return _directed(graph, graph.scores, by).masked_fill(~exists, -torch.inf)


def _directed(graph: GraphContents, scores: Tensor, by: By) -> Tensor:
    """Scores with the sign turned so that high values come first in the order `by`."""
    if by not in get_args(By):
        names = ", ".join(map(repr, get_args(By)))
        raise UserError(f"edges are ranked by one of {names}, not by {quoted(str(by))}")
    if by == "magnitude":
        return scores.abs()
    if graph.higher_is_better is None:
        raise UserError(
            f"this graph does not say whether high or low values of its metric are better, so no "
            f"edge can be called {by}: give it with "
            "dataclasses.replace(graph, higher_is_better=True)"
        )
    # A score is metric(corrupted edge) - metric(clean).
    return -scores if (by == "helpful") == graph.higher_is_better else scores


def check_number(n: int, available: int, what: str = "edges") -> int:
    """Check a number of edges or nodes to select, and return it as an int.

    Raises:
        UserError: the number is not a whole number from 0 to `available`.
    """
    if not is_whole(n) or not 0 <= n <= available:
        raise UserError(f"cannot select {shown(n)} {what}: this graph has {available:,}")
    return int(n)

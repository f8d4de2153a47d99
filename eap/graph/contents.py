"""Contents of a graph: scores of all edges, the circuit of those that are kept, and their names.

Tensors are `[n_forward, n_backward]`, so that a graph of millions of edges takes a few megabytes
and every operation is a matrix operation. The modules `selection` (choosing edges), `files`
(reading and writing) and `export` (tables and pictures) work on these tensors; `graph.Graph`
combines them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from eap.graph.numbering import GraphConfig, edge_index, reads
from eap.runtime.errors import UserError, quoted
from eap.runtime.notebooks import html_table
from eap.runtime.other_names import GRAPH, unknown


@lru_cache(maxsize=16)
def edge_exists(config: GraphConfig) -> Bool[Tensor, "n_forward n_backward"]:
    """Mask of the (sender, receiver) pairs that are edges; shared, so it must not be modified."""
    senders = torch.arange(config.n_forward, device="cpu")
    return senders[:, None] < torch.tensor(reads(config), device="cpu")


@lru_cache(maxsize=16)
def receiver_of(config: GraphConfig) -> Int[Tensor, "n_forward 3"]:
    """q, k and v receivers of every head; an MLP's receiver three times; -1 for the input.

    The table is shared, so it must not be modified.
    """
    table = torch.full((config.n_forward, 3), -1, device="cpu")
    heads = torch.arange(config.n_heads, device="cpu")
    kv_heads = torch.tensor([config.kv_head(head) for head in range(config.n_heads)], device="cpu")
    for layer in range(config.n_layers):
        q, k, v = (config.receivers(layer, kind).start for kind in "qkv")
        table[config.heads(layer)] = torch.stack([q + heads, k + kv_heads, v + kv_heads], dim=1)
        table[config.mlp_sender(layer)] = config.mlp_receiver(layer)
    return table


@lru_cache(maxsize=16)
def reads_keys(config: GraphConfig) -> Bool[Tensor, " n_backward"]:
    """Mask of the k and v receivers, which are read at a key's position; must not be modified."""
    mask = torch.zeros(config.n_backward, dtype=torch.bool, device="cpu")
    for layer in range(config.n_layers):
        mask[config.receivers(layer, "k").start : config.receivers(layer, "v").stop] = True
    return mask


def has_incoming(
    config: GraphConfig, in_graph: Bool[Tensor, "*span n_forward n_backward"]
) -> Bool[Tensor, "*span n_forward"]:
    """Mask of the senders with an edge into one of their inputs, and of the input if it sends.

    At a span, a head is reached by edges into its q there, and into its k and v there or at earlier
    spans.
    """
    reached = in_graph.any(dim=-2)
    if reached.ndim > 1:
        carried = reached.cummax(dim=0).values
        reached = torch.where(reads_keys(config), carried, reached)
    incoming = reached[..., receiver_of(config)].any(dim=-1)
    incoming[..., 0] = in_graph[..., 0, :].any(dim=-1)
    return incoming


N_ROWS = 10  # rows shown in a notebook
EDGE_TENSORS = ("scores", "in_graph", "standard_errors", "is_exact")
NODE_TENSORS = ("node_scores", "node_errors")


def check_shapes(config: GraphConfig, tensors: Mapping[str, Any], *, n_spans: int = 0) -> None:
    """Check the shapes of the tensors of a graph, by their names; other values are ignored.

    Raises:
        UserError: a tensor of another shape, or a value that is no tensor.
    """
    nodes = [n_spans, config.n_forward] if n_spans else [config.n_forward]
    for name in (*EDGE_TENSORS, *NODE_TENSORS):
        tensor = tensors.get(name)
        shape = nodes if name in NODE_TENSORS else [*nodes, config.n_backward]
        found = list(getattr(tensor, "shape", ()))
        if tensor is not None and found != shape:
            raise UserError(f"{name} is {found}; a graph of this shape has {shape}")


class Edge(NamedTuple):
    """Edge with its name, ends and score.

    Attributes:
        name: name of the edge, such as `a0.h3->a5.h1<q>`.
        sender: name of the sender.
        receiver: name of the receiver.
        score: score of the edge.
        in_graph: whether the edge is in the circuit.

    Example:
        >>> next(graph.edges()).sender
        'input'
    """

    name: str
    sender: str
    receiver: str
    score: float
    in_graph: bool


@dataclass(frozen=True, eq=False)
class GraphContents:
    """Fields of a `Graph`, and its edges by name; see the documentation of `Graph`.

    A circuit behaves as the set of its edges' names.
    """

    config: GraphConfig
    scores: Float[Tensor, "*span n_forward n_backward"]
    in_graph: Bool[Tensor, "*span n_forward n_backward"]
    standard_errors: Float[Tensor, "*span n_forward n_backward"] | None = None
    is_exact: Bool[Tensor, "*span n_forward n_backward"] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    node_scores: Float[Tensor, "*span n_forward"] | None = None
    node_errors: Float[Tensor, "*span n_forward"] | None = None
    higher_is_better: bool | None = None
    span_names: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = self.span_names
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"two spans are named {quoted(twice, 60)}; give each its own name")
        check_shapes(self.config, vars(self), n_spans=len(self.span_names))

    if not TYPE_CHECKING:  # a type checker would accept every name

        def __getattr__(self, name: str) -> Any:
            """Raise an error that translates names of the EAP-IG library."""
            raise AttributeError(unknown("a graph", name, GRAPH), name=name, obj=self)

    @property
    def n_edges(self) -> int:
        """Number of edges of the whole graph; with spans, of pairs of an edge and a span."""
        return self.config.n_edges * max(1, len(self.span_names))

    @property
    def in_any_span(self) -> Bool[Tensor, "n_forward n_backward"]:
        """Mask of the edges that are in the circuit at one span at least."""
        return self.in_graph.any(dim=0) if self.span_names else self.in_graph

    def nodes_in_graph(self) -> set[str]:
        """Names of the nodes that send along an edge of the circuit, with `logits` if reached.

        An edge into a shared key or value does not put every head that shares it in the circuit.
        """
        in_graph = self.in_any_span
        sending = in_graph.any(dim=1).nonzero().flatten().tolist()
        names = {self.config.sender_names[i] for i in sending}
        return names | ({"logits"} if in_graph[:, -1].any() else set())

    # ---- edges by name -------------------------------------------------------------------------

    @property
    def n_forward(self) -> int:
        """Number of senders."""
        return self.config.n_forward

    @property
    def n_backward(self) -> int:
        """Number of receivers."""
        return self.config.n_backward

    @property
    def sender_names(self) -> tuple[str, ...]:
        """Names of the senders, in index order."""
        return self.config.sender_names

    @property
    def receiver_names(self) -> tuple[str, ...]:
        """Names of the receivers, in index order."""
        return self.config.receiver_names

    @property
    def edge_exists(self) -> Bool[Tensor, "*span n_forward n_backward"]:
        """Mask of the (sender, receiver) pairs that are edges; a new tensor in every call."""
        return edge_exists(self.config).expand(self.in_graph.shape).clone()

    def count_edges(self) -> int:
        """Number of edges of the circuit; with spans, of pairs of an edge and a span."""
        return int(self.in_graph.sum())

    def count_nodes(self) -> int:
        """Number of nodes that send along an edge of the circuit, plus the logits if reached."""
        return len(self.nodes_in_graph())

    def index(self, edge: str) -> tuple[int, int]:
        """Indices `(sender, receiver)` of an edge.

        Args:
            edge: name of the edge, such as `a0.h3->a5.h1<q>`.

        Raises:
            UserError: the model has no edge with that name.
        """
        return edge_index(self.config, edge)

    def score(self, edge: str) -> float:
        """Score of an edge.

        Args:
            edge: name of the edge; with spans, `a0.h3->m2 @ subject` names an edge at a span.

        Raises:
            UserError: the model has no edge with that name.

        Example:
            >>> graph.score("m0->m1") == float(graph.scores[graph.index("m0->m1")])
            True
        """
        return float(self.scores[self._place(edge)])

    def __contains__(self, edge: str) -> bool:
        """Whether the edge of this name (with spans, `a0.h3->m2 @ subject`) is in the circuit."""
        return bool(self.in_graph[self._place(edge)])

    def _place(self, edge: str) -> tuple[int, ...]:
        """Indices of an edge in the tensors, by its name."""
        if not self.span_names:
            return self.index(edge)
        name, _, span = str(edge).partition(" @ ")
        return (self._span_index(span), *self.index(name))

    def _span_index(self, name: str) -> int:
        """Number of a span, by its name."""
        if name not in self.span_names:
            names = quoted(", ".join(self.span_names), 200)
            raise UserError(
                f"no span {quoted(name, 60)}; this graph has {names}, and names of edges at a span "
                "end in ' @ ' and the span's name"
            )
        return self.span_names.index(name)

    def edges(self, *, in_graph_only: bool = True) -> Iterator[Edge]:
        """Iterate over edges as `Edge` objects, in the order of their senders.

        Args:
            in_graph_only: whether to give only the edges of the circuit.
        """
        pairs = self.in_graph if in_graph_only else self.edge_exists
        senders, receivers = self.sender_names, self.receiver_names
        for *span, i, j in pairs.nonzero().tolist():
            place = (*span, i, j)
            yield Edge(
                self._name(*place),
                senders[i],
                receivers[j],
                float(self.scores[place]),
                bool(self.in_graph[place]),
            )

    def edge_names(self) -> list[str]:
        """Names of the circuit's edges; with spans, such as `a0.h3->m2 @ subject`."""
        return [self._name(*place) for place in self.in_graph.nonzero().tolist()]

    def _name(self, *place: int) -> str:
        *span, i, j = place
        edge = f"{self.sender_names[i]}->{self.receiver_names[j]}"
        return f"{edge} @ {self.span_names[span[0]]}" if span else edge

    def __repr__(self) -> str:
        place = f" at {len(self.span_names)} spans" if self.span_names else ""
        return (
            f"Graph({self.config.n_layers} layers, {self.config.n_heads} heads{place}: "
            f"{self.count_edges():,} of {self.n_edges:,} edges)"
        )

    # ---- a circuit as a set of names -----------------------------------------------------------

    def __len__(self) -> int:
        """Number of edges of the circuit, the same as `count_edges`."""
        return self.count_edges()

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the circuit's edges, as in `edge_names`."""
        return iter(self.edge_names())

    def __eq__(self, other: object) -> bool:
        """Whether both circuits have the same edges of the same graph; scores do not matter."""
        if not isinstance(other, GraphContents):
            return NotImplemented
        same_graph = (self.config.shape, self.span_names) == (other.config.shape, other.span_names)
        return same_graph and torch.equal(self.in_graph, other.in_graph)

    def __hash__(self) -> int:
        """Hash that is equal for equal circuits."""
        return hash((self.config.shape, self.span_names, self.in_graph.cpu().numpy().tobytes()))

    def _repr_html_(self) -> str:
        """Table of the circuit's strongest edges, for notebooks."""
        scores = self.scores[self.in_graph]
        most = min(N_ROWS, len(scores))
        best = scores.double().abs().nan_to_num(-1.0).topk(most).indices
        places = self.in_graph.nonzero()[best].tolist()
        rows = [(self._name(*at), f"{float(self.scores[tuple(at)]):.4g}") for at in places]
        more = len(scores) - most
        return html_table(
            repr(self), ("edge", "score"), [*rows, *([(f"{more:,} more", "")] if more else [])]
        )


def check_plain(graph: GraphContents, what: str) -> None:
    """Check that a graph has no spans.

    Args:
        graph: graph to check.
        what: beginning of the message.

    Raises:
        UserError: the graph has spans.
    """
    if graph.span_names:
        raise UserError(
            f"{what} no spans, and this graph has {len(graph.span_names)}: give "
            "graph.over_spans(), or graph.at_span(name)"
        )

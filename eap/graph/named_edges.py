"""Edges of a graph by name: counting, look-up, iteration, comparison and display."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from eap.graph.contents import GraphContents, edge_exists
from eap.graph.numbering import edge_index
from eap.runtime.errors import UserError, quoted
from eap.runtime.notebooks import html_table

N_ROWS = 10  # rows shown in a notebook


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
class NamedEdges(GraphContents):
    """Methods of a `Graph` that name edges; a circuit behaves as the set of its edges' names."""

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
        if not isinstance(other, NamedEdges):
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

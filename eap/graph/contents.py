"""What a graph holds: the scores of all edges, and which of them are kept.

Tensors are `[n_forward, n_backward]`, so that a graph of millions of edges is a few megabytes and
every operation is a matrix operation. What is done with them is in `selection` (choosing edges),
`files` (reading, writing) and `export` (tables and pictures of others); `graph.Graph` gathers it.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from eap.graph import numbering
from eap.graph.numbering import GraphConfig
from eap.runtime.errors import UserError
from eap.runtime.other_names import GRAPH, unknown


@lru_cache(maxsize=16)
def edge_exists(config: GraphConfig) -> Bool[Tensor, "n_forward n_backward"]:
    """Which (sender, receiver) pairs are edges; shared within this room, never to be written."""
    return torch.from_numpy(numbering.edge_exists(config).copy())


@lru_cache(maxsize=16)
def receiver_of(config: GraphConfig) -> Int[Tensor, "n_forward 3"]:
    """The q, k, v receivers of every sender, as `numbering.receiver_of`; never to be written."""
    return torch.from_numpy(numbering.receiver_of(config).copy())


@lru_cache(maxsize=16)
def reads_keys(config: GraphConfig) -> Bool[Tensor, " n_backward"]:
    """Which receivers are k or v inputs, read at a key's position; never to be written."""
    reads = torch.zeros(config.n_backward, dtype=torch.bool, device="cpu")
    for layer in range(config.n_layers):
        reads[config.receivers(layer, "k").start : config.receivers(layer, "v").stop] = True
    return reads


def has_incoming(
    config: GraphConfig, in_graph: Bool[Tensor, "*span n_forward n_backward"]
) -> Bool[Tensor, "*span n_forward"]:
    """Which senders have an edge into one of their inputs; the input node if it sends.

    At a span, a head is reached by its q there, and by its k and v there and at earlier spans.
    """
    reached = in_graph.any(dim=-2)
    if reached.ndim > 1:
        carried = reached.cummax(dim=0).values
        reached = torch.where(reads_keys(config), carried, reached)
    incoming = reached[..., receiver_of(config)].any(dim=-1)
    incoming[..., 0] = in_graph[..., 0, :].any(dim=-1)
    return incoming


EDGE_TENSORS = ("scores", "in_graph", "standard_errors", "is_exact")
NODE_TENSORS = ("node_scores", "node_errors")


@dataclass(frozen=True, eq=False)
class GraphContents:
    """The fields of a `Graph`, which describes them."""

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
        nodes = (*([len(self.span_names)] if self.span_names else []), self.config.n_forward)
        shapes: dict[str, tuple[int, ...]] = {
            **dict.fromkeys(EDGE_TENSORS, (*nodes, self.config.n_backward)),
            **dict.fromkeys(NODE_TENSORS, nodes),
        }
        for name, shape in shapes.items():
            tensor = getattr(self, name)
            if tensor is not None and tuple(tensor.shape) != shape:
                raise UserError(
                    f"{name} is {list(tensor.shape)}; a graph of this shape has {list(shape)}"
                )

    if not TYPE_CHECKING:  # where every other name would be known

        def __getattr__(self, name: str) -> Any:
            """Say what a name of the EAP-IG library is called here."""
            raise AttributeError(unknown("a graph", name, GRAPH), name=name, obj=self)

    @property
    def n_edges(self) -> int:
        """Number of edges of the whole graph; with spans, of pairs of an edge and a span."""
        return self.config.n_edges * max(1, len(self.span_names))

    @property
    def in_any_span(self) -> Bool[Tensor, "n_forward n_backward"]:
        """Which edges are in the circuit at one span at least."""
        return self.in_graph.any(dim=0) if self.span_names else self.in_graph

    def nodes_in_graph(self) -> set[str]:
        """Names of the nodes that send along an edge of the circuit; `logits` if an edge enters it.

        A head is not in the circuit for an edge into a key or value that it merely shares.
        """
        in_graph = self.in_any_span
        sending = in_graph.any(dim=1).nonzero().flatten().tolist()
        names = {self.config.sender_names[i] for i in sending}
        return names | ({"logits"} if in_graph[:, -1].any() else set())


def check_plain(graph: GraphContents, what: str) -> None:
    """Whether a graph is one that `what` is done with: without spans.

    Raises:
        UserError: it has spans.
    """
    if graph.span_names:
        raise UserError(
            f"{what} no spans, and this graph has {len(graph.span_names)}: give "
            "graph.over_spans(), or graph.at_span(name)"
        )

"""Contents of a graph: scores of all edges, and the circuit of the edges that are kept.

Tensors are `[n_forward, n_backward]`, so that a graph of millions of edges takes a few megabytes
and every operation is a matrix operation. The modules `selection` (choosing edges), `files`
(reading and writing) and `export` (tables and pictures) work on these tensors; `graph.Graph`
combines them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from eap.graph.numbering import GraphConfig, reads
from eap.runtime.errors import UserError, quoted
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


@dataclass(frozen=True, eq=False)
class GraphContents:
    """Fields of a `Graph`; see the documentation of `Graph`."""

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

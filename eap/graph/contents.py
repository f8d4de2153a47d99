"""What a graph holds: the scores of all edges, and which of them are kept.

Tensors are `[n_forward, n_backward]`, so that a graph of millions of edges is a few megabytes and
every operation is a matrix operation. What is done with them is in `selection` (choosing edges),
`files` (reading, writing) and `export` (tables and pictures of others); `graph.Graph` gathers it.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from eap.errors import UserError
from eap.graph import numbering
from eap.graph.numbering import GraphConfig


@lru_cache(maxsize=16)
def edge_exists(config: GraphConfig) -> Bool[Tensor, "n_forward n_backward"]:
    """Which (sender, receiver) pairs are edges; shared within this room, never to be written."""
    return torch.from_numpy(numbering.edge_exists(config).copy())


@lru_cache(maxsize=16)
def receiver_of(config: GraphConfig) -> Int[Tensor, "n_forward 3"]:
    """The q, k, v receivers of every sender, as `numbering.receiver_of`; never to be written."""
    return torch.from_numpy(numbering.receiver_of(config).copy())


def has_incoming(
    config: GraphConfig, in_graph: Bool[Tensor, "n_forward n_backward"]
) -> Bool[Tensor, " n_forward"]:
    """Which senders have an edge into one of their inputs; the input node if it sends."""
    incoming = in_graph.any(dim=0)[receiver_of(config)].any(dim=1)
    incoming[0] = in_graph[0].any()
    return incoming


@dataclass(frozen=True, eq=False)
class GraphContents:
    """The fields of a `Graph`, which describes them."""

    config: GraphConfig
    scores: Float[Tensor, "n_forward n_backward"]
    in_graph: Bool[Tensor, "n_forward n_backward"]
    standard_errors: Float[Tensor, "n_forward n_backward"] | None = None
    is_exact: Bool[Tensor, "n_forward n_backward"] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    node_scores: Float[Tensor, " n_forward"] | None = None
    node_errors: Float[Tensor, " n_forward"] | None = None
    higher_is_better: bool | None = None

    def __post_init__(self) -> None:
        edges = (self.config.n_forward, self.config.n_backward)
        shapes = {
            **dict.fromkeys(("scores", "in_graph", "standard_errors", "is_exact"), edges),
            **dict.fromkeys(("node_scores", "node_errors"), edges[:1]),
        }
        for name, shape in shapes.items():
            tensor = getattr(self, name)
            if tensor is not None and tuple(tensor.shape) != shape:
                raise UserError(
                    f"{name} is {list(tensor.shape)}; a graph of this shape has {list(shape)}"
                )

    def nodes_in_graph(self) -> set[str]:
        """Names of the nodes that send along an edge of the circuit; `logits` if an edge enters it.

        A head is not in the circuit for an edge into a key or value that it merely shares.
        """
        sending = self.in_graph.any(dim=1).nonzero().flatten().tolist()
        names = {self.config.sender_names[i] for i in sending}
        return names | ({"logits"} if self.in_graph[:, -1].any() else set())

"""Circuits that people found by hand in GPT-2 small, to compare found circuits with.

They are data, `data/manual_circuits/<name>.json`: groups of nodes and which group feeds which.
"""

import json
from itertools import product

import torch

from eap.data import DATA
from eap.errors import UserError
from eap.graph import Graph

NAMES = ("ioi", "greater-than")


def manual_circuit(graph: Graph, name: str, *, published_wiring: bool = False) -> Graph:
    """The hand-made circuit `name` as a circuit of `graph`.

    Args:
        graph: of a model with GPT-2 small's shape.
        name: 'ioi' or 'greater-than'.
        published_wiring: as the published comparison had it, with its mistakes.

    Raises:
        UserError: the graph has another shape, so its heads are not those of the circuit.
    """
    path = DATA / "manual_circuits" / f"{name}.json"
    document = json.loads(path.read_text(encoding="utf8"))
    shape = (graph.config.n_layers, graph.config.n_heads)
    wanted = (document["n_layers"], document["n_heads"])
    if shape != wanted:
        raise UserError(
            f"the hand-made {name} circuit is of a model with {wanted[0]} layers of {wanted[1]} "
            f"heads (GPT-2 small); this one has {shape[0]} of {shape[1]}"
        )
    in_graph = torch.zeros_like(graph.edge_exists)
    groups = {"input": ["input"], "logits": ["logits"], **document["groups"]}
    wiring = document["published_wiring" if published_wiring else "wiring"]
    for sender_group, receiver_group, kinds in wiring:
        for sender, receiver in product(groups[sender_group], groups[receiver_group]):
            for name_of_edge in _receivers(receiver, kinds):
                i, j = graph.sender_names.index(sender), graph.receiver_names.index(name_of_edge)
                if graph.edge_exists[i, j]:  # a group's later heads do not feed earlier ones
                    in_graph[i, j] = True
    return graph.with_edges(in_graph)


def _receivers(receiver: str, kinds: str) -> list[str]:
    """Receivers of a connection: inputs of a head, or the one of an MLP or the logits."""
    return [f"{receiver}<{kind}>" for kind in kinds] if kinds else [receiver]

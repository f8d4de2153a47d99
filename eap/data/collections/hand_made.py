"""Circuits found by hand in GPT-2 small, for comparison.

The circuits are data, `data/manual_circuits/<task>.json`: groups of nodes, and a list of which
group feeds which input (q, k, v; "" for MLPs and logits) of which other group.
"""

import json
from dataclasses import dataclass
from itertools import product

import torch

from eap.data.dataset import DATA
from eap.graph.graph import Graph
from eap.runtime.errors import UserError

FOLDER = DATA / "manual_circuits"


@dataclass(frozen=True)
class ManualCircuit:
    """Circuit found by hand.

    Attributes:
        graph: edges of the circuit, as a circuit of the given graph.
        include_mlps: whether the authors studied MLPs; if not, only heads are compared.
        source: publication or authors.
        corrections: differences from the wiring that the paper compares with.
    """

    graph: Graph
    include_mlps: bool
    source: str
    corrections: tuple[str, ...]


def load_manual_circuit(
    graph: Graph, task: str, *, published_wiring: bool = False
) -> ManualCircuit:
    """Load the hand-made circuit of a task ('ioi' or 'greater-than').

    Args:
        graph: graph of a model with the shape of GPT-2 small.
        task: name of the task.
        published_wiring: whether to use the wiring of the paper's comparison, with its mistakes.

    Raises:
        UserError: there is no circuit for the task, or the graph has another shape, so that its
            heads are not those of the circuit.
    """
    path = FOLDER / f"{task}.json"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.json")))
        raise UserError(f"no hand-made circuit for {task!r}; there are circuits for {known}")
    document = json.loads(path.read_text(encoding="utf8"))
    wanted = (document["n_layers"], document["n_heads"])
    shape = (graph.config.n_layers, graph.config.n_heads)
    if shape != wanted or graph.config.n_kv_receivers != graph.config.n_heads:
        raise UserError(
            f"the hand-made {task} circuit is of {document['model']} ({wanted[0]} layers of "
            f"{wanted[1]} heads); this model has {shape[0]} layers of {shape[1]}"
        )
    wiring = document["wiring"]
    if published_wiring:
        wiring = document.get("published_wiring", wiring)
    groups = document["groups"]
    senders = {name: i for i, name in enumerate(graph.sender_names)}
    receivers = {name: j for j, name in enumerate(graph.receiver_names)}
    in_graph = torch.zeros_like(graph.edge_exists)
    for sender_group, receiver_group, inputs in wiring:
        for sender, receiver in product(
            groups.get(sender_group, [sender_group]), groups.get(receiver_group, [receiver_group])
        ):
            names = [f"{receiver}<{kind}>" for kind in inputs] if "h" in receiver else [receiver]
            for name in names:
                in_graph[senders[sender], receivers[name]] = True
    # If two groups share layers, later nodes do not feed earlier ones.
    in_graph &= graph.edge_exists
    return ManualCircuit(
        graph.with_edges(in_graph),
        include_mlps=document["include_mlps"],
        source=document["source"],
        corrections=tuple(document["corrections"]),
    )

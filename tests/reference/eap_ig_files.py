"""A reader of graph files as the EAP-IG library reads them, written from a description.

A graph is dictionaries by name: `scores` and `in_graph` of edges, `nodes` and `node_scores`. The
shape follows from `cfg` alone: one k and one v per query head; senders and receivers in order of
layers, per layer q of every head, then k, then v, then the MLP.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass
class TheirGraph:
    """What the library holds after reading."""

    scores: dict[str, float]
    in_graph: dict[str, bool]
    nodes: dict[str, bool] = field(default_factory=dict)
    node_scores: dict[str, float] = field(default_factory=dict)


def shape_of(cfg: dict[str, Any]) -> tuple[list[str], list[str], set[str]]:
    """Senders, receivers and edges of a `cfg`."""
    layers, heads = range(cfg["n_layers"]), range(cfg["n_heads"])
    senders, receivers, edges = ["input"], [], set()
    for layer in layers:
        inputs = [f"a{layer}.h{head}<{kind}>" for kind in "qkv" for head in heads]
        outputs = [f"a{layer}.h{head}" for head in heads]
        edges |= {f"{sender}->{receiver}" for sender in senders for receiver in inputs}
        if cfg["parallel_attn_mlp"]:
            edges |= {f"{sender}->m{layer}" for sender in senders}
            senders += outputs
        else:
            senders += outputs
            edges |= {f"{sender}->m{layer}" for sender in senders}
        senders.append(f"m{layer}")
        receivers += [*inputs, f"m{layer}"]
    edges |= {f"{sender}->logits" for sender in senders}
    return senders, [*receivers, "logits"], edges


def read_json(path: Path, *, paper: bool = False) -> TheirGraph:
    """The present library's form, or the paper's (`paper`), where a node is a bool."""
    document = json.loads(path.read_text())
    senders, _, edges = shape_of(document["cfg"])
    graph = TheirGraph(dict.fromkeys(edges, 0.0), dict.fromkeys(edges, False))
    for name, node in document["nodes"].items():
        assert name in senders or name == "logits"
        if name == "logits":
            continue
        graph.nodes[name] = node if paper else node["in_graph"]
        assert isinstance(graph.nodes[name], bool)
        if not paper and "score" in node:
            graph.node_scores[name] = node["score"]
    for name, edge in document["edges"].items():
        assert name in edges
        graph.scores[name], graph.in_graph[name] = edge["score"], edge["in_graph"]
    return graph


def read_pt(path: Path) -> TheirGraph:
    """The library's torch file: tensors in its own order of nodes."""
    saved = torch.load(path, weights_only=True)
    senders, receivers, edges = shape_of(saved["cfg"])
    shape = (len(senders), len(receivers))
    assert saved["edges_scores"].shape == saved["edges_in_graph"].shape == shape
    assert saved["nodes_in_graph"].shape == (len(senders),)
    assert saved["src_nodes"] == senders
    assert saved["dst_nodes"] == receivers

    def by_name(table: torch.Tensor) -> dict[str, Any]:
        return {
            name: value
            for sender, row in zip(senders, table.tolist(), strict=True)
            for receiver, value in zip(receivers, row, strict=True)
            if (name := f"{sender}->{receiver}") in edges
        }

    graph = TheirGraph(by_name(saved["edges_scores"]), by_name(saved["edges_in_graph"]))
    graph.nodes = dict(zip(senders, saved["nodes_in_graph"].tolist(), strict=True))
    if "nodes_scores" in saved:
        graph.node_scores = dict(zip(senders, saved["nodes_scores"].tolist(), strict=True))
    return graph


def write_pt(graph: TheirGraph, cfg: dict[str, Any], path: Path) -> None:
    """The same file, as the library writes it."""
    senders, receivers, _ = shape_of(cfg)

    def table(values: dict[str, Any], outside: Any) -> torch.Tensor:
        return torch.tensor(
            [[values.get(f"{u}->{v}", outside) for v in receivers] for u in senders]
        )

    saved = {
        "cfg": dict(cfg),
        "src_nodes": senders,
        "dst_nodes": receivers,
        "edges_scores": table(graph.scores, 0.0),
        "edges_in_graph": table(graph.in_graph, False),
        "nodes_in_graph": torch.tensor([graph.nodes[name] for name in senders]),
    }
    if graph.node_scores:
        saved["nodes_scores"] = torch.tensor([graph.node_scores[name] for name in senders])
    torch.save(saved, path)

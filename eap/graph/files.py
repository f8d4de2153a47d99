"""Graphs as files: JSON with the schema of the published ones, and safetensors."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from eap.errors import UserError
from eap.graph.contents import GraphContents, edge_exists
from eap.graph.numbering import GraphConfig, receiver_index, sender_index
from eap.runtime.atomic import write_atomically


def write(graph: GraphContents, path: Path) -> None:
    """Write a graph, whole or not at all."""
    writers = {".json": _write_json, ".safetensors": _write_safetensors}
    if path.suffix not in writers:
        raise UserError(f"cannot save a graph as {path.name!r}: use .json or .safetensors")
    with write_atomically(path) as temporary:
        writers[path.suffix](graph, temporary)


def _write_json(graph: GraphContents, path: Path) -> None:
    present = graph.nodes_in_graph()
    columns: dict[str, Any] = {"score": graph.scores, "in_graph": graph.in_graph}
    if graph.standard_errors is not None:
        columns["standard_error"] = graph.standard_errors
    if graph.is_exact is not None:
        columns["exact"] = graph.is_exact
    exists = edge_exists(graph.config)
    where = exists.nonzero().tolist()
    values = [column[exists].tolist() for column in columns.values()]
    senders, receivers = graph.config.sender_names, graph.config.receiver_names
    edges = {
        f"{senders[i]}->{receivers[j]}": dict(zip(columns, row, strict=True))
        for (i, j), row in zip(where, zip(*values, strict=True), strict=True)
    }
    document = {
        "cfg": asdict(graph.config),
        "provenance": graph.provenance,
        "nodes": {name: name in present for name in (*senders, "logits")},
        "edges": edges,
    }
    path.write_text(json.dumps(document), encoding="utf8")


def _write_safetensors(graph: GraphContents, path: Path) -> None:
    tensors = {"scores": graph.scores, "in_graph": graph.in_graph}
    if graph.standard_errors is not None:
        tensors["standard_errors"] = graph.standard_errors
    if graph.is_exact is not None:
        tensors["is_exact"] = graph.is_exact
    header = {"cfg": asdict(graph.config), "provenance": graph.provenance}
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    path.write_bytes(save(contiguous, metadata={"graph": json.dumps(header)}))


def read(path: Path) -> GraphContents:
    """Read a graph that `write` wrote, or a JSON of the paper or of the EAP-IG library."""
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        return _read_document(json.loads(path.read_text(encoding="utf8")))
    except FileNotFoundError:
        raise UserError(f"no graph at {path}") from None
    except OSError as error:
        raise UserError(f"cannot read a graph from {path}: {error.strerror}") from None
    except (KeyError, TypeError, AttributeError, ValueError, SafetensorError) as error:
        if isinstance(error, UserError):
            raise UserError(f"{path}: {error}") from None
        raise UserError(
            f"{path} is not a graph: {type(error).__name__} {error}; expected 'cfg', 'nodes' "
            "and 'edges' as the published files have them"
        ) from None


def _read_safetensors(path: Path) -> GraphContents:
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["graph"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    graph = GraphContents(GraphConfig(**header["cfg"]), provenance=header["provenance"], **tensors)
    if (graph.in_graph & ~edge_exists(graph.config)).any():
        raise UserError("in_graph is True where this shape has no edge")
    return graph


def _read_document(document: dict[str, Any]) -> GraphContents:
    config = _read_config(document["cfg"])
    edges = document["edges"]
    names, infos = list(edges), list(edges.values())
    if missing := config.n_edges - len(edges):
        raise UserError(
            f"{len(edges):,} edges where this shape has {config.n_edges:,} ({missing:+,})"
        )
    split = [name.partition("->") for name in names]
    sender_of, receiver_of = sender_index(config), receiver_index(config)
    try:
        senders = torch.tensor([sender_of[sender] for sender, _, _ in split])
        receivers = torch.tensor([receiver_of[receiver] for _, _, receiver in split])
    except KeyError as error:
        raise UserError(f"unknown node {error} for this shape") from None
    exists = edge_exists(config)
    if not exists[senders, receivers].all():
        wrong = int((~exists[senders, receivers]).nonzero()[0])
        raise UserError(f"{names[wrong]} is no edge of this shape")

    def column(key: str, default: Any, dtype: torch.dtype) -> Tensor:
        values = [info.get(key) for info in infos]
        filled = [default if value is None else value for value in values]
        out = torch.zeros(exists.shape, dtype=dtype)
        out[senders, receivers] = torch.tensor(filled, dtype=torch.float64).to(dtype)
        return out

    return GraphContents(
        config,
        scores=column("score", float("nan"), torch.float32),
        in_graph=column("in_graph", False, torch.bool),
        standard_errors=(
            column("standard_error", float("nan"), torch.float32)
            if "standard_error" in infos[0]
            else None
        ),
        is_exact=column("exact", False, torch.bool) if "exact" in infos[0] else None,
        provenance=document.get("provenance", {}),
    )


def _read_config(cfg: dict[str, Any]) -> GraphConfig:
    """Our own `cfg`, or a published one, which knows no key/value heads: one k and v per head."""
    n_heads = int(cfg["n_heads"])
    return GraphConfig(
        n_layers=int(cfg["n_layers"]),
        n_heads=n_heads,
        d_model=int(cfg.get("d_model") or 0),
        n_kv_heads=int(cfg.get("n_kv_heads") or n_heads),
        parallel_attn_mlp=bool(cfg.get("parallel_attn_mlp", False)),
        expanded_kv=bool(cfg.get("expanded_kv", False)),
    )

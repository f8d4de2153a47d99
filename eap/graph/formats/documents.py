"""Graphs as JSON documents of this package, the EAP-IG library, MIB, or the paper.

    {"cfg": {"n_layers", "n_heads", "parallel_attn_mlp", "d_model"},
     "nodes": {name: {"in_graph", "score"}},          # in the paper: {name: bool}
     "edges": {name: {"score", "in_graph"}}}

A file may list only the edges of a circuit ("slim"), or no edges at all (node level). Files of the
paper lack `d_model`. This package adds `cfg.n_kv_heads`, `cfg.expanded_kv`, `score_sign`,
`higher_is_better`, `dtype` and `provenance`, and `standard_error` and `exact` for each edge or
node; the library's reader ignores keys that it does not know.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

import torch
from torch import Tensor

from eap.graph.contents import GraphContents, edge_exists, has_incoming
from eap.graph.numbering import GraphConfig, receiver_index, sender_index
from eap.graph.selection import among
from eap.runtime.errors import UserError, first_line, quoted

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
}
TEXTS = ("labels", "groups")
MOST_PAIRS = 2**27  # largest number of pairs of a file that does not list all of its edges


def to_document(graph: GraphContents, *, schema: str) -> dict[str, Any]:
    """JSON document of a graph, with nodes as objects ('library') or as booleans ('paper').

    Raises:
        UserError: a score is infinite, which JSON cannot represent.
    """
    config = asdict(graph.config)
    if schema == "paper":
        config = {name: config[name] for name in ("n_layers", "n_heads", "parallel_attn_mlp")}
    sign = file_sign(graph.higher_is_better)
    signed = with_sign(graph, sign)
    return {
        "cfg": config,
        "score_sign": sign,
        "higher_is_better": graph.higher_is_better,
        "dtype": str(graph.scores.dtype).removeprefix("torch."),
        "provenance": graph.provenance,
        **texts_of(graph),
        "nodes": _node_entries(signed, booleans=schema == "paper"),
        "edges": {} if is_of_nodes_alone(graph) else _edge_entries(signed),
    }


def text_of(document: dict[str, Any]) -> str:
    """JSON text of a document; values of provenance that JSON does not know are written as text.

    Raises:
        UserError: provenance with keys that are not names, or that contains itself.
    """
    try:
        return json.dumps(document, default=str)
    except (TypeError, ValueError) as error:
        raise UserError(f"provenance cannot be saved as JSON: {first_line(error, 150)}") from None


def texts_of(graph: GraphContents) -> dict[str, Any]:
    """Labels and groups of nodes, if there are any, because other programs do not know them."""
    return {key: texts for key in TEXTS if (texts := getattr(graph, key))}


def is_of_nodes_alone(graph: GraphContents) -> bool:
    """Whether edges have no values, and the circuit has all edges among some of the nodes."""
    known = (graph.standard_errors, graph.is_exact)
    if graph.node_scores is None or any(tensor is not None for tensor in known):
        return False
    if not graph.scores[edge_exists(graph.config)].isnan().all():
        return False
    nodes = has_incoming(graph.config, graph.in_graph) & graph.in_graph.any(dim=1)
    nodes[0] = True
    chosen = among(graph.config, nodes) & edge_exists(graph.config)
    return torch.equal(chosen, graph.in_graph) or not graph.in_graph.any()


def file_sign(higher_is_better: bool | None) -> int:
    """Factor for the scores in a file in which positive means helpful.

    Scores of this package are `metric(corrupted edge) - metric(clean)`. So positive means helpful
    if low values of the metric are better; if high values are, or if that is unknown, the factor is
    -1.
    """
    return 1 if higher_is_better is False else -1


def turned(scores: Tensor, sign: int) -> Tensor:
    """Scores times `sign`, without turning a zero into a negative zero."""
    return scores if sign == 1 else 0 - scores


def with_sign(graph: GraphContents, sign: int) -> GraphContents:
    """Graph with the scores of edges and nodes times `sign`."""
    nodes = None if graph.node_scores is None else turned(graph.node_scores, sign)
    return replace(graph, scores=turned(graph.scores, sign), node_scores=nodes)


def _edge_entries(graph: GraphContents) -> dict[str, dict[str, Any]]:
    exists = edge_exists(graph.config)
    columns = {
        "score": _numbers(graph.scores[exists], "scores"),
        "in_graph": graph.in_graph[exists].tolist(),
    }
    if graph.standard_errors is not None:
        columns["standard_error"] = _numbers(graph.standard_errors[exists], "standard errors")
    if graph.is_exact is not None:
        columns["exact"] = graph.is_exact[exists].tolist()
    senders, receivers = graph.config.sender_names, graph.config.receiver_names
    return {
        f"{senders[i]}->{receivers[j]}": dict(zip(columns, row, strict=True))
        for (i, j), row in zip(
            exists.nonzero().tolist(), zip(*columns.values(), strict=True), strict=True
        )
    }


def _node_entries(graph: GraphContents, *, booleans: bool) -> dict[str, Any]:
    present = graph.nodes_in_graph()
    senders = graph.config.sender_names
    if booleans:
        return {name: name in present for name in (*senders, "logits")}
    entries: dict[str, dict[str, Any]] = {
        name: {"in_graph": name in present} for name in (*senders, "logits")
    }
    for key, scores in (("score", graph.node_scores), ("standard_error", graph.node_errors)):
        if scores is not None:
            for name, value in zip(senders, _numbers(scores, "node scores"), strict=True):
                entries[name][key] = value
    return entries


def _numbers(values: Tensor, what: str) -> list[float | None]:
    """Values for JSON, with null for unknown values."""
    if values.isinf().any():
        raise UserError(f"some {what} are infinite, which JSON cannot hold: save as .safetensors")
    return [None if math.isnan(value) else value for value in values.tolist()]


# ---- reading -------------------------------------------------------------------------------------


def read_document(document: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and fields of the graph of a document in any of the supported forms.

    Args:
        document: content of a JSON file.

    Returns:
        The document, with the names of its parts that a graph cannot hold as `left_out`; and the
        fields that it gives to a graph, with scores as in the file.

    Raises:
        UserError: the document is not a graph, or parts of it contradict one another.
    """
    document = mapping(document, "a graph's file")
    for key in ("cfg", "nodes", "edges"):
        if key not in document:
            raise UserError(f"no {key!r}; a graph's file has 'cfg', 'nodes' and 'edges'")
    config = read_config(document["cfg"])
    dtype = DTYPES.get(str(document.get("dtype", "float32")))
    if dtype is None:
        raise UserError(
            f"dtype {quoted(str(document['dtype']), 40)} is none of {', '.join(DTYPES)}"
        )
    edges = _read_edges(config, mapping(document["edges"], "'edges'"), dtype)
    nodes = {
        name: {"in_graph": node} if isinstance(node, bool) else mapping(node, f"node {name!r}")
        for name, node in mapping(document["nodes"], "'nodes'").items()
    }
    if unknown := nodes.keys() - {*config.sender_names, "logits"}:
        raise UserError(f"{quoted(min(unknown), 60)} is not a node of this shape")
    senders = [nodes.get(name, {}) for name in config.sender_names]
    kept = _column(senders, "in_graph", torch.bool, False)
    if not document["edges"] and kept.any():
        kept[0] = True
        edges["in_graph"] = among(config, kept) & edge_exists(config)
    left_out = [key for key in ("neurons", "neurons_scores") if _any_has(nodes.values(), key)]
    written = document.get("score_sign")
    if written is None and "provenance" in document and "n_kv_heads" in document["cfg"]:
        written = 1  # this package wrote the file, before it recorded the sign
    return {**document, "score_sign": written, "left_out": left_out}, {
        "config": config,
        "node_scores": _known_column(senders, "score", dtype, math.nan),
        "node_errors": _known_column(senders, "standard_error", dtype, math.nan),
        **edges,
    }


def read_config(cfg: Any) -> GraphConfig:
    """Read the shape of a graph; published files lack key/value heads, so one k and v per head.

    Raises:
        UserError: the value is not a shape, or the shape is too large for any file.
    """
    cfg = mapping(cfg, "'cfg'")
    names = [part.name for part in fields(GraphConfig)]
    given = {name: cfg[name] for name in names if cfg.get(name) is not None}
    for name in ("n_layers", "n_heads"):
        if name not in given:
            raise UserError(f"no {name!r} in 'cfg'")
    return GraphConfig(**{"d_model": 0, "n_kv_heads": given["n_heads"], **given})


def _read_edges(
    config: GraphConfig, edges: Mapping[str, Any], dtype: torch.dtype
) -> dict[str, Tensor | None]:
    """Tensors of the edges; edges that are not listed are not kept and have unknown scores."""
    infos = [mapping(info, f"edge {quoted(name, 60)}") for name, info in edges.items()]
    missing = config.n_edges - len(edges)
    misfit = f"{len(edges):,} edges where this shape has {config.n_edges:,} ({missing:+,})"
    # Checked before large tensors are made.
    if missing < 0 or (missing and config.n_forward * config.n_backward > MOST_PAIRS):
        raise UserError(misfit)
    if missing and not all(info.get("in_graph", True) is True for info in infos):
        raise UserError(f"{misfit}, and not all of them are in the circuit")
    exists = edge_exists(config)
    split = [name.partition("->") for name in edges]
    position, position_read = sender_index(config), receiver_index(config)
    try:
        ends = [position[name] for name, _, _ in split], [position_read[name] for *_, name in split]
    except KeyError as error:
        name = quoted(error.args[0], 60)
        raise UserError(f"an edge ends at {name}, which is not a node of this shape") from None
    senders, receivers = (
        torch.tensor(indices, dtype=torch.long, device=exists.device) for indices in ends
    )
    if not exists[senders, receivers].all():
        wrong = int((~exists[senders, receivers]).nonzero()[0])
        raise UserError(f"{quoted(list(edges)[wrong], 60)} is not an edge of this shape")

    def placed(column: Tensor | None) -> Tensor | None:
        if column is None:
            return None
        table = column.new_zeros(exists.shape)
        if column.is_floating_point():
            table[exists] = math.nan
        table[senders, receivers] = column
        return table

    return {
        "scores": placed(_column(infos, "score", dtype, math.nan)),
        "in_graph": placed(_column(infos, "in_graph", torch.bool, missing > 0)),
        "standard_errors": placed(_known_column(infos, "standard_error", dtype, math.nan)),
        "is_exact": placed(_known_column(infos, "exact", torch.bool, False)),
    }


def _column(
    entries: Sequence[Mapping[str, Any]], key: str, dtype: torch.dtype, default: float
) -> Tensor:
    """Values of one key in every entry; missing or null values become the default."""
    values = [entry.get(key) for entry in entries]
    kinds = {bool} if dtype == torch.bool else {int, float}
    for value in values:
        if value is not None and type(value) not in kinds:
            raise UserError(f"{key!r} of an edge or node is {repr(value)[:40]}")
    known = [default if value is None else value for value in values]
    return torch.tensor(known, dtype=dtype, device="cpu")


def _known_column(
    entries: Sequence[Mapping[str, Any]], key: str, dtype: torch.dtype, default: float
) -> Tensor | None:
    """Column of values, as `_column` reads it; None if no entry has the key."""
    return _column(entries, key, dtype, default) if _any_has(entries, key) else None


def _any_has(entries: Iterable[Mapping[str, Any]], key: str) -> bool:
    return any(key in entry for entry in entries)


def mapping(value: Any, what: str) -> Mapping[str, Any]:
    """`value`, if it is a JSON object.

    Raises:
        UserError: it is not.
    """
    if not isinstance(value, Mapping):
        raise UserError(f"{what[:80]} is not a JSON object but {type(value).__name__}")
    return value

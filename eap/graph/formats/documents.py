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
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from eap.graph.contents import GraphContents, edge_exists, has_incoming
from eap.graph.labels import check_labels
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
    return {
        "cfg": config,
        "score_sign": sign,
        "higher_is_better": graph.higher_is_better,
        "dtype": str(graph.scores.dtype).removeprefix("torch."),
        "provenance": graph.provenance,
        **texts_of(graph),
        "nodes": _node_entries(graph, sign, booleans=schema == "paper"),
        "edges": {} if is_of_nodes_alone(graph) else _edge_entries(graph, sign),
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


def _edge_entries(graph: GraphContents, sign: int) -> dict[str, dict[str, Any]]:
    exists = edge_exists(graph.config)
    columns = {
        "score": _numbers(turned(graph.scores[exists], sign), "scores"),
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


def _node_entries(graph: GraphContents, sign: int, *, booleans: bool) -> dict[str, Any]:
    present = graph.nodes_in_graph()
    senders = graph.config.sender_names
    if booleans:
        return {name: name in present for name in (*senders, "logits")}
    entries: dict[str, dict[str, Any]] = {
        name: {"in_graph": name in present} for name in (*senders, "logits")
    }
    for key, scores in (
        ("score", None if graph.node_scores is None else turned(graph.node_scores, sign)),
        ("standard_error", graph.node_errors),
    ):
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


def from_document(document: Any, *, sign: int | None) -> GraphContents:
    """Read the graph of a document in any of the supported forms.

    Args:
        document: content of a JSON file.
        sign: factor for the scores; None: chosen by the origin of the file.

    Raises:
        UserError: the document is not a graph, or parts of it contradict one another.
    """
    document = _mapping(document, "a graph's file")
    for key in ("cfg", "nodes", "edges"):
        if key not in document:
            raise UserError(f"no {key!r}; a graph's file has 'cfg', 'nodes' and 'edges'")
    config = read_config(document["cfg"])
    nodes = _mapping(document["nodes"], "'nodes'")
    edges = _mapping(document["edges"], "'edges'")
    if not _fits(config, len(edges)):
        raise UserError(_misfit(config, len(edges)))
    dtype = DTYPES.get(str(document.get("dtype", "float32")))
    if dtype is None:
        raise UserError(
            f"dtype {quoted(str(document['dtype']), 40)} is none of {', '.join(DTYPES)}"
        )
    node_columns = _read_nodes(config, nodes, dtype)
    edge_columns = _read_edges(config, edges, dtype)
    if not edges and node_columns["kept"] is not None:
        kept = among(config, node_columns["kept"]) & edge_exists(config)
        edge_columns["in_graph"] = kept
    unread = [key for key in ("neurons", "neurons_scores") if _any_has(nodes, key)]
    return finish(
        document,
        own="n_kv_heads" in document["cfg"],
        sign=sign,
        unread=unread,
        config=config,
        node_scores=node_columns["score"],
        node_errors=node_columns["standard_error"],
        **edge_columns,
    )


def finish(
    header: Mapping[str, Any], *, own: bool, sign: int | None, unread: list[str], **fields: Any
) -> GraphContents:
    """Turn the sign of the scores as the origin of the file requires, and record it in provenance.

    Args:
        header: `score_sign`, `higher_is_better`, `provenance`, `labels` and `groups`, as far as the
            file has them.
        own: whether this package wrote the file, perhaps before `score_sign` was recorded.
        sign: factor for the scores; None: chosen by the origin of the file.
        unread: names of parts of the file that a graph cannot hold.
        fields: fields of the graph, with scores as in the file.
    """
    provenance = dict(_mapping(header.get("provenance") or {}, "'provenance'"))
    better = header.get("higher_is_better")
    written = header.get("score_sign")
    if better is not None and not isinstance(better, bool):
        raise UserError("'higher_is_better' is neither true, false nor null")
    if written is not None and (isinstance(written, bool) or written not in (1, -1)):
        raise UserError("'score_sign' is neither 1 nor -1")
    if written is None and not (own and "provenance" in header):
        # In files of other programs, positive is helpful; so the sign is turned by default.
        better = True if sign in (None, -1) else None
        factor = -1 if sign is None else sign
        provenance["read_from"] = {"signs": "turned" if factor == -1 else "as in the file"}
        if unread:
            provenance["read_from"]["left_out"] = unread
    else:
        factor = sign or written or 1
    for name in ("scores", "node_scores"):
        if fields.get(name) is not None:
            fields[name] = turned(fields[name], factor)
    # These keys may have another meaning in files of other programs.
    texts: dict[str, Any] = {key: header.get(key) or {} for key in TEXTS if written is not None}
    for each in texts.values():
        check_labels(fields["config"], each)
    return GraphContents(provenance=provenance, higher_is_better=better, **texts, **fields)


def read_config(cfg: Any) -> GraphConfig:
    """Read the shape of a graph; published files lack key/value heads, so one k and v per head.

    Raises:
        UserError: the value is not a shape, or the shape is too large for any file.
    """
    cfg = _mapping(cfg, "'cfg'")
    for name in ("n_layers", "n_heads"):
        if name not in cfg:
            raise UserError(f"no {name!r} in 'cfg'")

    def given(name: str, default: Any) -> Any:
        value = cfg.get(name)
        return default if value is None else value

    return GraphConfig(
        n_layers=cfg["n_layers"],
        n_heads=cfg["n_heads"],
        d_model=given("d_model", 0),
        n_kv_heads=given("n_kv_heads", cfg["n_heads"]),
        parallel_attn_mlp=given("parallel_attn_mlp", False),
        expanded_kv=given("expanded_kv", False),
    )


def _fits(config: GraphConfig, n_edges: int) -> bool:
    """Whether a shape can have this number of edges; checked before large tensors are made."""
    slim = n_edges < config.n_edges and config.n_forward * config.n_backward <= MOST_PAIRS
    return slim or n_edges == config.n_edges


def _misfit(config: GraphConfig, n_edges: int) -> str:
    missing = config.n_edges - n_edges
    return f"{n_edges:,} edges where this shape has {config.n_edges:,} ({missing:+,})"


def _read_edges(
    config: GraphConfig, edges: Mapping[str, Any], dtype: torch.dtype
) -> dict[str, Tensor | None]:
    """Columns of the edges; edges that are not listed are not kept and have unknown scores."""
    infos = [_mapping(info, f"edge {quoted(name, 60)}") for name, info in edges.items()]
    complete = len(edges) == config.n_edges
    if not complete and not all(info.get("in_graph", True) is True for info in infos):
        raise UserError(f"{_misfit(config, len(edges))}, and not all of them are in the circuit")
    exists = edge_exists(config)
    split = [name.partition("->") for name in edges]
    sender_of, receiver_of = sender_index(config), receiver_index(config)
    for name, (sender, _, receiver) in zip(edges, split, strict=True):
        if sender not in sender_of or receiver not in receiver_of:
            raise UserError(f"{quoted(name, 60)} names a node that this shape does not have")
    senders, receivers = (
        torch.tensor(ends, dtype=torch.long, device=exists.device)
        for ends in (
            [sender_of[sender] for sender, _, _ in split],
            [receiver_of[receiver] for _, _, receiver in split],
        )
    )
    if not exists[senders, receivers].all():
        wrong = int((~exists[senders, receivers]).nonzero()[0])
        raise UserError(f"{quoted(list(edges)[wrong], 60)} is not an edge of this shape")

    def place(values: list[Any], outside: Any, kind: torch.dtype) -> Tensor:
        column = torch.zeros(exists.shape, dtype=kind, device=exists.device)
        column[exists] = outside
        column[senders, receivers] = torch.tensor(values, dtype=kind, device=exists.device)
        return column

    def numbers(key: str) -> Tensor:
        return place(_read_column(infos, key, _number, math.nan), math.nan, dtype)

    def flags(key: str, default: bool) -> Tensor:
        return place(_read_column(infos, key, _flag, default), False, torch.bool)

    return {
        "scores": numbers("score"),
        "in_graph": flags("in_graph", not complete),
        "standard_errors": numbers("standard_error") if _any_has(edges, "standard_error") else None,
        "is_exact": flags("exact", False) if _any_has(edges, "exact") else None,
    }


def _read_nodes(
    config: GraphConfig, nodes: Mapping[str, Any], dtype: torch.dtype
) -> dict[str, Tensor | None]:
    """Scores and errors of the senders, and a mask of those kept (None if there are none)."""
    position = sender_index(config)
    kept = torch.zeros(config.n_forward, dtype=torch.bool, device="cpu")
    columns: dict[str, Tensor | None] = {"score": None, "standard_error": None}
    for name, info in nodes.items():
        if name not in position and name != "logits":
            raise UserError(f"{quoted(name, 60)} is not a node of this shape")
        entry = {"in_graph": info} if isinstance(info, bool) else _mapping(info, f"node {name!r}")
        if name == "logits":
            continue
        kept[position[name]] = _read_column([entry], "in_graph", _flag, False)[0]
        for key in columns:
            if key in entry:
                column = columns[key]
                if column is None:
                    column = torch.full((config.n_forward,), math.nan, dtype=dtype, device="cpu")
                    columns[key] = column
                column[position[name]] = _read_column([entry], key, _number, math.nan)[0]
    circuit = kept.any()
    kept[0] = True
    return {**columns, "kept": kept if circuit else None}


def _read_column(
    entries: list[Mapping[str, Any]], key: str, is_valid: Callable[[Any], bool], default: Any
) -> list[Any]:
    """Values of one key in every entry; missing or null values become the default."""
    values = [entry.get(key) for entry in entries]
    for value in values:
        if value is not None and not is_valid(value):
            raise UserError(f"{key!r} of an edge or node is {repr(value)[:40]}")
    return [default if value is None else value for value in values]


def _number(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool))


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _any_has(entries: Mapping[str, Any], key: str) -> bool:
    return any(isinstance(entry, Mapping) and key in entry for entry in entries.values())


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{what[:80]} is not a JSON object but {type(value).__name__}")
    return value

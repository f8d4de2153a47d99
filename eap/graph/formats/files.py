"""Graphs as files: `.json`, `.pt` (the format of the EAP-IG library) and `.safetensors`.

**Sign.** In this package, a score is `metric(corrupted edge) - metric(clean)`. In `.json` and `.pt`
files, which other programs read, a positive score means a helpful edge. The sign is turned
accordingly on writing and reading, and the file records it (`score_sign`), so that a graph is
loaded as it was saved. A file without `score_sign` comes from another program, and its sign is
turned. `.safetensors` files belong to this package alone, and their sign is not turned.
"""

import json
import pickle
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from eap.graph.contents import (
    EDGE_TENSORS,
    NODE_TENSORS,
    GraphContents,
    check_shapes,
    edge_exists,
    has_incoming,
)
from eap.graph.formats import documents
from eap.graph.labels import check_labels
from eap.graph.numbering import receiver_index, sender_index
from eap.runtime.atomic import write_atomically
from eap.runtime.errors import UserError, quoted
from eap.runtime.first_bytes import kind_of

Schema = Literal["library", "paper"]

_SUFFIXES = (".json", ".pt", ".safetensors")
_BOOLEAN = ("in_graph", "is_exact")
_TORCH_KEYS = {
    "scores": "edges_scores",
    "in_graph": "edges_in_graph",
    "standard_errors": "standard_errors",
    "is_exact": "is_exact",
    "node_scores": "nodes_scores",
    "node_errors": "node_errors",
}  # keys of the tensors in `.pt` files
_LONGEST = 400  # largest number of characters of a message

# Errors that readers raise for a damaged file: zip, pickle, JSON, allocation, arithmetic.
_DAMAGE = (
    ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RuntimeError, MemoryError,
    EOFError, AssertionError, ImportError, SafetensorError, zipfile.BadZipFile, pickle.PickleError,
)  # fmt: skip


def write(graph: GraphContents, path: Path, *, schema: Schema = "library") -> None:
    """Write a graph in the format given by the suffix of `path`, whole or not at all.

    Raises:
        UserError: as for `check_format`.
    """
    check_format(graph, path, schema=schema)
    with write_atomically(path) as temporary:
        if path.suffix == ".json":
            text = documents.text_of(documents.to_document(graph, schema=schema))
            temporary.write_text(text, encoding="utf8")
        elif path.suffix == ".safetensors":
            temporary.write_bytes(_safetensors_of(graph))
        else:
            torch.save(torch_document(graph), temporary)


def check_format(graph: GraphContents, path: Path, *, schema: Schema = "library") -> None:
    """Check that the format given by the suffix of `path` can hold a graph.

    Raises:
        UserError: an unknown suffix or schema, or a graph that the format cannot hold.
    """
    if schema not in get_args(Schema):
        raise UserError(f"a schema is 'library' or 'paper', not {quoted(str(schema), 40)}")
    if path.suffix not in _SUFFIXES:
        raise UserError(
            f"cannot save a graph as {quoted(path.name)}: use .json, .pt or .safetensors"
        )
    if schema == "paper" and path.suffix != ".json":
        raise UserError(f"the paper's files are JSON: save {quoted(path.name)} with suffix .json")
    if schema == "paper" and graph.node_scores is not None:
        raise UserError(
            "the paper's files have no place for node scores: leave schema='paper' out, or drop "
            "them with dataclasses.replace(graph, node_scores=None)"
        )
    if graph.span_names and path.suffix != ".safetensors":
        raise UserError(
            f"a {path.suffix} file has no place for spans: save the graph as .safetensors, or the "
            "sum over them, graph.over_spans()"
        )
    shared = graph.config.n_kv_receivers != graph.config.n_heads
    if shared and (schema == "paper" or path.suffix == ".pt"):
        raise UserError(
            "this format has one k and one v per query head, but heads of this graph share them: "
            "make the graph with expanded_kv=True, or save it as .safetensors"
        )


def _safetensors_of(graph: GraphContents) -> bytes:
    tensors: dict[str, Tensor] = {}
    for name in (*EDGE_TENSORS, *NODE_TENSORS):
        if (tensor := getattr(graph, name)) is not None:
            tensor = tensor.contiguous()
            shared = any(tensor.data_ptr() == other.data_ptr() for other in tensors.values())
            tensors[name] = tensor.clone() if shared else tensor  # the format has no shared memory
    header = {
        "cfg": asdict(graph.config),
        "higher_is_better": graph.higher_is_better,
        "provenance": graph.provenance,
        **documents.texts_of(graph),
        **({"span_names": graph.span_names} if graph.span_names else {}),
    }
    return save(tensors, metadata={"graph": documents.text_of(header)})


def torch_document(graph: GraphContents) -> dict[str, Any]:
    """Dictionary that the EAP-IG library reads, with further keys of this package."""
    sign = documents.file_sign(graph.higher_is_better)
    signed = documents.with_sign(graph, sign)
    tensors = {key: getattr(signed, name) for name, key in _TORCH_KEYS.items()}
    # In the library, a node is in the graph if it has edges in and out; the input always is.
    nodes = has_incoming(graph.config, graph.in_graph) & graph.in_graph.any(dim=1)
    return {
        "cfg": asdict(graph.config),
        "src_nodes": list(graph.config.sender_names),
        "dst_nodes": list(graph.config.receiver_names),
        # torch.save would write all of the memory behind a view, such as every span.
        **{key: tensor.clone() for key, tensor in tensors.items() if tensor is not None},
        "nodes_in_graph": nodes,
        "score_sign": sign,
        "higher_is_better": graph.higher_is_better,
        "provenance": documents.text_of(graph.provenance),
        **documents.texts_of(graph),
    }


# ---- reading -------------------------------------------------------------------------------------


def read(path: Path, *, sign: int | None = None) -> GraphContents:
    """Read a graph in any of the supported formats.

    Raises:
        UserError: a file that is missing, damaged or not a graph; the message is one line of at
            most 400 characters.
    """
    if sign not in (None, 1, -1) or isinstance(sign, bool):
        raise UserError("sign is 1 (scores as they are in the file), -1 (turned) or None")
    shown = str(path) if str(path).isprintable() else quoted(str(path), len(str(path)))
    shown = shown if len(shown) <= 150 else f"...{shown[-147:]}"
    if "\0" in str(path):
        raise UserError(f"no graph at {shown}: it is not a path in a file system")
    try:
        irregular = path.exists() and not path.is_file()
    except OSError as error:
        raise UserError(f"cannot read a graph from {shown}: {error.strerror or error}") from None
    if irregular:  # reading a pipe would wait for its writer
        raise UserError(f"cannot read a graph from {shown}: it is not a regular file")
    try:
        if path.suffix == ".safetensors":
            header, fields = _read_safetensors(path)
        elif path.suffix == ".pt":
            header, fields = _read_torch(path)
        else:
            header, fields = documents.read_document(json.loads(path.read_text("utf-8-sig")))
        return _contents(header, fields, sign)
    except FileNotFoundError:
        raise UserError(f"no graph at {shown}") from None
    except OSError as error:
        raise UserError(
            f"cannot read a graph from {shown}: {error.strerror or error}"[:_LONGEST]
        ) from None
    except UserError as error:
        raise UserError(f"{shown}: {error}"[:_LONGEST]) from None
    except _DAMAGE as error:
        raise UserError(
            f"{shown} is not a graph, or is damaged: {_damage(path, error)}; expected what "
            "Graph.save writes, or 'cfg', 'nodes' and 'edges' as in the published files"
        ) from None


def _damage(path: Path, error: Exception) -> str:
    """Description of what is wrong with a file that could not be read."""
    if isinstance(error, json.JSONDecodeError):
        return f"it is not complete JSON (line {error.lineno}, column {error.colno})"
    if isinstance(error, KeyError):
        return f"it has no {quoted(str(error.args[0]), 60)}"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    with path.open("rb") as file:
        kind = kind_of(file.read(8))
    if isinstance(error, UnicodeDecodeError):
        return f"it is {kind or 'not UTF-8 text'}"
    if isinstance(error, SafetensorError):
        return f"it is {kind or 'not a complete safetensors file'}"
    if isinstance(error, (pickle.PickleError, EOFError, zipfile.BadZipFile, RuntimeError)):
        return f"it is not a file of tensors alone from torch.save{kind and f', but {kind}'}"
    return " ".join(f"{type(error).__name__} {error}".split())[:100]


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header of a file (see `_contents`), and fields that it gives to a graph."""
    with safe_open(path, framework="pt") as file:
        header = json.loads((file.metadata() or {})["graph"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if unknown := tensors.keys() - {*EDGE_TENSORS, *NODE_TENSORS}:
        raise UserError(f"{quoted(min(unknown), 60)} is not part of a graph")
    if missing := {"scores", "in_graph"} - tensors.keys():
        raise UserError(f"no {min(missing)}")
    spans = header.get("span_names", [])
    if not isinstance(spans, list) or not all(isinstance(name, str) for name in spans):
        raise UserError("'span_names' is not a list of names")
    config = documents.read_config(header["cfg"])
    return {**header, "score_sign": 1}, {"config": config, "span_names": tuple(spans), **tensors}


def _read_torch(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header of a file (see `_contents`), and fields that it gives to a graph."""
    saved = torch.load(path, weights_only=True, map_location="cpu")
    required = ("cfg", "src_nodes", "dst_nodes", "edges_scores", "edges_in_graph")
    if not isinstance(saved, dict) or (missing := [key for key in required if key not in saved]):
        lacking = "" if not isinstance(saved, dict) else f", and this file has no {missing[0]!r}"
        raise UserError(f"a graph's .pt file has {', '.join(required)}{lacking}")
    config = documents.read_config(saved["cfg"])
    tensors = {name: saved[key] for name, key in _TORCH_KEYS.items() if saved.get(key) is not None}
    for name in tensors.keys() & set(_BOOLEAN):
        tensors[name] = tensors[name] != 0  # some versions of the library store them as numbers
    check_shapes(config, tensors)
    senders = _order(saved["src_nodes"], sender_index(config), "src_nodes")
    receivers = _order(saved["dst_nodes"], receiver_index(config), "dst_nodes")
    for name, tensor in tensors.items():
        ordered = tensor.detach()[senders]
        if name in EDGE_TENSORS:
            # Values at pairs that are not edges have no meaning.
            ordered = ordered[:, receivers].masked_fill(~edge_exists(config), 0)
        tensors[name] = ordered
    header = {key: saved.get(key) for key in ("score_sign", "higher_is_better", *documents.TEXTS)}
    provenance = saved.get("provenance")
    header["provenance"] = json.loads(provenance) if isinstance(provenance, str) else provenance
    unread = ("neurons_in_graph", "neurons_scores")
    header["left_out"] = [key for key in unread if saved.get(key) is not None]
    return header, {"config": config, **tensors}


def _order(names: Any, position: dict[str, int], what: str) -> list[int]:
    """Position of each node of this package in the file's list."""
    if not isinstance(names, (list, tuple)) or sorted(map(str, names)) != sorted(position):
        raise UserError(f"{what} are not the nodes of this shape")
    place = {name: i for i, name in enumerate(names)}
    return [place[name] for name in position]


def _contents(header: dict[str, Any], fields: dict[str, Any], sign: int | None) -> GraphContents:
    """Graph of a file, with the sign of the scores that the origin of the file requires.

    Args:
        header: `score_sign`, `higher_is_better`, `provenance`, `labels` and `groups`, as far as the
            file has them, and the names of its parts that a graph cannot hold (`left_out`).
        fields: the other fields of the graph, with scores as in the file.
        sign: factor for the scores; None: chosen by the origin of the file.
    """
    provenance = dict(documents.mapping(header.get("provenance") or {}, "'provenance'"))
    better, written = header.get("higher_is_better"), header.get("score_sign")
    if better is not None and not isinstance(better, bool):
        raise UserError("'higher_is_better' is neither true, false nor null")
    if written is not None and (isinstance(written, bool) or written not in (1, -1)):
        raise UserError("'score_sign' is neither 1 nor -1")
    texts: dict[str, Any] = {}
    if written is None:
        # In files of other programs, positive is helpful; so the sign is turned by default.
        factor = sign or -1
        better = True if factor == -1 else None
        provenance["read_from"] = {"signs": "turned" if factor == -1 else "as in the file"}
        if header.get("left_out"):
            provenance["read_from"]["left_out"] = header["left_out"]
    else:
        factor = sign or written
        # These keys may have another meaning in files of other programs.
        texts = {key: header.get(key) or {} for key in documents.TEXTS}
    for each in texts.values():
        check_labels(fields["config"], each)
    check_shapes(fields["config"], fields, n_spans=len(fields.get("span_names", ())))
    for name in (*EDGE_TENSORS, *NODE_TENSORS):
        if (tensor := fields.get(name)) is None:
            continue
        if not (tensor.dtype == torch.bool if name in _BOOLEAN else tensor.is_floating_point()):
            raise UserError(f"{name} has values of {str(tensor.dtype).removeprefix('torch.')}")
    if (fields["in_graph"] & ~edge_exists(fields["config"])).any():
        raise UserError("in_graph is True where this shape has no edge")
    graph = GraphContents(provenance=provenance, higher_is_better=better, **texts, **fields)
    return documents.with_sign(graph, factor)

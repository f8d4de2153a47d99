"""Files with neurons, in the format of the EAP-IG library and MIB.

In these files, a neuron is a coordinate of a node's output (`eap.parts.Coordinates`), not a hidden
unit of an MLP. In JSON, a node has `neurons` (a mask of those kept) and `neurons_scores`; a `.pt`
file has `neurons_in_graph` and `neurons_scores`, [n_forward, d_model]. The sign of their scores is
turned like that of node scores.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from eap.graph.formats import documents, files
from eap.graph.graph import Graph
from eap.runtime.atomic import write_atomically
from eap.runtime.errors import UserError, quoted
from eap.runtime.kinds import checked

_KEYS = {".json": ("neurons", "neurons_scores"), ".pt": ("neurons_in_graph", "neurons_scores")}


@dataclass(frozen=True, eq=False)
class NeuronFile:
    """Graph from a file, with the neurons in the file.

    Attributes:
        graph: graph, as loaded by `Graph.load`.
        kept: mask of the coordinates of each sender that are in the circuit; None: not in the file.
        scores: scores of the coordinates, with the sign of this package; None: not in the file.
    """

    graph: Graph
    kept: Bool[Tensor, "n_forward d_model"] | None = None
    scores: Float[Tensor, "n_forward d_model"] | None = None

    @property
    def masks(self) -> dict[str, Bool[Tensor, " part"]]:
        """Masks for `eap.PartCircuit(file.graph, "coordinates", file.masks)`."""
        if self.kept is None:
            raise UserError("this file does not say which neurons are kept")
        names = self.graph.config.sender_names
        # Coordinates leave no rest, so the rest counts as kept if all coordinates are kept.
        return {
            name: torch.cat([mask, mask.all()[None]])
            for name, mask in zip(names, self.kept, strict=True)
        }


@checked
def load_neurons(path: str | Path) -> NeuronFile:
    """Read a graph with neurons from a file of the EAP-IG library, MIB or this package.

    Args:
        path: path of a `.json` or `.pt` file.

    Returns:
        The graph, with masks of the kept neurons and scores of the neurons, if the file has them.

    Raises:
        UserError: as for `Graph.load`; also for a file without neurons, or with numbers of neurons
            that differ from the graph's senders and d_model.

    Example:
        >>> scores = eap.part_scores(model, dataset, parts="coordinates", method="EAP")
        >>> eap.save_neurons("neurons.json", graph, scores=scores.by_coordinate)
        >>> file = eap.load_neurons("neurons.json")
    """
    path = Path(path)
    graph = Graph.load(path)
    kept_key, scores_key = _keys(path)
    sign = documents.file_sign(graph.higher_is_better)
    origin = graph.provenance.get("read_from", {})
    if origin:  # a file of another program
        sign = -1 if origin.get("signs") == "turned" else 1
        unread = [key for key in origin.get("left_out", []) if key not in (kept_key, scores_key)]
        origin = {key: value for key, value in origin.items() if key != "left_out"}
        origin |= {"left_out": unread} if unread else {}
        graph = replace(graph, provenance={**graph.provenance, "read_from": origin})
    names = graph.config.sender_names
    if path.suffix == ".json":
        nodes = json.loads(path.read_text("utf-8-sig"))["nodes"]
        senders = [node if isinstance(node := nodes.get(name), dict) else {} for name in names]
        saved = {key: [node.get(key) for node in senders] for key in (kept_key, scores_key)}
        order = list(range(len(names)))
    else:
        saved = torch.load(path, weights_only=True, map_location="cpu")
        place = {name: number for number, name in enumerate(saved["src_nodes"])}
        order = [place[name] for name in names]
    kept, scores = (_table(graph, saved.get(key), key, order) for key in (kept_key, scores_key))
    if kept is None and scores is None:
        raise UserError(f"{quoted(path.name)} has no neurons: neither {kept_key} nor {scores_key}")
    if scores is not None:
        if path.suffix == ".json" or not scores.is_floating_point():  # JSON knows no precision
            scores = scores.to(graph.scores.dtype)
        scores = documents.turned(scores, sign)
    return NeuronFile(graph, None if kept is None else kept != 0, scores)


@checked
def save_neurons(
    path: str | Path,
    graph: Graph,
    *,
    kept: Bool[Tensor, "n_forward d_model"] | None = None,
    scores: Float[Tensor, "n_forward d_model"] | None = None,
) -> None:
    """Write a graph with neurons, in a format that the EAP-IG library and MIB read.

    Args:
        path: path of the `.json` or `.pt` file.
        graph: graph with the nodes' scores and the circuit.
        kept: mask of the coordinates of each sender that are in the circuit; None: not written.
        scores: scores of the coordinates, with the sign of this package; None: not written.

    Raises:
        UserError: another suffix, tensors of another shape, or a graph or scores that the file
            cannot hold.

    Example:
        >>> scores = eap.part_scores(model, dataset, parts="coordinates", method="EAP")
        >>> eap.save_neurons("ioi-neurons.json", graph, scores=scores.by_coordinate)
    """
    path = Path(path)
    kept_key, scores_key = _keys(path)
    files.check_format(graph, path)
    sign = documents.file_sign(graph.higher_is_better)
    values: dict[str, Tensor] = {}
    if kept is not None:
        values[kept_key] = _checked(graph, kept.bool(), kept_key).clone()
    if scores is not None:
        values[scores_key] = documents.turned(_checked(graph, scores, scores_key), sign).clone()
    if path.suffix == ".json":
        document = documents.to_document(graph, schema="library")
        for key, tensor in values.items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise UserError(f"some {key} are not finite, which JSON cannot hold: save as .pt")
            for name, row in zip(graph.config.sender_names, tensor.tolist(), strict=True):
                document["nodes"][name][key] = row
        text = documents.text_of(document)
        with write_atomically(path) as temporary:
            temporary.write_text(text, encoding="utf8")
    else:
        with write_atomically(path) as temporary:
            torch.save(files.torch_document(graph) | values, temporary)


def _keys(path: Path) -> tuple[str, str]:
    if path.suffix not in _KEYS:
        raise UserError(f"neurons are in .json and .pt files, not in {quoted(path.name)}")
    return _KEYS[path.suffix]


def _table(graph: Graph, values: Any, key: str, order: list[int]) -> Tensor | None:
    """Values of a file, with rows in an order; None: the file has none."""
    if values is None or (isinstance(values, list) and all(row is None for row in values)):
        return None
    try:
        tensor = values if isinstance(values, Tensor) else torch.tensor(values)
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"{key} is not a table of numbers, a row for every sender") from None
    return _checked(graph, tensor, key).detach()[order]


def _checked(graph: Graph, tensor: Tensor, key: str) -> Tensor:
    shape = [graph.config.n_forward, graph.config.d_model]
    if list(tensor.shape) != shape or tensor.is_complex():
        raise UserError(
            f"{key} is {list(tensor.shape)}; this graph has {shape[0]} senders and d_model "
            f"{shape[1]}"
        )
    return tensor

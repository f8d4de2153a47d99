"""Graphs for other programs: tables of edges, networkx, GraphML and DOT."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import networkx as nx
import numpy as np
import pandas as pd

from eap.graph.contents import GraphContents, edge_exists, reads_keys, receiver_of
from eap.runtime.atomic import write_atomically
from eap.runtime.errors import UserError, quoted

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_frame(graph: GraphContents, *, in_graph_only: bool) -> pd.DataFrame:
    """Table with a row per edge; see `Graph.to_frame` for the columns."""
    config = graph.config
    exists = edge_exists(config).expand(graph.in_graph.shape)
    place = (graph.in_graph if in_graph_only else exists).nonzero(as_tuple=True)
    i, j = place[-2:]
    senders = np.array(config.sender_names, dtype=object)[i.numpy()]
    receivers = np.array(config.receiver_names, dtype=object)[j.numpy()]
    layers = np.array([config.layer_of_sender(index) for index in range(config.n_forward)])
    ends = np.array([config.layer_of_receiver(index) for index in range(config.n_backward)])
    inputs = [name.rstrip(">").partition("<")[2] for name in config.receiver_names]
    spans = np.array(graph.span_names, dtype=object)
    columns = {
        **({"span": spans[place[0].numpy()]} if graph.span_names else {}),
        "edge": senders + "->" + receivers,
        "sender": senders,
        "receiver": receivers,
        "input": np.array(inputs, dtype=object)[j.numpy()],
        "sender_layer": layers[i.numpy()],
        "receiver_layer": ends[j.numpy()],
        "score": graph.scores[place].double().numpy(),
    }
    if graph.standard_errors is not None:
        columns["standard_error"] = graph.standard_errors[place].double().numpy()
    if graph.is_exact is not None:
        columns["exact"] = graph.is_exact[place].numpy()
    columns["in_graph"] = graph.in_graph[place].numpy()
    return pd.DataFrame(columns)


def to_networkx(graph: GraphContents) -> nx.MultiDiGraph:
    """Directed multigraph of the circuit; see `Graph.to_networkx`."""
    network = nx.MultiDiGraph()
    ends = ends_of_receivers(graph)
    present = drawn_nodes(graph, ends)
    for span, index, name in _nodes(graph):
        if name in present:
            component = (*graph.config.sender_names, "logits")[index]
            layer = graph.config.layer_of_sender(index)  # the logits come after the last sender
            kinds = {"a": "head", "m": "mlp"}
            kind = component if component in ("input", "logits") else kinds[component[0]]
            span_of = {"span": graph.span_names[span]} if graph.span_names else {}
            network.add_node(name, kind=kind, layer=layer, **span_of)
            for key, texts in (("label", graph.labels), ("group", graph.groups)):
                if component in texts:
                    network.nodes[name][key] = texts[component]
            if graph.node_scores is not None and component != "logits":
                scores = graph.node_scores.view(-1, graph.config.n_forward)
                network.nodes[name]["score"] = float(scores[span, index])
    for row in to_frame(graph, in_graph_only=True).to_dict("records"):
        known = {key: row[key] for key in ("score", "standard_error", "exact") if key in row}
        at = f" @ {row['span']}" if graph.span_names else ""
        for node in ends[row["receiver"] + at]:
            network.add_edge(
                row["sender"] + at, node, key=row["input"] or None,
                edge=row["edge"] + at, input=row["input"], **known,
            )  # fmt: skip
    return network


def _nodes(graph: GraphContents) -> Iterator[tuple[int, int, str]]:
    """Span, index (the logits last) and name of every node, for every span if there are spans."""
    for span in range(max(1, len(graph.span_names))):
        at = f" @ {graph.span_names[span]}" if graph.span_names else ""
        for index, name in enumerate((*graph.config.sender_names, "logits")):
            yield span, index, name + at


def node_names(graph: GraphContents) -> list[str]:
    """Names of all nodes, including the logits; with spans, such as `a0.h1 @ subject`."""
    return [name for *_, name in _nodes(graph)]


def nodes_behind(graph: GraphContents, receiver: int, span: int = 0) -> list[str]:
    """Nodes that read a receiver; with spans, at each span where they read it.

    All heads that share a key/value head read its receivers. A head reads a key or value of one
    span at that span and at all later spans.
    """
    config = graph.config
    readers = (receiver_of(config) == receiver).any(dim=1).nonzero().flatten().tolist()
    nodes = [config.sender_names[reader] for reader in readers] or ["logits"]
    if not graph.span_names:
        return nodes
    stop = len(graph.span_names) if reads_keys(config)[receiver] else span + 1
    return [f"{node} @ {at}" for at in graph.span_names[span:stop] for node in nodes]


def ends_of_receivers(graph: GraphContents) -> dict[str, list[str]]:
    """Nodes at which the circuit's edges end, by receiver (with spans, `m2 @ subject`).

    A key or value that several heads share belongs to the heads that send along an edge of the
    circuit. If no node behind a receiver sends (in a circuit that was not pruned), the edges end at
    all of them.
    """
    present = _sending(graph)
    ends = {}
    for *span, index in graph.in_graph.any(dim=-2).nonzero().tolist():
        receiver = graph.config.receiver_names[index]
        nodes = nodes_behind(graph, index, *span)
        at = f" @ {graph.span_names[span[0]]}" if span else ""
        ends[receiver + at] = [node for node in nodes if node in present] or nodes
    return ends


def _sending(graph: GraphContents) -> set[str]:
    """Names of the nodes that send along an edge of the circuit, with the span where they do."""
    by_span = graph.in_graph.view(-1, *graph.in_graph.shape[-2:])
    sends = by_span.any(dim=-1).tolist()
    return {
        name
        for span, index, name in _nodes(graph)
        if (sends[span][index] if index < graph.config.n_forward else by_span[span, :, -1].any())
    }


def drawn_nodes(graph: GraphContents, ends: Mapping[str, Sequence[str]]) -> set[str]:
    """Nodes of the circuit, including nodes that its edges enter and that send nothing."""
    return _sending(graph).union(*ends.values())


def write_graphml(graph: GraphContents, path: Path) -> None:
    """Write the circuit as GraphML (Gephi, yEd, Cytoscape), whole or not at all.

    Raises:
        UserError: a span, label or group with a character that XML does not allow.
    """
    for text in (*graph.span_names, *graph.labels.values(), *graph.groups.values()):
        if _NOT_XML.search(text):
            raise UserError(
                f"GraphML has no place for the control characters of {quoted(text)}: rename the "
                "span, label or group"
            )
    with write_atomically(path) as temporary:
        nx.write_graphml(to_networkx(graph), temporary)


def write_dot(graph: GraphContents, path: Path) -> None:
    """Write the circuit in DOT, with layers from bottom to top, whole or not at all."""
    network = to_networkx(graph)
    scores = [abs(score) for *_, score in network.edges(data="score") if score == score]
    largest = max(scores, default=0.0) or 1.0
    lines = ["digraph circuit {", "  rankdir=BT; node [shape=box, style=rounded];"]
    lines += [f'  "{_escaped(name)}";' for name in network]
    for sender, receiver, edge in network.edges(data=True):
        attributes = f'headlabel="{edge["input"]}"'
        score = edge["score"]
        if score == score:  # edges of a graph whose nodes have scores have none
            width = 0.5 + 3.5 * abs(score) / largest
            attributes += f', penwidth={width:.2f}, tooltip="{score:.6g}"'
        lines.append(f'  "{_escaped(sender)}" -> "{_escaped(receiver)}" [{attributes}];')
    with write_atomically(path) as temporary:
        temporary.write_text("\n".join([*lines, "}", ""]), encoding="utf8")


def _escaped(name: str) -> str:
    """Name between the quotes of DOT."""
    return name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

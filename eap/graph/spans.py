"""Conversion between graphs with spans and graphs without."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch

from eap.graph.contents import EDGE_TENSORS, NODE_TENSORS, GraphContents
from eap.runtime.errors import UserError, quoted

AnyGraph = TypeVar("AnyGraph", bound=GraphContents)


def span_index(graph: GraphContents, name: str) -> int:
    """Number of a span, by its name.

    Raises:
        UserError: this graph has no such span.
    """
    if name not in graph.span_names:
        names = quoted(", ".join(graph.span_names), 200)
        raise UserError(
            f"no span {quoted(name, 60)}; this graph has {names}, and names of edges at a span end "
            "in ' @ ' and the span's name"
        )
    return graph.span_names.index(name)


def over_spans(graph: AnyGraph) -> AnyGraph:
    """Graph without spans; see `Graph.over_spans`."""
    if not graph.span_names:
        return graph
    nodes = None if graph.node_scores is None else graph.node_scores.sum(dim=0)
    return replace(
        graph,
        scores=graph.scores.sum(dim=0), in_graph=graph.in_any_span, standard_errors=None,
        is_exact=None, node_scores=nodes, node_errors=None, span_names=(),
    )  # fmt: skip


def at_span(graph: AnyGraph, name: str) -> AnyGraph:
    """Graph of one span, without a span axis."""
    span, parts = span_index(graph, name), dict[str, Any](span_names=())
    for part in (*EDGE_TENSORS, *NODE_TENSORS):
        tensor = getattr(graph, part)
        parts[part] = None if tensor is None else tensor[span]
    return replace(graph, **parts)


def at_all_spans(graph: AnyGraph, span_names: Sequence[str]) -> AnyGraph:
    """Circuit with every edge at every span; see `Graph.at_all_spans`."""
    if graph.span_names or not span_names:
        raise UserError("give at least one span name, for a graph that has no spans yet")
    in_graph = graph.in_graph.expand(len(span_names), -1, -1).clone()
    return replace(
        graph,
        scores=graph.scores.new_full(in_graph.shape, torch.nan), in_graph=in_graph,
        standard_errors=None, is_exact=None, node_scores=None, node_errors=None,
        span_names=tuple(span_names),
    )  # fmt: skip

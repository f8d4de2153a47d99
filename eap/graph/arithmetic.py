"""Means of graphs: several methods, models of one shape or data sets as one ranking."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from eap.graph.graph import Graph
from eap.runtime.errors import UserError
from eap.runtime.kinds import checked


@checked
def mean_of(graphs: Sequence[Graph], *, scaled: bool = True) -> Graph:
    """The mean of the scores of several graphs, all turned to one direction.

    Args:
        graphs: two or more graphs of one shape and level; either all with signed scores or all
            with importances (IFR, AtP*-GradDrop, MAttr), which have no sign.
        scaled: whether to scale each graph's scores to unit mean magnitude first; False: the raw
            scores, for methods of one unit (as in the ensembles of arXiv 2510.06811).

    Returns:
        A graph of the mean scores, in the direction of the first graph's metric, without standard
        errors. Where graphs have different methods, metrics or ablations, provenance lists them.

    Raises:
        UserError: fewer than two graphs, graphs of different shapes, levels or models, signed
            scores beside importances, or a graph whose metric's direction is unknown.

    Example:
        >>> graphs = [eap.attribute(model, dataset, method=name) for name in ("EAP", "EAP-IG")]
        >>> ranking = eap.mean_of(graphs)
    """
    graphs = list(graphs)
    if len(graphs) < 2:
        raise UserError("a mean of graphs needs at least two")
    first = graphs[0]
    for graph in graphs[1:]:
        if graph.config != first.config:
            raise UserError(f"graphs of different shapes have no mean: {first} and {graph}")
        if graph.span_names != first.span_names:
            raise UserError(f"graphs of different spans have no mean: {first} and {graph}")
    at_nodes = first.node_scores is not None
    scores = [_towards_helpful(graph, at_nodes=at_nodes) for graph in graphs]
    _check_together(graphs)
    if scaled:
        scores = [each / _mean_magnitude(first, each, at_nodes=at_nodes) for each in scores]
    mean = torch.stack(scores).mean(0)
    mean = -mean if first.higher_is_better else mean
    provenance = _provenance([graph.provenance for graph in graphs], scaled=scaled)
    if at_nodes:
        return replace(first, node_scores=mean, node_errors=None, provenance=provenance)
    return replace(first, scores=mean, standard_errors=None, is_exact=None, provenance=provenance)


def _towards_helpful(graph: Graph, *, at_nodes: bool) -> Tensor:
    """Scores of which positive ones are helpful: corrupting the edge makes the metric worse."""
    scores = graph.node_scores if at_nodes else graph.scores
    if scores is None or (graph.node_scores is not None) != at_nodes:
        raise UserError("graphs of edge scores and graphs of node scores have no mean")
    if graph.higher_is_better is None:
        raise UserError(
            "a graph does not know whether high values of its metric are better; set "
            "higher_is_better (dataclasses.replace) before taking a mean"
        )
    return -scores if graph.higher_is_better else scores


def _mean_magnitude(graph: Graph, scores: Tensor, *, at_nodes: bool) -> Tensor:
    present = scores if at_nodes else scores[graph.edge_exists]
    return present.abs().nanmean().clamp(min=torch.finfo(scores.dtype).tiny)


def _check_together(graphs: Sequence[Graph]) -> None:
    models = [graph.provenance.get("model") for graph in graphs]
    known = [model for model in models if model is not None]
    if any(model != known[0] for model in known):
        raise UserError("graphs of different models have no mean")
    signed = {
        bool(graph.provenance.get("signed", True)): graph.provenance.get("method", "?")
        for graph in graphs
    }
    if len(signed) > 1:
        raise UserError(
            f"{signed[False]} scores importance and {signed[True]} signed changes of the metric: "
            "they have no mean; take means of signed methods, or of importances, alone"
        )


def _provenance(parts: Sequence[dict[str, Any]], *, scaled: bool) -> dict[str, Any]:
    """What all parts say alike, and lists of what they say differently."""
    kind = "scaled" if scaled else "raw"
    different = {"settings", "completeness", "command"}
    shared: dict[str, Any] = {}
    for key in parts[0]:
        values = [part.get(key) for part in parts]
        if all(value == values[0] for value in values):
            shared[key] = values[0]
        elif key not in different:
            shared[key] = values
    methods = [str(part.get("method", "?")) for part in parts]
    shared["method"] = f"mean ({kind}) of {' + '.join(methods)}"
    shared["settings"] = {
        f"{number}. {method}": part.get("settings", {})
        for number, (method, part) in enumerate(zip(methods, parts, strict=True), 1)
    }
    shared.pop("completeness", None)
    return shared

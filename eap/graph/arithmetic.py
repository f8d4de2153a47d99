"""Means of graphs: one ranking from several methods, data sets or models of one shape."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from eap.graph.graph import Graph
from eap.runtime.errors import UserError
from eap.runtime.identity import model_identity
from eap.runtime.kinds import checked


@checked
def mean_of(graphs: Sequence[Graph], *, scaled: bool = True) -> Graph:
    """Average the scores of several graphs, after giving all of them one sign convention.

    Args:
        graphs: two or more graphs of one shape and level; either all with signed scores or all
            with importances (IFR, AtP*-GradDrop, MAttr), which have no sign.
        scaled: whether to scale each graph's scores to unit mean magnitude first; False: average
            the raw scores, for methods with the same unit (as in the ensembles of arXiv
            2510.06811).

    Returns:
        Graph of the mean scores, with the sign convention of the first graph's metric and without
        standard errors. Provenance lists methods, metrics and ablations that differ between graphs.

    Raises:
        UserError: fewer than two graphs, graphs of different shapes, levels or models, a mix of
            signed scores and importances, or a graph that does not record whether high values of
            its metric are better.

    Example:
        >>> graphs = [eap.attribute(model, dataset, method=name) for name in ("EAP", "EAP-IG")]
        >>> ranking = eap.mean_of(graphs)
    """
    graphs = list(graphs)
    if len(graphs) < 2:
        raise UserError("a mean of graphs needs at least two")
    first = graphs[0]
    for graph in graphs[1:]:
        if graph.config.shape != first.config.shape:
            raise UserError(f"graphs of different shapes have no common mean: {first} and {graph}")
        if graph.span_names != first.span_names:
            raise UserError(f"graphs with different spans have no common mean: {first} and {graph}")
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
    """Scores with the sign turned so that positive means helpful (corruption hurts the metric)."""
    scores = graph.node_scores if at_nodes else graph.scores
    if scores is None or (graph.node_scores is not None) != at_nodes:
        raise UserError("graphs of edge scores and graphs of node scores have no common mean")
    if graph.higher_is_better is None:
        raise UserError(
            "a graph does not record whether high values of its metric are better; set "
            "higher_is_better (dataclasses.replace) before taking a mean"
        )
    return -scores if graph.higher_is_better else scores


def _mean_magnitude(graph: Graph, scores: Tensor, *, at_nodes: bool) -> Tensor:
    present = scores if at_nodes else scores[graph.edge_exists]
    return present.abs().nanmean().clamp(min=torch.finfo(scores.dtype).tiny)


def _check_together(graphs: Sequence[Graph]) -> None:
    models = [graph.provenance.get("model") for graph in graphs]
    known = [model_identity(model) for model in models if model is not None]
    if any(model != known[0] for model in known):
        raise UserError("graphs of different models have no common mean")
    signed = {
        bool(graph.provenance.get("signed", True)): graph.provenance.get("method", "?")
        for graph in graphs
    }
    if len(signed) > 1:
        raise UserError(
            f"{signed[False]} gives importances and {signed[True]} signed changes of the metric, "
            "which have no common mean; average only signed methods, or only importances"
        )


def _provenance(parts: Sequence[dict[str, Any]], *, scaled: bool) -> dict[str, Any]:
    """Provenance of a mean: values that all parts agree on, and lists of values that differ."""
    kind = "scaled" if scaled else "raw"
    different = {"settings", "completeness", "command"}
    shared: dict[str, Any] = {}
    for key in dict.fromkeys(chain.from_iterable(parts)):
        values = [part.get(key) for part in parts]
        if key == "model":  # of which there is one, though its name or place may differ
            shared[key] = next((value for value in values if value is not None), None)
        elif all(value == values[0] for value in values):
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

"""Estimates of every edge's effect: EAP, EAP-IG and their relatives, by one general mechanism.

The effect of ablating the edge u -> v is estimated to first order,

    score(u -> v) = (a_u_ablated - a_u_clean) . dMetric/d(input of v)

with the gradient taken on the clean run (EAP; Syed, Rager and Conmy 2023), or averaged over points
between the ablated and the clean input embedding (EAP-IG; Hanna, Pezzelle and Belinkov 2024,
equation 2). The sum runs over positions and d_model; scores are means over examples.

Phases, batch by batch, in `eap.engine`: `prepared` runs the prefix and the ablated prompts; a
scorer of `scorers` makes the gradients at all receivers (`receivers`) and contracts them with what
the senders changed; `Moments` gathers means and standard errors over examples. A method is a row of
the table `eap.methods`.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, Unpack, overload

import torch
from jaxtyping import Float
from torch import Tensor

from eap.ablation import Ablation, get_ablation
from eap.data.batches import check_dataset
from eap.data.dataset import Dataset
from eap.engine.moments import Moments
from eap.engine.path_gradients import check_gradients
from eap.engine.prepared import Demand, Work
from eap.engine.scorers import SCORERS, Request, Scorer, to_nodes
from eap.engine.signature import sign
from eap.errors import UserError
from eap.example_scores import ExampleScores, KeepEdges
from eap.graph import Graph
from eap.methods import Method, Point, get_method
from eap.metrics.metric import Metric, check_values, get_metric
from eap.model.model import Model
from eap.model.verbs import verb
from eap.patching import patch_edges, patch_nodes
from eap.runtime import distributed
from eap.runtime.memory import Extent, Need, Shapes, attribution_need
from eap.runtime.resources import ResourceOptions, Resources

LEVELS = ("edge", "node")

# Numbers of points that `steps="auto"` tries.
AUTO_STEPS = (5, 10, 20, 40, 80, 160, 320)


class Observer(Protocol):
    """Something that is given every block of per-example scores: a bootstrap, a Gram matrix."""

    def add(
        self,
        rows: Sequence[int],
        senders: slice,
        receivers: Sequence[int],
        scores: Float[Tensor, "batch sender receiver"],
    ) -> None:
        """Take the scores of the edges from some senders into some receivers.

        Args:
            rows: of the batch's examples in their data set.
            senders, receivers: indices of the edges' ends.
            scores: 0 where there is no edge.
        """
        ...


class Options(ResourceOptions, total=False):
    """Keyword arguments of `attribute`, whatever it returns."""

    method: str | Method | Sequence[str | Method]
    metric: str | Metric | None
    ablation: str | Ablation | None
    level: str
    steps: int | str
    rule: str
    tolerance: float
    expanded_kv: bool
    observers: Sequence[Observer]


@overload
def attribute(
    model: Model,
    dataset: Dataset,
    *,
    per_example: Literal[True],
    edges: int | Sequence[str] = ...,
    **options: Unpack[Options],
) -> ExampleScores: ...


@overload
def attribute(
    model: Model, dataset: Dataset, *, per_example: Literal[False] = ..., **options: Unpack[Options]
) -> Graph: ...


@verb
def attribute(
    model: Model,
    dataset: Dataset,
    *,
    method: str | Method | Sequence[str | Method] = "EAP-IG",
    metric: str | Metric | None = None,
    ablation: str | Ablation | None = None,
    level: str = "edge",
    steps: int | str = 5,
    rule: str = "paper",
    tolerance: float = 0.05,
    expanded_kv: bool = False,
    observers: Sequence[Observer] = (),
    per_example: bool = False,
    edges: int | Sequence[str] = 100,
    **resources: Unpack[ResourceOptions],
) -> Graph | ExampleScores:
    """Score every edge, or every node, of the model's graph.

    Args:
        model: from `eap.load_model`.
        dataset: from `eap.load_dataset`.
        method: a name of `eap.methods.METHODS`, a `Method`, or several: the mean of their scores,
            each scaled to unit mean magnitude.
        metric: a name of `eap.metrics.METRICS`, or a `Metric`; None: `logit_diff`.
        ablation: what an ablated edge carries; None: the corrupted prompt's activation.
        level: 'edge' or 'node' (`node_scores`; a node's score is that of all its outgoing edges).
        steps: points of methods that integrate; 'auto': as many as it takes until the scores of the
            edges out of the input sum to the metric's difference within `tolerance`.
        rule: of integration, a name of `eap.methods.RULES`.
        tolerance: of 'auto', relative to the metric's difference.
        expanded_kv: one k and v receiver per query head where key/value heads are shared.
        observers: are given every block of per-example scores as they are made.
        per_example: also return the scores of some edges on every example.
        edges: of `per_example`: their names, or how many of the best (a second pass).
        **resources: batch_size, memory_budget (bytes), quiet; see `eap.runtime.resources`.

    Returns:
        The whole graph with `scores`, and their `standard_errors` over examples (None for one
        example), signed by its provenance. Negative scores: ablating the edge lowers the metric.
        With `per_example` an `ExampleScores`, whose `graph` this is.

    Raises:
        UserError: unknown names, fewer than one step, a batch that does not fit, a metric without
            gradient or whose gradient is zero at all of the method's points (KL and JS at the clean
            input), a method that needs corrupted prompts under another ablation, or scores per
            example where there are none (exact values, means of methods, nodes).
    """
    if per_example:
        return _per_example(
            model, dataset, edges, method=method, metric=metric, ablation=ablation, level=level,
            steps=steps, rule=rule, tolerance=tolerance, expanded_kv=expanded_kv,
            observers=observers, **resources,
        )  # fmt: skip
    if observers and (not isinstance(method, str | Method) or get_method(method).scorer == "exact"):
        raise UserError("exact values and means of methods have no per-example scores")
    if not isinstance(method, str | Method):
        return _mean_of_methods(
            model, dataset, method, metric=metric, ablation=ablation, level=level, steps=steps,
            rule=rule, tolerance=tolerance, expanded_kv=expanded_kv, **resources,
        )  # fmt: skip
    call = _Call.check(get_method(method), metric, ablation, level, rule)
    limits = Resources(**resources)
    if call.method.scorer == "exact":
        return _exact(model, dataset, call, expanded_kv, resources)
    if steps != "auto":
        points = call.points(steps, rule)
        return _score(model, dataset, call, points, expanded_kv, limits, observers,
                      call.settings(steps, rule))  # fmt: skip
    if not call.method.integrates:
        raise UserError(f"{call.method.name} has no steps to choose; leave steps='auto' out")
    if observers:
        raise UserError("observers need a fixed number of steps; give one instead of 'auto'")
    for number in AUTO_STEPS:
        points = call.points(number, rule)
        graph = _score(model, dataset, call, points, expanded_kv, limits, (),
                       call.settings(number, rule))  # fmt: skip
        if abs(graph.provenance["completeness"]["relative_error"]) <= tolerance:
            return graph
    warnings.warn(
        f"{AUTO_STEPS[-1]} points are not within {tolerance} of complete; see the graph's "
        "provenance, or try rule='gauss-legendre'",
        stacklevel=2,
    )
    return graph


def _per_example(
    model: Model, dataset: Dataset, edges: int | Sequence[str], **options: Unpack[Options]
) -> ExampleScores:
    """The graph, and the scores of chosen edges, or of the best, on every example."""
    if options["level"] != "edge":
        raise UserError("per-example scores are of edges; leave level='node' out")
    names = [] if isinstance(edges, int) else list(edges)
    first = None
    if isinstance(edges, int) or options["steps"] == "auto":
        first = attribute(model, dataset, **options)
        options["steps"] = first.provenance["settings"].get("steps", options["steps"])
    if first is not None and isinstance(edges, int):
        best = first.top_n(min(edges, first.n_edges)).edge_names()
        names = sorted(best, key=lambda edge: -abs(first.score(edge)))
    config = replace(model.config, expanded_kv=options["expanded_kv"])
    keep = KeepEdges(config, names, len(dataset), model.residual_dtype)
    options["observers"] = [*options["observers"], keep]
    graph = attribute(model, dataset, **options)
    distributed.sum_over_processes(keep.scores)
    return ExampleScores(graph, tuple(names), keep.scores)


@dataclass(frozen=True)
class _Call:
    """What a call asks for, checked."""

    method: Method
    metric: Metric | None
    ablation: Ablation
    level: str

    @classmethod
    def check(
        cls,
        method: Method,
        metric: str | Metric | None,
        ablation: str | Ablation | None,
        level: str,
        rule: str,
    ) -> "_Call":
        """Find everything by name and see whether it goes together."""
        if level not in LEVELS:
            raise UserError(f"unknown level {level!r}; known are {', '.join(LEVELS)}")
        if not method.uses_metric:
            if metric is not None:
                raise UserError(f"{method.name} asks for no metric; leave {_name(metric)!r} out")
            if ablation is not None:
                raise UserError(f"{method.name} ablates nothing; leave the ablation out")
            if level == "node":
                raise UserError(f"{method.name} scores edges; it has no scores of nodes")
            return cls(method, None, get_ablation("zero"), level)
        chosen = get_metric("logit_diff" if metric is None else metric)
        where = get_ablation(ablation)
        if method.scorer != "exact" and not chosen.differentiable:
            raise UserError(f"{chosen.name} has no gradient, so it cannot be attributed")
        if method.needs_pair and not where.has_pair:
            raise UserError(
                f"{method.name} needs a corrupted prompt for every clean one, which {where.name} "
                "ablation does not use; give ablation='resample'"
            )
        if level == "node" and method.scorer == "patterns":
            raise UserError(
                f"{method.name} mends edges into q and k one by one; it has no scores of nodes"
            )
        if method.integrates and not method.uses_rule and rule != "paper":
            raise UserError(f"{method.name} has a rule of its own; leave rule={rule!r} out")
        return cls(method, chosen, where, level)

    def points(self, steps: int | str, rule: str) -> list[Point]:
        """At which inputs gradients are taken."""
        if not isinstance(steps, int):
            raise UserError(f"steps {steps!r}: a number of points, or 'auto'")
        if steps < 1:
            raise UserError(f"{steps} steps are too few; at least 1 is needed")
        points = self.method.points(rule, steps)
        flat = self.metric is not None and self.metric.flat_at_clean
        if flat and all(point.position == 1.0 for point in points):
            with_steps = f" with {steps} step" if self.method.integrates else ""
            raise UserError(
                f"the gradient of {_name(self.metric)} is zero at the clean input, where "
                f"{self.method.name}{with_steps} takes it; use EAP-IG with at least 2 steps"
            )
        return points

    def settings(self, steps: int | str, rule: str) -> dict[str, Any]:
        """What of the settings the method depends on."""
        if not self.method.integrates:
            return {}
        return {"steps": steps, "rule": rule} if self.method.uses_rule else {"steps": steps}


def _name(metric: str | Metric | None) -> str:
    return metric.name if isinstance(metric, Metric) else str(metric)


def _score(
    model: Model,
    dataset: Dataset,
    call: _Call,
    points: Sequence[Point],
    expanded_kv: bool,
    limits: Resources,
    observers: Sequence[Observer],
    settings: dict[str, Any],
) -> Graph:
    """Run a scorer over all batches and gather its scores."""
    check_dataset(model, dataset)
    config = replace(model.config, expanded_kv=expanded_kv)
    metrics = () if call.metric is None else (call.metric,)

    def need(shapes: Shapes, extent: Extent, n_columns: int) -> Need:
        return attribution_need(shapes, extent, len(points), n_columns)

    demand = Demand("attribution", need, config.n_forward * config.n_backward)
    work = Work.plan(model, dataset, metrics, call.ablation, config, limits, demand)
    scorer = call.method.scorer
    score: Scorer = SCORERS[scorer] if isinstance(scorer, str) else scorer
    shape = (config.n_forward, config.n_backward if call.level == "edge" else 1)
    moments = Moments.zeros(*shape, device=model.device)
    change = Moments.zeros()
    what = f"{call.method.name} {_name(call.metric) if call.metric else ''}".strip()
    for batch in work.batches(what, quiet=limits.quiet):
        stacked = work.runs_at_once(batch.extent)
        request = Request(call.method, points, stacked, call.level, change)
        with torch.enable_grad():
            blocks = score(batch, request)
            if call.level == "node":
                blocks = iter([to_nodes(config, blocks, len(batch))])
            for block in blocks:
                moments.add(block.scores, (block.senders, block.receivers))
                for observer in observers:
                    observer.add(batch.rows, *block)
    moments.merge_processes(what)
    change.merge_processes(what)
    check_gradients(work)
    check_values(metrics, moments.mean[None][: len(metrics)])
    provenance = sign(
        model, dataset, metric=call.metric, method=call.method.name, ablation=call.ablation,
        level=call.level, expanded_kv=expanded_kv, settings=settings,
    )  # fmt: skip
    # Unsigned scores are importance, whatever the metric: positive ones count as helpful.
    better = call.method.signed and (call.metric is None or call.metric.higher_is_better)
    mean, error = moments.mean, moments.standard_error
    if call.method.integrates:
        provenance["completeness"] = completeness(mean, change)
    scores = mean.to(model.residual_dtype)
    errors = None if error is None else error.to(model.residual_dtype)
    graph = replace(Graph.from_config(config), provenance=provenance, higher_is_better=better)
    if call.level == "node":
        return replace(
            graph, scores=torch.full_like(graph.scores, torch.nan),
            node_scores=scores[:, 0], node_errors=None if errors is None else errors[:, 0],
        )  # fmt: skip
    return replace(graph, scores=scores, standard_errors=errors)


def completeness(
    mean: Float[Tensor, "n_forward n_columns"], metric_change: Moments
) -> dict[str, float]:
    """How far scores are from complete: those out of the input against the metric's difference.

    The input's scores are integrals of gradients along the path from the ablated to the clean
    embedding: with enough points they sum to metric(ablated) - metric(clean).
    """
    total, difference = float(mean[0].sum()), float(metric_change.mean)
    return {
        "sum_of_input_scores": total,
        "metric_difference": difference,
        "relative_error": (total - difference) / abs(difference) if difference else float("inf"),
    }


def _exact(
    model: Model, dataset: Dataset, call: _Call, expanded_kv: bool, resources: ResourceOptions
) -> Graph:
    """Activation patching as one of the methods."""
    assert call.metric is not None
    verb = patch_edges if call.level == "edge" else patch_nodes
    graphs = verb(
        model, dataset, metrics=[call.metric], ablation=call.ablation, expanded_kv=expanded_kv,
        **resources,
    )  # fmt: skip
    return graphs[call.metric.name]


def _mean_of_methods(
    model: Model, dataset: Dataset, methods: Sequence[str | Method], **settings: Any
) -> Graph:
    """The mean of several methods' scores, each scaled to unit mean magnitude."""
    if len(methods) < 2:
        raise UserError("a mean of methods needs at least two; give one as a string")
    graphs = [attribute(model, dataset, method=method, **settings) for method in methods]
    first = graphs[0]
    at_nodes = settings["level"] == "node"
    scaled = []
    for graph in graphs:
        scores = graph.node_scores if at_nodes else graph.scores
        assert scores is not None
        there = scores if at_nodes else scores[graph.edge_exists]
        scaled.append(scores / there.abs().mean().clamp(min=torch.finfo(scores.dtype).tiny))
    mean = torch.stack(scaled).mean(0)
    names = " + ".join(graph.provenance["method"] for graph in graphs)
    provenance = {**first.provenance, "method": f"mean of {names}", "settings": {
        graph.provenance["method"]: graph.provenance["settings"] for graph in graphs
    }}  # fmt: skip
    provenance.pop("completeness", None)
    if at_nodes:
        return replace(first, node_scores=mean, node_errors=None, provenance=provenance)
    return replace(first, scores=mean, standard_errors=None, provenance=provenance)

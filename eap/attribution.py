"""Attribution: first-order estimates of every edge's effect (EAP, EAP-IG and related methods).

The effect of ablating the edge u -> v is estimated to first order,

    score(u -> v) = (a_u_ablated - a_u_clean) . dMetric/d(input of v)

with the gradient taken on the clean run (EAP; Syed, Rager and Conmy 2023), or averaged over points
between the ablated and the clean input embedding (EAP-IG; Hanna, Pezzelle and Belinkov 2024,
equation 2). The dot product sums over positions and d_model; scores are means over examples.

The work is done batch by batch, by modules of `eap.engine`: `prepared` runs the prefix and the
ablated prompts; a scorer of `scorers` computes the gradients at all receivers (`receivers`) and
multiplies them with the changes of the senders' outputs; `Moments` accumulates means and standard
errors over examples. Each method is an entry of the table in `eap.methods`.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from numbers import Real
from typing import Any, Unpack

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from eap.ablation import Ablation, get_ablation
from eap.data.batches import named_spans
from eap.data.dataset import Dataset
from eap.engine.moments import Moments
from eap.engine.passes import Request
from eap.engine.path_gradients import check_gradients, completeness
from eap.engine.prepared import Work, demand_of_gradients
from eap.engine.score_blocks import KeepEdges, Observer, to_nodes
from eap.engine.scorers import SCORERS, Scorer
from eap.engine.signature import sign
from eap.graph import Graph, GraphConfig
from eap.graph.arithmetic import mean_of
from eap.methods import Auto, Method, Point, get_method
from eap.metrics.metric import Metric, check_values, get_metric, warn_of_direction
from eap.model.model import Model
from eap.model.shapes import graph_config
from eap.model.verbs import verb
from eap.patching import patch_edges, patch_nodes
from eap.runtime import distributed
from eap.runtime.code import score_code
from eap.runtime.errors import UserError
from eap.runtime.ranges import whole
from eap.runtime.resources import ResourceOptions, Resources

LEVELS = ("edge", "node")
DEFAULT_STEPS = 5


def _takes_former_calls(function: Callable[..., Graph]) -> Callable[..., Graph]:
    """Accept the call signatures of earlier versions, with a warning that names the new form."""

    def warn(former: str, present: str) -> None:
        warnings.warn(f"attribute({former}) is now {present}", FutureWarning, stacklevel=3)

    @wraps(function)
    def call(*given: Any, **options: Any) -> Any:
        method = options.get("method", "EAP-IG")
        if "tolerance" in options:
            warn("tolerance=...", "attribute(steps=eap.Auto(tolerance=...))")
            tolerance = options.pop("tolerance")
            if options.get("steps") == "auto":
                options["steps"] = Auto(tolerance)
        if "per_example" in options or "edges" in options:
            edges = options.pop("edges", 100)
            if options.pop("per_example", False):
                warn("per_example=True", "example_scores(model, dataset, edges, ...)")
                return example_scores(*given, **options | {"edges": edges})
        if not isinstance(method, str | Method) and isinstance(method, Sequence):
            warn("method=[...]", "mean_of([attribute(method=...), ...])")
            plain = {key: options[key] for key in options if key not in ("steps", "rule")}
            fitting = {one: options if get_method(one).integrates else plain for one in method}
            graphs = [
                function(*given, **settings | {"method": one}) for one, settings in fitting.items()
            ]
            return mean_of(graphs)
        return function(*given, **options)

    return call


@_takes_former_calls
@verb
def attribute(
    model: Model,
    dataset: Dataset,
    *,
    method: str | Method = "EAP-IG",
    metric: str | Metric | None = None,
    ablation: str | Ablation | None = None,
    level: str = "edge",
    steps: int | str | Auto | None = None,
    rule: str = "paper",
    expanded_kv: bool = False,
    spans: bool = False,
    observers: Sequence[Observer] = (),
    **resources: Unpack[ResourceOptions],
) -> Graph:
    """Score every edge, or every node, of the model's graph.

    Args:
        model: loaded model (`eap.load_model`).
        dataset: pairs of prompts (`eap.load_dataset`).
        method: name of a method in `eap.methods.METHODS`, or a `Method`.
        metric: name of a metric in `eap.metrics.METRICS`, or an `eap.Metric`; None: `logit_diff`.
        ablation: activation that an ablated edge carries; None: that on the corrupted prompt.
        level: 'edge' or 'node'. With 'node' the graph has `node_scores`; the score of a node is
            that of all its outgoing edges.
        steps: number of integration points, for methods that integrate; None: 5. 'auto' or an
            `eap.Auto` increases the number until the scores of the edges out of the input sum to
            the difference of the metric between ablated and clean input.
        rule: name of an integration rule in `eap.methods.RULES`, for methods that integrate.
        expanded_kv: whether every query head has its own k and v receiver, even where query heads
            share key/value heads.
        spans: whether to score every edge at every span of the data set's prompts (a k or v input
            at the key's position). For linear methods and IFR, the scores summed over spans equal
            the scores without spans.
        observers: objects that receive every block of per-example scores as soon as it is computed;
            an observer's `n_bytes` (default: 0) is set aside from the memory first.
        **resources: batch_size, memory_budget (bytes), quiet; see `eap.runtime.resources`.

    Returns:
        The whole graph with `scores` [n_forward, n_backward] (with an axis of spans first, if
        `spans` is set) in units of the metric, their `standard_errors` over examples (None for one
        example), and the provenance. A negative score means that ablating the edge lowers the
        metric. `eap.mean_of` averages graphs.

    Raises:
        UserError: unknown names, fewer than one step, a batch that does not fit in memory, a metric
            that has no gradient or whose gradient is zero at all points of the method (KL and JS at
            the clean input), or a method that needs corrupted prompts under an ablation that does
            not use them.

    Example:
        >>> graph = eap.attribute(model, dataset, method="EAP-IG", metric="logit_diff", steps=5)
        >>> graph.scores.shape == (graph.n_forward, graph.n_backward)
        True
        >>> circuit = graph.greedy(200).prune()
    """
    call = Call.check(get_method(method), metric, ablation, level, rule, spans=spans, steps=steps)
    config = graph_config(model, expanded_kv=expanded_kv)
    limits = Resources(**resources)
    if call.method.scorer == "exact":
        if observers:
            raise UserError("exact values have no per-example scores")
        assert call.metric is not None
        patch = patch_nodes if level == "node" else patch_edges
        graphs = patch(
            model, dataset, metrics=[call.metric], ablation=call.ablation,
            expanded_kv=expanded_kv, spans=spans, **resources,
        )  # fmt: skip
        return graphs[call.metric.name]
    auto = Auto() if steps == "auto" else DEFAULT_STEPS if steps is None else steps
    if not isinstance(auto, Auto):
        return _score(model, dataset, call, whole("steps", auto), config, limits, observers)
    if observers:
        raise UserError("observers need a fixed number of steps; give one instead of 'auto'")
    for number in Auto.TRIED:
        graph = _score(model, dataset, call, number, config, limits, ())
        if abs(graph.provenance["completeness"]["relative_error"]) <= auto.tolerance:
            return graph
    warnings.warn(
        f"with {Auto.TRIED[-1]} points, scores are not within {auto.tolerance} of complete; see "
        "the graph's provenance, or try rule='gauss-legendre'",
        stacklevel=3,
    )
    return graph


@dataclass(frozen=True, eq=False)
class ExampleScores:
    """Scores of chosen edges on every example, as returned by `eap.example_scores`.

    Attributes:
        graph: graph with the mean scores of all edges.
        edges: names of the requested edges, or of the best edges, best first.
        scores: scores [example, edge] of these edges, with examples in the order of the data set;
            the mean of a column is `graph.score(edge)`.

    Example:
        >>> scores = eap.example_scores(model, dataset, 5, method="EAP")
        >>> scores.scores.shape, len(scores.edges)
        (torch.Size([8, 5]), 5)
    """

    graph: Graph
    edges: tuple[str, ...]
    scores: Float[Tensor, "example edge"]

    def to_frame(self) -> pd.DataFrame:
        """Make a table with a row per example and a column per edge."""
        frame = pd.DataFrame(self.scores.numpy(), columns=list(self.edges))
        return frame.rename_axis(index="example")


@verb
def example_scores(
    model: Model,
    dataset: Dataset,
    edges: int | Sequence[str] = 100,
    *,
    method: str | Method = "EAP-IG",
    steps: int | str | Auto | None = None,
    expanded_kv: bool = False,
    **options: Any,
) -> ExampleScores:
    """Score chosen edges on every example, together with the mean scores of all edges.

    Args:
        model: loaded model (`eap.load_model`).
        dataset: pairs of prompts (`eap.load_dataset`).
        edges: names of edges, or the number of best edges to choose (which takes a second pass).
        method: name of a method that scores by gradients, or a `Method`, as for `attribute`.
        steps: number of integration points, as for `attribute`; 'auto' takes a second pass.
        expanded_kv: whether every query head has its own k and v receiver, even where query heads
            share key/value heads.
        **options: metric, ablation, rule, observers and resources, as for `attribute`.

    Raises:
        UserError: as for `attribute`; also for exact values and nodes, which have no per-example
            scores.

    Example:
        >>> scores = eap.example_scores(model, dataset, ["m0->logits", "a0.h1->m2"], method="EAP")
        >>> scores.to_frame().shape
        (8, 2)
    """
    if options.get("level", "edge") != "edge" or options.get("spans"):
        raise UserError("per-example scores are for edges only; leave out level='node' and spans")
    if not isinstance(method, str | Method) or get_method(method).scorer == "exact":
        raise UserError("exact values and means of methods have no per-example scores")
    options |= {"method": method, "expanded_kv": expanded_kv}
    if isinstance(edges, Real):
        edges = whole("edges", edges)
    names = [] if isinstance(edges, int) else list(edges)
    if isinstance(edges, int) or isinstance(steps, str | Auto):
        watched = options | {"observers": ()}  # they see every block once, in the second pass
        first = attribute(model, dataset, steps=steps, **watched)
        steps = first.provenance["settings"].get("steps", steps)
        if isinstance(edges, int):
            best = first.top_n(min(edges, first.n_edges)).edge_names()
            names = sorted(best, key=lambda edge: -abs(first.score(edge)))
    config = graph_config(model, expanded_kv=expanded_kv)
    scores = torch.zeros(len(dataset), len(names), dtype=model.residual_dtype, device=model.device)
    keep = KeepEdges(config, names, scores)
    options["observers"] = [*options.get("observers", ()), keep]
    graph = attribute(model, dataset, steps=steps, **options)
    return ExampleScores(graph, tuple(names), distributed.sum_over_processes(scores.cpu()))


@dataclass(frozen=True)
class Call:
    """The checked arguments of a call of `attribute`."""

    method: Method
    metric: Metric | None
    ablation: Ablation
    level: str
    rule: str
    spans: bool

    @classmethod
    def check(
        cls,
        method: Method,
        metric: str | Metric | None,
        ablation: str | Ablation | None,
        level: str,
        rule: str,
        *,
        spans: bool = False,
        steps: int | str | Auto | None = None,
    ) -> "Call":
        """Look up the names and check that the arguments fit together."""
        if steps is not None and not method.integrates:
            raise UserError(f"{method.name} does not integrate; leave steps={steps!r} out")
        if level not in LEVELS:
            raise UserError(f"unknown level {level!r}; known are {', '.join(LEVELS)}")
        if spans and method.scorer == "patterns":
            raise UserError(
                f"{method.name} changes whole patterns, which do not split into spans; leave out "
                "spans"
            )
        if rule != "paper" and not (method.integrates and method.uses_rule):
            why = "has a rule of its own" if method.integrates else "does not integrate"
            raise UserError(f"{method.name} {why}; leave rule={rule!r} out")
        if not method.uses_metric:
            if metric is not None:
                raise UserError(f"{method.name} uses no metric; leave {_name(metric)!r} out")
            if ablation is not None:
                raise UserError(f"{method.name} ablates nothing; leave the ablation out")
            if level == "node":
                raise UserError(f"{method.name} scores edges only; it has no node scores")
            return cls(method, None, get_ablation("zero"), level, rule, spans)
        measured = get_metric("logit_diff" if metric is None else metric)
        ablated = get_ablation(ablation)
        if method.scorer != "exact" and not measured.differentiable:
            raise UserError(f"{measured.name} has no gradient, so it cannot be attributed")
        if method.needs_pair and not ablated.has_pair:
            raise UserError(
                f"{method.name} needs a corrupted prompt for every clean one, which {ablated.name} "
                "ablation does not use; give ablation='resample', or another method"
            )
        if level == "node" and method.scorer == "patterns":
            raise UserError(
                f"{method.name} corrects edges into q and k one by one; it has no node scores"
            )
        return cls(method, measured, ablated, level, rule, spans)

    def points(self, steps: int) -> list[Point]:
        """The points of the path at which gradients are taken."""
        points = self.method.points(self.rule, steps)
        flat = self.metric is not None and self.metric.flat_at_clean
        if flat and all(point.position == 1.0 for point in points):
            with_steps = f" with {steps} step" if self.method.integrates else ""
            raise UserError(
                f"the gradient of {_name(self.metric)} is zero at the clean input, where "
                f"{self.method.name}{with_steps} takes it; use EAP-IG with at least 2 steps"
            )
        return points

    def settings(self, steps: int) -> dict[str, Any]:
        """The settings that the method depends on."""
        if not self.method.integrates:
            return {}
        return {"steps": steps, "rule": self.rule} if self.method.uses_rule else {"steps": steps}


def _name(metric: str | Metric | None) -> str:
    return metric.name if isinstance(metric, Metric) else str(metric)


def _score(
    model: Model,
    dataset: Dataset,
    call: Call,
    steps: int,
    config: GraphConfig,
    limits: Resources,
    observers: Sequence[Observer],
) -> Graph:
    """Run a scorer over all batches and accumulate its scores."""
    points = call.points(steps)
    metrics = () if call.metric is None else (call.metric,)
    names = named_spans(model, dataset) if call.spans else ()
    n_observed = sum(getattr(observer, "n_bytes", 0) for observer in observers)
    demand = demand_of_gradients(
        "attribution", config, n_points=len(points), n_spans=len(names), n_observed=n_observed
    )
    work = Work.plan(model, dataset, metrics, call.ablation, config, limits, demand)
    scorer = call.method.scorer
    score: Scorer = SCORERS[scorer] if isinstance(scorer, str) else scorer
    n_columns = config.n_backward if call.level == "edge" else 1
    shape = (*([len(names)] if names else []), config.n_forward, n_columns)
    moments = Moments.zeros(*shape, device=model.device)
    baselines = Moments.zeros(3, device=model.device)
    what = f"{call.method.name} {_name(call.metric) if call.metric else ''}".strip()
    for batch in work.batches(what, quiet=limits.quiet):
        stacked = work.runs_at_once(batch.extent)
        request = Request(
            call.method, points, stacked, level=call.level, spans=call.spans, baselines=baselines
        )
        with torch.enable_grad():
            blocks = score(batch, request)
            if call.level == "node":
                blocks = iter([to_nodes(config, blocks)])
            for block in blocks:
                moments.add(block.scores, (..., block.senders, block.receivers))
                for observer in observers:
                    observer.add(batch.rows, block)
    moments.merge_processes(what)
    baselines.merge_processes(what)
    check_gradients(work)
    check_values(metrics, moments.mean[None][: len(metrics)])
    provenance = sign(
        model, dataset, metric=call.metric, method=call.method.name, ablation=call.ablation,
        level=call.level, expanded_kv=config.expanded_kv, settings=call.settings(steps),
        code=score_code(), signed=call.method.signed, spans=names,
    )  # fmt: skip
    # Unsigned scores are importance, whatever the metric: positive ones count as helpful.
    better: bool | None = False
    if call.method.signed and call.metric is not None:
        better = call.metric.higher_is_better
    mean, error = moments.mean, moments.standard_error
    clean, _, at_ablated_input = baselines.mean.tolist()
    warn_of_baselines(model, call, baselines, stacklevel=5)
    if call.method.integrates:
        provenance["completeness"] = completeness(mean, at_ablated_input - clean)
    scores = mean.to(model.residual_dtype)
    errors = None if error is None else error.to(model.residual_dtype)
    graph = Graph.from_config(config, names)
    graph = replace(graph, provenance=provenance, higher_is_better=better)
    if call.level == "node":
        return replace(
            graph, scores=torch.full_like(graph.scores, torch.nan),
            node_scores=scores[..., 0], node_errors=None if errors is None else errors[..., 0],
        )  # fmt: skip
    return replace(graph, scores=scores, standard_errors=errors)


def warn_of_baselines(model: Model, call: Call, baselines: Moments, *, stacklevel: int = 4) -> None:
    """Warn if the clean run is not better than the ablated one, or if the path only rescales."""
    clean, ablated, _ = baselines.mean.tolist()
    if call.metric is not None:
        warn_of_direction(call.metric, clean, ablated, stacklevel=stacklevel)
    if call.method.integrates and call.ablation.name == "zero" and model.W_pos is None:
        warnings.warn(
            f"{call.method.name} under zero ablation: the path scales the embedding from 0 to 1, "
            "and without position embeddings the norms undo that scale, so that scores do not "
            "converge; give ablation='resample' or an eap.Mean, or a method without steps",
            stacklevel=stacklevel - 1,
        )

"""Exact activation patching: the value of every edge by definition, without one run per edge.

    value(u -> v) = metric(run in which v alone reads a_u_ablated instead of a_u) - metric(clean)

(Vig et al. 2020; for edges, path patching: Wang et al. 2022, Goldowsky-Dill et al. 2023, Conmy et
al. 2023.) Patching u -> v changes nothing before v, so a patched run starts at the receiver:

* q, k and v: `x + delta_u` is normalised and projected once per sender, for all heads; the change
  of each head is a small attention and one `d_head x d_model` product, added to the clean run;
* MLP: its output for the input `x + delta_u` replaces the clean output;
* logits: only the final norm and the unembedding are left to run.

After the receiver, many edges are stacked along the batch dimension, and the rest of the model is
run on the positions from the first difference on. All metrics are read from one run. To patch a
node, `delta_u` is added to the residual stream once, so that everything after the node reads it.

`eap.engine.patch_plan` divides the work into units, between which a run can stop and resume;
`patch_runs` runs the units.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Unpack

import torch
from einops import rearrange
from jaxtyping import Bool
from torch import Tensor

from eap.ablation import Ablation, get_ablation
from eap.data.batches import named_spans
from eap.data.dataset import Dataset
from eap.engine.moments import Moments
from eap.engine.patch_plan import Plan, costs_of, count_operations, make_plan
from eap.engine.patch_runs import BatchPatcher, CleanBatch, patched_node
from eap.engine.prepared import Demand, Work
from eap.engine.signature import sign
from eap.graph import Graph
from eap.metrics.metric import Metric, check_values, get_metrics
from eap.model.model import Model
from eap.model.shapes import graph_config
from eap.model.verbs import verb
from eap.runtime import distributed
from eap.runtime.checkpoint import Checkpoint
from eap.runtime.code import score_code
from eap.runtime.memory import patching_need
from eap.runtime.progress import progress_bar
from eap.runtime.resources import ResourceOptions, Resources


@verb
def patch_edges(
    model: Model,
    dataset: Dataset,
    *,
    metrics: str | Metric | Sequence[str | Metric] = ("logit_diff",),
    edges: Bool[Tensor, "*span n_forward n_backward"] | None = None,
    ablation: str | Ablation | None = None,
    expanded_kv: bool = False,
    spans: bool = False,
    checkpoint: Checkpoint | None = None,
    **resources: Unpack[ResourceOptions],
) -> dict[str, Graph]:
    """Exact values of all edges, or of the given edges, for several metrics in one pass.

    Args:
        model: loaded model (`eap.load_model`).
        dataset: pairs of prompts (`eap.load_dataset`).
        metrics: names of metrics in `eap.metrics.METRICS`, or `eap.Metric` objects.
        edges: mask of the edges to score, [n_forward, n_backward]; or mask of pairs of a span and
            an edge, [span, n_forward, n_backward]; None: all edges.
        ablation: activation that a patched edge carries; None: that on the corrupted prompt.
        expanded_kv: whether every query head has its own k and v receiver, even where query heads
            share key/value heads.
        spans: whether to patch every edge separately at each span of the prompts.
        checkpoint: `Checkpoint` in which progress is kept; an interrupted run resumes from it.
        **resources: batch_size, memory_budget (bytes), quiet; see `eap.runtime.resources`.

    Returns:
        One whole graph per metric name, with exact scores (means over examples), their standard
        errors (None for one example), and `is_exact`; edges that were not asked for score NaN.

    Raises:
        UserError: an unknown metric, pairs that are not edges, or a budget too small for one edge.

    Example:
        >>> edges = graph.top_n(5).in_graph
        >>> exact = eap.patch_edges(model, dataset, metrics=["logit_diff", "kl"], edges=edges)
        >>> int(exact["kl"].is_exact.sum())
        5
    """
    limits = Resources(**resources)
    if checkpoint is not None and limits.batch_size is None:
        # Keep the batch size that the interrupted run chose from the memory then available.
        limits = replace(limits, batch_size=checkpoint.setting("batch_size"))
    plan = make_plan(
        model, dataset, metrics, edges, limits,
        ablation=ablation, expanded_kv=expanded_kv, spans=spans,
    )  # fmt: skip
    return run_plan(plan, checkpoint=checkpoint, quiet=limits.quiet)


def run_plan(
    plan: Plan, *, checkpoint: Checkpoint | None = None, quiet: bool = True
) -> dict[str, Graph]:
    """Run a plan of `make_plan`; returns what `patch_edges` returns."""
    work, config = plan.work, plan.work.config
    model = work.model
    graph = Graph.from_config(config, plan.span_names)
    moments = Moments.zeros(len(work.metrics), *graph.scores.shape, device=model.device)
    units = distributed.own_items(plan.units, costs=costs_of(plan, plan.units))
    done = 0
    if checkpoint is not None:
        identity = sign(
            model, work.dataset, metric=None, method="exact", ablation=work.ablation,
            expanded_kv=config.expanded_kv, code=score_code(), spans=plan.span_names,
        )  # fmt: skip
        del identity["command"]
        identity |= {**checkpoint.identity, **plan.identity}
        checkpoint = replace(checkpoint, identity=identity)
        state = moments.state.cpu()
        done = checkpoint.resume(state, len(units))
        moments.state.copy_(state)
    patcher: BatchPatcher | None = None
    remaining = progress_bar(units[done:], "exact values", quiet=quiet, done=done)
    for number, unit in enumerate(remaining, start=done + 1):
        patcher = BatchPatcher.load(plan, unit, patcher)
        span = [unit.span] if plan.span_names else []
        for senders, receivers, values in patcher.run(unit):
            by_example = rearrange(values, "metric edge batch -> batch metric edge")
            moments.add(by_example, (slice(None), *span, senders, receivers))
        if checkpoint is not None:
            checkpoint.save(moments.state.cpu(), number)
    moments.merge_processes("exact values")
    moments.count_zeros(len(work.dataset))  # positions before the first difference do not change
    check_values(work.metrics, moments.mean)
    graphs, is_exact = {}, plan.edges
    for number, metric in enumerate(work.metrics):
        unknown, error = graph.edge_exists & ~is_exact, moments.standard_error
        scores = moments.mean[number].to(model.residual_dtype)
        errors = None if error is None else error[number].to(model.residual_dtype)
        graphs[metric.name] = replace(
            graph,
            scores=scores.masked_fill(unknown, torch.nan),
            standard_errors=None if errors is None else errors.masked_fill(unknown, torch.nan),
            is_exact=is_exact.clone(),
            higher_is_better=metric.higher_is_better,
            provenance=sign(
                model, work.dataset, metric=metric, method="exact", ablation=work.ablation,
                expanded_kv=config.expanded_kv, code=score_code(),
                spans=plan.span_names,
            ),
        )  # fmt: skip
    return graphs


@verb
def patch_nodes(
    model: Model,
    dataset: Dataset,
    *,
    metrics: str | Metric | Sequence[str | Metric] = ("logit_diff",),
    ablation: str | Ablation | None = None,
    expanded_kv: bool = False,
    spans: bool = False,
    **resources: Unpack[ResourceOptions],
) -> dict[str, Graph]:
    """Exact values of all nodes: the change of a metric when a node sends its ablated output.

    Args:
        model: loaded model (`eap.load_model`).
        dataset: pairs of prompts (`eap.load_dataset`).
        metrics: names of metrics in `eap.metrics.METRICS`, or `eap.Metric` objects.
        ablation: activation that a patched node sends; None: that on the corrupted prompt.
        expanded_kv: whether every query head has its own k and v receiver, even where query heads
            share key/value heads.
        spans: whether to ablate every node separately at each span of the prompts.
        **resources: batch_size, memory_budget (bytes), quiet; see `eap.runtime.resources`.

    Returns:
        One whole graph per metric name, with `node_scores` [n_forward] or [span, n_forward] (means
        over examples of the change of the metric) and `node_errors`.

    Raises:
        UserError: an unknown metric, or a budget too small for one node.

    Example:
        >>> nodes = eap.patch_nodes(model, dataset, metrics=["logit_diff"])["logit_diff"]
        >>> nodes.node_scores.shape == (nodes.n_forward,)
        True
    """
    measured, ablated = get_metrics(metrics), get_ablation(ablation)
    limits = Resources(**resources)
    config = graph_config(model, expanded_kv=expanded_kv)
    names = named_spans(model, dataset) if spans else ()
    shape = (len(measured), *([len(names)] if names else []), config.n_forward)
    demand = Demand("exact patching", patching_need, prod(shape))
    work = Work.plan(model, dataset, measured, ablated, config, limits, demand)
    moments = Moments.zeros(*shape, device=model.device)
    with torch.no_grad():
        for batch in work.batches("exact values of nodes", quiet=limits.quiet):
            clean = CleanBatch.run(batch)
            present = [span for span in range(len(names)) if batch.layout.has(span)]
            for place in [[span] for span in present] if names else [[]]:
                patched = clean.at_span(*place) if place else clean
                for sender in range(config.n_forward):
                    values = patched.measure(patched_node(patched, sender)[None])
                    by_example = rearrange(values, "metric 1 batch -> batch metric")
                    moments.add(by_example, (slice(None), *place, sender))
    moments.merge_processes("exact values")
    moments.count_zeros(len(dataset))
    check_values(measured, moments.mean)
    graph, error = Graph.from_config(config, names), moments.standard_error
    return {
        metric.name: replace(
            graph,
            scores=torch.full_like(graph.scores, torch.nan),
            higher_is_better=metric.higher_is_better,
            node_scores=moments.mean[number].to(model.residual_dtype),
            node_errors=None if error is None else error[number].to(model.residual_dtype),
            provenance=sign(
                model, dataset, metric=metric, method="exact", ablation=ablated, level="node",
                expanded_kv=expanded_kv, code=score_code(), spans=names,
            ),
        )
        for number, metric in enumerate(measured)
    }  # fmt: skip


def measure_seconds(plan: Plan, *, n_units: int = 4) -> float:
    """Estimated duration of the whole plan, from a sample of units and the count of operations."""
    of_first = [unit for unit in plan.units if unit.batch == 0]
    step = max(1, len(of_first) // n_units)
    sample = of_first[step // 2 :: step][:n_units]
    patcher = BatchPatcher.load(plan, sample[0])
    for _ in patcher.run(sample[0]):  # warm-up: the first run is slow
        break
    begun = time.perf_counter()
    for unit in sample:
        patcher = BatchPatcher.load(plan, unit, patcher)
        for _, _, values in patcher.run(unit):
            values.cpu()  # waits for the device
    seconds = time.perf_counter() - begun
    ratio = count_operations(plan, plan.units) / count_operations(plan, sample)
    return seconds * ratio / distributed.count()

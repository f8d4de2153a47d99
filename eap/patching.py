"""Exact activation patching: the value of every edge by the definition, without one run per edge.

    value(u -> v) = metric(run in which v alone reads a_u_ablated instead of a_u) - metric(clean)

(Vig et al. 2020; of edges, path patching: Wang et al. 2022, Goldowsky-Dill et al. 2023, Conmy et
al. 2023.) Patching u -> v changes nothing before v, so a patched run starts where its edge ends:

* q, k and v. `x + delta_u` is normalised and projected once per sender, for all heads; each head's
  change is a small attention and one `d_head x d_model` product, added to the clean run;
* MLP. Its output with `x + delta_u` as input replaces the clean one;
* logits. The final norm and the unembedding are all there is.

From there on many edges are stacked along the batch dimension and the rest of the model is run, on
the positions from the first difference on. All metrics are read from one run. A patched node is
the same with everything behind it: `delta_u` is added to the residual stream once.

Phases: `eap.engine.patch_plan` cuts the work into units that can be stopped between; here they are
run.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Unpack

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from eap.ablation import Ablation, get_ablation
from eap.data.dataset import Dataset
from eap.engine.moments import Moments
from eap.engine.patch_plan import (
    Plan,
    Unit,
    costs_of,
    count_operations,
    make_plan,
    receivers_of,
)
from eap.engine.prepared import Demand, PreparedBatch, Work
from eap.engine.signature import sign
from eap.graph import Graph
from eap.metrics.metric import Metric, Predictions, check_values, get_metrics, measure_all
from eap.model.model import Model
from eap.model.runs import LayerTrace, SenderOutputs, changed_attention, run_layers
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
    edges: Bool[Tensor, "n_forward n_backward"] | None = None,
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
        metrics: names of `eap.metrics.METRICS`, or `Metric` objects.
        edges: mask [n_forward, n_backward] of the edges to score; None: all edges.
        ablation: activation that a patched edge carries; None: that of the corrupted prompt.
        expanded_kv: one k and v receiver per query head where key/value heads are shared.
        spans: the value at every span of the prompts; the edge is patched at its positions alone.
        checkpoint: where progress is kept; a run that was stopped goes on there.
        **resources: batch_size, memory_budget (bytes), quiet; see `eap.runtime.resources`.

    Returns:
        By metric name, the whole graph with exact scores (means over examples), their standard
        errors (None for one example), and `is_exact`; edges not asked for have score NaN.

    Raises:
        UserError: unknown metric, pairs that are no edges, or a budget too small for one edge.

    Example:
        >>> edges = graph.top_n(5).in_graph
        >>> exact = eap.patch_edges(model, dataset, metrics=["logit_diff", "kl"], edges=edges)
        >>> int(exact["kl"].is_exact.sum())
        5
    """
    limits = Resources(**resources)
    if checkpoint is not None and limits.batch_size is None:
        # What an interrupted run chose by the memory that was free stays what it was.
        limits = replace(limits, batch_size=checkpoint.setting("batch_size"))
    plan = make_plan(
        model, dataset, metrics, edges, limits,
        ablation=ablation, expanded_kv=expanded_kv, spans=spans,
    )  # fmt: skip
    return run_plan(plan, checkpoint=checkpoint, quiet=limits.quiet)


def run_plan(
    plan: Plan, *, checkpoint: Checkpoint | None = None, quiet: bool = True
) -> dict[str, Graph]:
    """What `patch_edges` returns, by a plan of `make_plan`."""
    work, config = plan.work, plan.work.config
    model = work.model
    graph = Graph.from_config(config, plan.span_names)
    moments = Moments.zeros(len(work.metrics), *graph.scores.shape, device=model.device)
    units = distributed.own_share(plan.units, costs=costs_of(plan, plan.units))
    done = 0
    if checkpoint is not None:
        checkpoint = replace(checkpoint, identity={**checkpoint.identity, **plan.identity})
        state = moments.state.cpu()
        done = checkpoint.resume(state, len(units))
        moments.state.copy_(state)
    patcher: BatchPatcher | None = None
    remaining = progress_bar(units[done:], "exact values", quiet=quiet, done=done)
    for number, unit in enumerate(remaining, start=done + 1):
        if patcher is None or patcher.number != unit.batch:
            patcher = BatchPatcher.load(plan, unit.batch)
        for span, at_span in patcher.by_span():
            for senders, receivers, values in at_span.run(unit):
                by_example = rearrange(values, "metric edge batch -> batch metric edge")
                moments.add(by_example, (slice(None), *span, senders, receivers))
        if checkpoint is not None:
            checkpoint.save(moments.state.cpu(), number)
    moments.merge_processes("exact values")
    check_values(work.metrics, moments.mean)
    graphs, is_exact = {}, plan.edges.expand(graph.scores.shape)
    for number, metric in enumerate(work.metrics):
        mean, error = moments.mean[number], moments.standard_error
        scores = mean.to(model.residual_dtype)
        scores = scores.masked_fill(graph.edge_exists & ~is_exact, torch.nan)
        graphs[metric.name] = replace(
            graph,
            scores=scores,
            standard_errors=None if error is None else error[number].to(model.residual_dtype),
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
    **resources: Unpack[ResourceOptions],
) -> dict[str, Graph]:
    """Exact values of all nodes: the change of a metric when a node sends its ablated output.

    Args:
        model: loaded model (`eap.load_model`).
        dataset: pairs of prompts (`eap.load_dataset`).
        metrics: names in `eap.metrics.METRICS`, or `eap.Metric` objects.
        ablation: activation that a patched node sends; None: that of the corrupted prompt.
        expanded_kv: one k and v receiver per query head where key/value heads are shared.
        **resources: batch_size, memory_budget (bytes), quiet; see `eap.runtime.resources`.

    Returns:
        By metric name, the whole graph with `node_scores` [n_forward] (means over examples of the
        metric's change) and `node_errors`.

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
    demand = Demand("exact patching", patching_need, len(measured) * config.n_forward)
    work = Work.plan(model, dataset, measured, ablated, config, limits, demand)
    moments = Moments.zeros(len(measured), config.n_forward, device=model.device)
    with torch.no_grad():
        for batch in work.batches("exact values of nodes", quiet=limits.quiet):
            clean = _CleanBatch.run(batch)
            for sender in range(config.n_forward):
                values = clean.measure(_patched_node(clean, sender)[None])
                moments.add(
                    rearrange(values, "metric 1 batch -> batch metric"), (slice(None), sender)
                )
    moments.merge_processes("exact values")
    graph, error = Graph.from_config(config), moments.standard_error
    return {
        metric.name: replace(
            graph,
            scores=torch.full_like(graph.scores, torch.nan),
            higher_is_better=metric.higher_is_better,
            node_scores=moments.mean[number].to(model.residual_dtype),
            node_errors=None if error is None else error[number].to(model.residual_dtype),
            provenance=sign(
                model, dataset, metric=metric, method="exact", ablation=ablated, level="node",
                expanded_kv=expanded_kv, code=score_code(),
            ),
        )
        for number, metric in enumerate(measured)
    }  # fmt: skip


def measure_seconds(plan: Plan, *, n_units: int = 4) -> float:
    """How long the whole plan will take, from a few of its units and the count of operations."""
    of_first = [unit for unit in plan.units if unit.batch == 0]
    step = max(1, len(of_first) // n_units)
    sample = of_first[step // 2 :: step][:n_units]
    patcher = BatchPatcher.load(plan, 0)
    for _ in patcher.run(sample[0]):  # the first run of anything is slow
        break
    begun = time.perf_counter()
    for unit in sample:
        for _, _, values in patcher.run(unit):
            values.cpu()  # waits for the device
    seconds = time.perf_counter() - begun
    ratio = count_operations(plan, plan.units) / count_operations(plan, sample)
    return seconds * ratio * max(1, len(plan.span_names)) / distributed.count()


# ---- one batch -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _CleanBatch:
    """The clean run of a batch, from which patched runs start, and what senders would change."""

    batch: PreparedBatch
    trace: list[LayerTrace]
    changes: SenderOutputs
    final: Float[Tensor, "batch d_model"]
    predictions: Predictions
    values: Float[Tensor, "metric batch"]

    @classmethod
    @torch.no_grad()
    def run(cls, batch: PreparedBatch) -> "_CleanBatch":
        """Run the clean and the ablated prompts."""
        work = batch.work
        trace: list[LayerTrace] = []
        final = batch.run_clean(trace=trace)[:, 0]
        changes = batch.ablated_run.changes(
            work.model, batch.ablated - batch.clean, trace, batch.cache
        )
        predictions = Predictions(batch.unembed(final))
        values = measure_all(work.metrics, predictions, batch.answers)
        return cls(batch, trace, changes, final, predictions, values)

    def after_attention(
        self, layer: int, raw: Float[Tensor, "*n batch query d_model"]
    ) -> Float[Tensor, "*n batch query d_model"]:
        """The residual stream after attention whose heads sum to `raw`."""
        x, model = self.trace[layer].x, self.batch.work.model
        before = self.batch.cache.at_last(x) if layer == model.config.n_layers - 1 else x
        return before + model.blocks[layer].finish_attention(raw)

    def run_rest(
        self, layer: int, x: Float[Tensor, "rows query d_model"]
    ) -> Float[Tensor, "n batch d_model"]:
        """The final residual stream from that after `layer`."""
        model = self.batch.work.model
        if layer == model.config.n_layers - 1:
            final = x[:, 0].to(model.device)
        else:
            final = run_layers(model, x, self.batch.cache, first_layer=layer + 1)[:, 0]
        return rearrange(final, "(n batch) d -> n batch d", batch=len(self.batch))

    def measure(self, finals: Float[Tensor, "n batch d_model"]) -> Float[Tensor, "metric n batch"]:
        """Metrics of patched runs minus those of the clean run."""
        batch = self.batch
        values = [
            measure_all(batch.work.metrics, Predictions(logits, self.predictions), batch.answers)
            for logits in batch.unembed(finals)
        ]
        return torch.stack(values, dim=1) - self.values[:, None]


def _patched_node(clean: _CleanBatch, sender: int) -> Float[Tensor, "batch d_model"]:
    """The final residual stream when all that reads a sender reads its ablated output."""
    batch = clean.batch
    model, config = batch.work.model, batch.work.config
    if sender == 0:
        x = batch.ablated + batch.positions
        return run_layers(model, x, batch.cache)[:, 0]
    layer = (sender - 1) // (config.n_heads + 1)
    last = layer == config.n_layers - 1
    change = (clean.changes.at_last if last else clean.changes.everywhere)[sender]
    run, block = clean.trace[layer], model.blocks[layer]
    after = clean.after_attention(layer, run.attention_raw)
    change = change.to(after.device)
    if sender == config.mlp_sender(layer):
        return clean.run_rest(layer, after + run.mlp_out + change)[0]
    after = after + change
    mlp_out = run.mlp_out if config.parallel_attn_mlp else block.run_mlp(after)
    return clean.run_rest(layer, after + mlp_out)[0]


Values = tuple[Int[Tensor, " n"], Int[Tensor, " n"], Float[Tensor, "metric n batch"]]
"""Senders, receivers, and the values of those edges on every example."""


def _slices(n: int, step: int) -> Iterator[slice]:
    return (slice(first, first + step) for first in range(0, n, step))


@dataclass(frozen=True, eq=False)
class BatchPatcher:
    """Runs the units of one batch."""

    plan: Plan
    number: int
    clean: _CleanBatch

    @classmethod
    def load(cls, plan: Plan, number: int) -> "BatchPatcher":
        """Of the batch with this number."""
        batch = plan.work.load(plan.work.rows_of[number])
        return cls(plan, number, _CleanBatch.run(batch))

    def by_span(self) -> Iterator[tuple[tuple[int, ...], "BatchPatcher"]]:
        """Every span, and a patcher of its positions alone; without spans, this patcher."""
        if not self.plan.span_names:
            yield (), self
            return
        layout, changes = self.clean.batch.layout, self.clean.changes
        for span in range(len(self.plan.span_names)):
            clean = replace(self.clean, changes=layout.only(changes, span))
            yield (span,), replace(self, clean=clean)

    @torch.no_grad()
    def run(self, unit: Unit) -> Iterator[Values]:
        """The values of the edges of a unit, a run's worth at a time."""
        clean, config = self.clean, self.plan.work.config
        columns = receivers_of(config, unit.layer, unit.kind)
        senders, receivers = self.plan.edges[unit.start : unit.stop, columns].nonzero(as_tuple=True)
        senders = senders + unit.start
        per_run = self.plan.work.runs_at_once(clean.batch.extent)
        if unit.kind in "qkv":
            # Heads are changed for as many senders at a time as edges are run.
            for some in senders.unique().split(per_run):
                of_some = torch.isin(senders, some)
                u, v = senders[of_some], receivers[of_some]
                changes = self._change_heads(unit.layer, unit.kind, some)
                place = torch.searchsorted(some, u)
                for part in _slices(len(u), per_run):
                    of_heads = changes[place[part], v[part]]
                    finals = self._into_heads(unit.layer, unit.kind, of_heads, v[part])
                    yield u[part], v[part] + columns.start, clean.measure(finals)
            return
        for part in _slices(len(senders), per_run):
            u, v = senders[part], receivers[part]
            if unit.kind == "logits":
                finals = clean.final + clean.changes.at_last[u, :, 0]
            else:
                finals = self._into_mlp(unit.layer, u)
            yield u, v + columns.start, clean.measure(finals)

    def _into_mlp(self, layer: int, senders: Int[Tensor, " n"]) -> Float[Tensor, "n batch d_model"]:
        """Final residual streams when the layer's MLP reads the senders' ablated outputs."""
        clean, work = self.clean, self.plan.work
        run, last_only = clean.trace[layer], layer == work.config.n_layers - 1
        deltas = clean.changes.at_last if last_only else clean.changes.everywhere
        x = run.mlp_in + deltas[senders].to(run.mlp_in.device)  # [n, batch, pos, d_model]
        mlp_out = work.model.blocks[layer].run_mlp(x.flatten(0, 1))
        after = clean.after_attention(layer, run.attention_raw)
        return clean.run_rest(layer, (after + mlp_out.view_as(x)).flatten(0, 1))

    def _into_heads(
        self,
        layer: int,
        kind: str,
        changes: Float[Tensor, "n batch query d_receiver"],
        receivers: Int[Tensor, " n"],
    ) -> Float[Tensor, "n batch d_model"]:
        """Final residual streams when one receiver changes its heads' z by `changes`."""
        clean, config = self.clean, self.plan.work.config
        block, run = self.plan.work.model.blocks[layer], clean.trace[layer]
        # The heads that read one receiver are side by side, in the weights as in `changes`.
        W_O = rearrange(
            block.attention.W_O,
            "(receiver head) d_head d -> receiver (head d_head) d",
            receiver=config.n_receivers(kind),
        )
        rows = rearrange(changes, "n batch query d -> n (batch query) d").to(W_O.dtype)
        added = torch.bmm(rows, W_O[receivers]).view(len(changes), *run.attention_raw.shape)
        after = clean.after_attention(layer, run.attention_raw + added).flatten(0, 1)
        if config.parallel_attn_mlp:
            mlp_out = run.mlp_out.repeat(len(changes), 1, 1)
        else:
            mlp_out = block.run_mlp(after)
        return clean.run_rest(layer, after + mlp_out)

    def _change_heads(
        self, layer: int, kind: str, senders: Int[Tensor, " n"]
    ) -> Float[Tensor, "n n_receivers batch query d_receiver"]:
        """How z changes when every q (or k, or v) of a layer reads each sender's ablated output."""
        clean, work = self.clean, self.plan.work
        z = changed_attention(
            work.model, layer, kind, clean.trace[layer], clean.changes.everywhere[senders],
            clean.batch.cache,
        )  # fmt: skip
        return rearrange(
            z,
            "n batch query (receiver head) d_head -> n receiver batch query (head d_head)",
            receiver=work.config.n_receivers(kind),
        )

"""Exact activation patching: the value of every edge by the definition, without one run per edge.

    value(u -> v) = metric(run in which v alone reads a_u_corrupted instead of a_u) - metric(clean)

Patching u -> v changes nothing before v, so a patched run starts where its edge ends:

* q, k and v. `x + delta_u` is normalised and projected once per sender, for all heads; each head's
  change is a small attention and one `d_head x d_model` product, added to the clean run;
* MLP. Its output with `x + delta_u` as input replaces the clean one;
* logits. The final norm and the unembedding are all there is.

From there on many edges are stacked along the batch dimension and the rest of the model is run, on
the positions from the first difference on. All metrics are read from one run.
"""

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from eap.data.batches import check_examples, load_batch, one_group, plan_batches
from eap.data.dataset import Dataset
from eap.graph.graph import Graph, GraphConfig
from eap.metrics import (
    Answers,
    Metric,
    Predictions,
    check_answer_sets,
    check_values,
    get_metrics,
    measure_all,
)
from eap.model.loading import Model
from eap.model.runs import (
    Differences,
    LayerTrace,
    Suffix,
    apply_norm,
    attend_to,
    embed,
    finish_attention,
    position_embedding,
    project,
    run_both,
    run_layers,
    run_mlp,
    run_prefix,
    unembed,
)
from eap.runtime import distributed
from eap.runtime.checkpoint import Checkpoint
from eap.runtime.memory import Shapes, choose_batch_size, patching_operations, patching_tokens
from eap.runtime.progress import progress_bar


@dataclass(frozen=True)
class Unit:
    """A piece of work: edges from some senders into a layer's q, k or v, its MLP, or the logits.

    Attributes:
        batch: number of the batch.
        layer: of the receivers (the last one for the logits).
        kind: 'q', 'k', 'v', 'mlp' or 'logits'.
        start, stop: of the senders.
    """

    batch: int
    layer: int
    kind: str
    start: int
    stop: int


def patch_edges(
    model: Model,
    dataset: Dataset,
    *,
    metrics: Sequence[str | Metric] = ("logit_diff",),
    edges: Bool[Tensor, "n_forward n_backward"] | None = None,
    batch_size: int | None = None,
    memory_budget: int | None = None,
    expanded_kv: bool = False,
    checkpoint: Checkpoint | None = None,
    quiet: bool = True,
) -> dict[str, Graph]:
    """The exact value of every edge, or of the given ones, for several metrics in one pass.

    Args:
        model: from `eap.load_model`.
        dataset: from `eap.load_dataset`.
        metrics: names of `eap.metrics.METRICS`, or `Metric`s.
        edges: which edges to score; None: all.
        batch_size: examples at a time; None: as many as the budget allows.
        memory_budget: in bytes, beside the weights; None: half of what is free.
        expanded_kv: one k and v receiver per query head where key/value heads are shared.
        checkpoint: where progress is kept, so that a stopped run can go on.
        quiet: without a progress bar.

    Returns:
        By metric name, the whole graph with exact scores (means over examples), their standard
        errors (None for one example), and `is_exact`; edges not asked for have score NaN.

    Raises:
        UserError: unknown metric, pairs that are no edges, or a budget too small for one edge.
    """
    plan = make_plan(
        model, dataset, metrics, edges, batch_size, memory_budget, expanded_kv=expanded_kv
    )
    return run_plan(model, dataset, plan, checkpoint=checkpoint, quiet=quiet)


def run_plan(
    model: Model,
    dataset: Dataset,
    plan: "Plan",
    *,
    checkpoint: Checkpoint | None = None,
    quiet: bool = True,
) -> dict[str, Graph]:
    """What `patch_edges` returns, by a plan of `make_plan` for the same model and data."""
    config, wanted = plan.config, plan.wanted
    # Sums over examples of the values and of their squares.
    shape = (2, len(plan.metrics), config.n_forward, config.n_backward)
    totals = torch.zeros(shape, dtype=torch.float64)
    work = distributed.own_share(plan.units, costs=_costs(model, dataset, plan, plan.units))
    done = 0
    if checkpoint is not None:
        checkpoint = replace(checkpoint, identity={**checkpoint.identity, **plan.identity})
        done = checkpoint.resume(totals)
    patcher, loaded = None, None
    remaining = progress_bar(work[done:], "exact values", quiet=quiet, done=done)
    for number, unit in enumerate(remaining, start=done + 1):
        if patcher is None or loaded != unit.batch:
            patcher = BatchPatcher.load(model, dataset, plan.rows_of[unit.batch], plan)
            loaded = unit.batch
        for senders, receivers, values in patcher.run(unit):
            own = values.cpu().double()  # [metric, n, batch]
            totals[0][:, senders, receivers] += own.sum(-1)
            totals[1][:, senders, receivers] += own.square().sum(-1)
        if checkpoint is not None:
            checkpoint.save(totals, number)
    distributed.sum_over_processes(totals)
    check_values(plan.metrics, totals[0])
    n_examples = len(dataset)
    means, squares = totals / n_examples
    graph = Graph.from_config(config)
    graphs = {}
    for metric, mean, square in zip(plan.metrics, means, squares, strict=True):
        errors = None
        if n_examples > 1:
            errors = ((square - mean**2).clamp(min=0) / (n_examples - 1)).sqrt().float()
        scores = mean.to(model.residual_dtype).masked_fill(graph.edge_exists & ~wanted, torch.nan)
        graphs[metric.name] = replace(graph, scores=scores, standard_errors=errors, is_exact=wanted)
    return graphs


# ---- planning ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Plan:
    """What will be done, in which order, and how much at a time.

    Attributes:
        config: of the graph.
        metrics: that are measured.
        wanted: the edges that are patched.
        rows_of: the dataset's rows in each batch.
        units: all work.
        tokens_per_run: how many tokens are stacked in one run.
    """

    config: GraphConfig
    metrics: list[Metric]
    wanted: Bool[Tensor, "n_forward n_backward"]
    rows_of: list[tuple[int, ...]]
    units: list[Unit]
    tokens_per_run: int

    @property
    def batch_size(self) -> int:
        """Of the largest batch."""
        return max(len(rows) for rows in self.rows_of)

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this plan's progress from another's: units are known by their number."""
        units = repr([(unit, self.rows_of[unit.batch]) for unit in self.units])
        edges = self.wanted.numpy().tobytes()
        return {
            "metrics": [metric.name for metric in self.metrics],
            "batch_size": self.batch_size,
            "tokens_per_run": self.tokens_per_run,
            "units": hashlib.sha256(units.encode()).hexdigest()[:16],
            "edges": hashlib.sha256(edges).hexdigest()[:16],
        }


def make_plan(
    model: Model,
    dataset: Dataset,
    metrics: Sequence[str | Metric],
    edges: Bool[Tensor, "n_forward n_backward"] | None,
    batch_size: int | None,
    memory_budget: int | None,
    *,
    expanded_kv: bool = False,
    tokens_per_run: int | None = None,
) -> Plan:
    """The work that `patch_edges` does for these arguments (which see).

    `tokens_per_run` is how many tokens are stacked in one run; None: as many as the budget allows.
    """
    found = get_metrics(metrics)
    check_examples(model, dataset.examples)
    check_answer_sets(found, dataset.examples)
    config = replace(model.config, expanded_kv=expanded_kv)
    graph = Graph.from_config(config)
    wanted = graph.edge_exists if edges is None else graph.with_edges(edges).in_graph
    if batch_size is None:
        batch_size = choose_batch_size(
            model, dataset.examples, purpose="patching", budget=memory_budget
        )
    rows_of = plan_batches(dataset.examples, batch_size)
    if tokens_per_run is None:
        tokens_per_run = patching_tokens(model, dataset.examples, batch_size, memory_budget)
    units = plan_units(config, dataset, rows_of, wanted, tokens_per_run)
    return Plan(config, found, wanted, rows_of, units, tokens_per_run)


def count_operations(model: Model, dataset: Dataset, plan: Plan, units: Sequence[Unit]) -> int:
    """Multiply-adds of matrix products that some units take."""
    return sum(_costs(model, dataset, plan, units))


def _costs(model: Model, dataset: Dataset, plan: Plan, units: Sequence[Unit]) -> list[int]:
    """Of each unit, its multiply-adds."""
    answers_only = all(metric.answers_only for metric in plan.metrics)
    groups = [one_group([dataset.examples[row] for row in rows]) for rows in plan.rows_of]
    shapes = Shapes.of(model)
    costs = []
    for unit in units:
        group = groups[unit.batch]
        edges = plan.wanted[
            unit.start : unit.stop, _receivers(plan.config, unit.layer, unit.kind)
        ].sum()
        one = patching_operations(
            shapes,
            unit.layer,
            unit.kind,
            n_positions=group.n_positions,
            n_keys=group.end,
            n_tokens=2 if answers_only else model.W_U.shape[0],
        )
        costs.append(int(edges) * len(group.rows) * one)
    return costs


def measure_seconds(model: Model, dataset: Dataset, plan: Plan, *, n_units: int = 4) -> float:
    """How long the whole plan will take, from a few of its units and the count of operations."""
    of_first = [unit for unit in plan.units if unit.batch == 0]
    step = max(1, len(of_first) // n_units)
    chosen = of_first[step // 2 :: step][:n_units]
    patcher = BatchPatcher.load(model, dataset, plan.rows_of[0], plan)
    for _ in patcher.run(chosen[0]):  # the first run of anything is slow
        break
    begun = time.perf_counter()
    for unit in chosen:
        for _, _, values in patcher.run(unit):
            values.cpu()  # waits for the device
    seconds = time.perf_counter() - begun
    share = count_operations(model, dataset, plan, plan.units) / count_operations(
        model, dataset, plan, chosen
    )
    return seconds * share / distributed.count()


def plan_units(
    config: GraphConfig,
    dataset: Dataset,
    rows_of: Sequence[Sequence[int]],
    wanted: Bool[Tensor, "n_forward n_backward"],
    tokens_per_run: int,
) -> list[Unit]:
    """All work, batch by batch and layer by layer, in pieces of about one projection's size."""
    last = config.n_layers - 1
    units = []
    for number, rows in enumerate(rows_of):
        n_positions = one_group([dataset.examples[row] for row in rows]).n_positions
        step = max(1, tokens_per_run // (len(rows) * n_positions))
        inside = [
            (layer, kind) for layer in range(config.n_layers) for kind in ("q", "k", "v", "mlp")
        ]
        for layer, kind in [*inside, (last, "logits")]:
            some = wanted[:, _receivers(config, layer, kind)].any(dim=1)
            n_senders = len(some) if kind == "logits" else config.mlp_sender(layer)
            for start in range(0, n_senders, step):
                stop = min(start + step, n_senders)
                if some[start:stop].any():
                    units.append(Unit(number, layer, kind, start, stop))
    return units


def _receivers(config: GraphConfig, layer: int, kind: str) -> slice:
    """The receivers of a unit."""
    if kind in "qkv":
        return config.receivers(layer, kind)
    column = config.mlp_receiver(layer) if kind == "mlp" else config.logits_receiver
    return slice(column, column + 1)


Values = tuple[Int[Tensor, " n"], Int[Tensor, " n"], Float[Tensor, "metric n batch"]]
"""Senders, receivers, and the values of those edges on every example."""


@dataclass(frozen=True, eq=False)
class BatchPatcher:
    """The clean run of a batch, from which patched runs start, and what senders would send."""

    model: Model
    plan: Plan
    answers: Answers
    token_ids: Int[Tensor, " n_tokens"] | None
    suffix: Suffix
    trace: list[LayerTrace]
    differences: Differences
    final: Float[Tensor, "batch d_model"]
    clean: Predictions
    clean_values: Float[Tensor, "metric batch"]

    @classmethod
    @torch.no_grad()
    def load(
        cls,
        model: Model,
        dataset: Dataset,
        rows: Sequence[int],
        plan: Plan,
    ) -> "BatchPatcher":
        """Run the clean and the corrupted prompts of some rows of the dataset."""
        batch = load_batch(dataset.examples, rows, model.device)
        suffix = run_prefix(model, batch.prefix, batch.last, batch.n_positions)
        offset = position_embedding(model, suffix.start, suffix.n_positions)
        trace: list[LayerTrace] = []
        differences, final = run_both(
            model,
            embed(model, batch.clean) + offset,
            embed(model, batch.corrupted) + offset,
            suffix,
            clean_trace=trace,
            expanded_kv=plan.config.expanded_kv,
        )
        token_ids, answers = None, batch.answers
        if all(metric.answers_only for metric in plan.metrics):
            token_ids, answers = answers.token_ids, answers.among_themselves()
        clean = Predictions(unembed(model, final, token_ids))
        clean_values = measure_all(plan.metrics, clean, answers)
        return cls(
            model,
            plan,
            answers,
            token_ids,
            suffix,
            trace,
            differences,
            final,
            clean,
            clean_values,
        )

    @torch.no_grad()
    def run(self, unit: Unit) -> Iterator[Values]:
        """The values of the wanted edges of a unit, a run's worth at a time."""
        columns = _receivers(self.plan.config, unit.layer, unit.kind)
        senders, receivers = self.plan.wanted[unit.start : unit.stop, columns].nonzero(
            as_tuple=True
        )
        if unit.kind in "qkv":
            own_senders = senders.unique() + unit.start
            changes = self._change_heads(unit.layer, unit.kind, own_senders)
            place = torch.searchsorted(own_senders, senders + unit.start)
        per_run = max(
            1, self.plan.tokens_per_run // (len(self.suffix.last) * self.suffix.n_positions)
        )
        for first in range(0, len(senders), per_run):
            chosen = slice(first, first + per_run)
            u, v = senders[chosen] + unit.start, receivers[chosen]
            if unit.kind == "logits":
                finals = self.final + self.differences.at_last[u, :, 0]
            elif unit.kind == "mlp":
                finals = self._into_mlp(unit.layer, u)
            else:
                finals = self._into_heads(unit.layer, unit.kind, changes[place[chosen], v], v)
            yield u, v + columns.start, self._measure(finals)

    def _into_mlp(self, layer: int, senders: Int[Tensor, " n"]) -> Float[Tensor, "n batch d_model"]:
        """Final residual streams when the layer's MLP reads the senders' corrupted outputs."""
        clean, last_only = self.trace[layer], layer == self.plan.config.n_layers - 1
        deltas = self.differences.at_last if last_only else self.differences.everywhere
        x = clean.mlp_in + deltas[senders].to(clean.mlp_in.device)  # [n, batch, pos, d_model]
        mlp_out = run_mlp(self.model.blocks[layer], x.flatten(0, 1))
        after = self._after_attention(layer, clean.attention_raw)
        return self._run_rest(layer, (after + mlp_out.view_as(x)).flatten(0, 1))

    def _into_heads(
        self,
        layer: int,
        kind: str,
        changes: Float[Tensor, "n batch query d_receiver"],
        receivers: Int[Tensor, " n"],
    ) -> Float[Tensor, "n batch d_model"]:
        """Final residual streams when one receiver changes its heads' z by `changes`."""
        block, clean = self.model.blocks[layer], self.trace[layer]
        W_O = block.attention.W_O.unflatten(0, (self.plan.config.n_receivers(kind), -1)).flatten(
            1, 2
        )
        rows = changes.flatten(1, 2).to(
            W_O.dtype
        )  # [n, batch * query, heads of a receiver * d_head]
        raw = clean.attention_raw + torch.bmm(rows, W_O[receivers]).view(
            len(changes), *clean.attention_raw.shape
        )
        after = self._after_attention(layer, raw).flatten(0, 1)
        if self.plan.config.parallel_attn_mlp:
            mlp_out = clean.mlp_out.repeat(len(changes), 1, 1)
        else:
            mlp_out = run_mlp(block, after)
        return self._run_rest(layer, after + mlp_out)

    def _change_heads(
        self, layer: int, kind: str, senders: Int[Tensor, " n"]
    ) -> Float[Tensor, "n n_receivers batch query d_receiver"]:
        """How z changes when every q (or k, or v) of a layer reads each sender's corrupted output.

        The heads that read one receiver are side by side in the last dimension.
        """
        block, clean = self.model.blocks[layer], self.trace[layer]
        attention, last_only = block.attention, layer == self.plan.config.n_layers - 1
        deltas = self.differences.everywhere[senders].to(clean.x.device)
        x = (clean.x + deltas).flatten(0, 1)
        normed = apply_norm(block.ln1, x)
        if kind == "q" and last_only:
            normed = self.suffix.at_last(normed)
        changed = project(attention, kind, normed)
        if kind != "q" and self.plan.config.expanded_kv:
            changed = changed.repeat_interleave(clean.k.shape[2] // changed.shape[2], dim=2)
        read = {"q": clean.q, "k": clean.k, "v": clean.v}
        read = {name: own.repeat(len(senders), 1, 1, 1) for name, own in read.items()}
        read[kind] = changed
        z = attend_to(attention, layer, read["q"], read["k"], read["v"], self.suffix, last_only)
        change = z.unflatten(0, (len(senders), -1)) - clean.z  # [n, batch, query, n_heads, d_head]
        by_receiver = change.unflatten(3, (self.plan.config.n_receivers(kind), -1)).flatten(4)
        return by_receiver.permute(0, 3, 1, 2, 4)

    def _after_attention(
        self, layer: int, raw: Float[Tensor, "*n batch query d_model"]
    ) -> Float[Tensor, "*n batch query d_model"]:
        """The residual stream after attention whose heads sum to `raw`."""
        x = self.trace[layer].x
        before = self.suffix.at_last(x) if layer == self.plan.config.n_layers - 1 else x
        return before + finish_attention(self.model.blocks[layer], raw)

    def _run_rest(
        self, layer: int, x: Float[Tensor, "rows query d_model"]
    ) -> Float[Tensor, "n batch d_model"]:
        """The final residual stream from that after `layer`."""
        if layer == self.plan.config.n_layers - 1:
            final = x[:, 0].to(self.model.device)
        else:
            final = run_layers(self.model, x, self.suffix, first_layer=layer + 1)
        return final.unflatten(0, (-1, len(self.suffix.last)))

    def _measure(self, finals: Float[Tensor, "n batch d_model"]) -> Float[Tensor, "metric n batch"]:
        """Metrics of patched runs minus those of the clean run."""
        logits = unembed(self.model, finals, self.token_ids)
        values = [
            measure_all(self.plan.metrics, Predictions(own, self.clean), self.answers)
            for own in logits
        ]
        return torch.stack(values, dim=1) - self.clean_values[:, None]

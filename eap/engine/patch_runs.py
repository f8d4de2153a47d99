"""Runs of exact patching: the clean run of a batch, and patched runs that start from it.

A patched run starts where its edge ends. `eap.patching` describes the method, and
`eap.engine.patch_plan` chooses the edges.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from eap.engine.patch_plan import Plan, Unit, receivers_of
from eap.engine.prepared import PreparedBatch
from eap.metrics.metric import Predictions, measure_all
from eap.model.held_attention import HeldAttention
from eap.model.runs import LayerTrace, SenderOutputs, run_layers


@dataclass(frozen=True, eq=False)
class CleanBatch:
    """Clean run of a batch, from which patched runs start, with the changes of ablated senders.

    `ablated` is the output of the patched input node.
    """

    batch: PreparedBatch
    trace: list[LayerTrace]
    changes: SenderOutputs
    ablated: Float[Tensor, "batch pos d_model"]
    final: Float[Tensor, "batch d_model"]
    predictions: Predictions
    values: Float[Tensor, "metric batch"]

    @classmethod
    @torch.no_grad()
    def run(cls, batch: PreparedBatch) -> "CleanBatch":
        """Run the clean and the ablated prompts."""
        work = batch.work
        trace: list[LayerTrace] = []
        final = batch.run_clean(trace=trace)[:, 0]
        changes = batch.ablated_run.changes(
            work.model, batch.ablated - batch.clean, trace, batch.cache
        )
        predictions = Predictions(batch.unembed(final))
        values = measure_all(work.metrics, predictions, batch.answers)
        return cls(batch, trace, changes, batch.ablated, final, predictions, values)

    def at_span(self, span: int) -> "CleanBatch":
        """The same run, with senders that change only at the positions of one span."""
        batch, layout = self.batch, self.batch.layout
        return replace(
            self,
            changes=layout.only(self.changes, span),
            ablated=layout.at_span(span, batch.ablated, batch.clean),
        )

    def after_attention(
        self, layer: int, raw: Float[Tensor, "*n batch query d_model"]
    ) -> Float[Tensor, "*n batch query d_model"]:
        """Residual stream after attention, for heads that sum to `raw`."""
        x, model = self.trace[layer].x, self.batch.work.model
        before = self.batch.cache.at_last(x) if layer == model.config.n_layers - 1 else x
        return before + model.blocks[layer].finish_attention(raw)

    def run_rest(
        self, layer: int, x: Float[Tensor, "rows query d_model"]
    ) -> Float[Tensor, "n batch d_model"]:
        """Final residual stream, from the residual stream after `layer`."""
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


def patched_node(clean: CleanBatch, sender: int) -> Float[Tensor, "batch d_model"]:
    """Final residual stream when everything that reads a sender reads its ablated output."""
    batch = clean.batch
    model, config = batch.work.model, batch.work.config
    if sender == 0:
        x = clean.ablated + batch.positions
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


@dataclass(frozen=True, eq=False)
class BatchPatcher:
    """Patcher that runs the units of one batch (and of one span, if there are spans)."""

    plan: Plan
    batch: int
    span: int
    whole: CleanBatch
    clean: CleanBatch

    @classmethod
    def load(cls, plan: Plan, unit: Unit, before: "BatchPatcher | None" = None) -> "BatchPatcher":
        """Patcher for a unit; `before` itself if it has the same batch and span."""
        if before is not None and before.batch == unit.batch:
            if before.span == unit.span:
                return before
            whole = before.whole
        else:
            whole = CleanBatch.run(plan.work.load(plan.work.rows_of[unit.batch]))
        clean = whole.at_span(unit.span) if plan.span_names else whole
        return cls(plan, unit.batch, unit.span, whole, clean)

    @torch.no_grad()
    def run(self, unit: Unit) -> Iterator[Values]:
        """Values of the edges of a unit, one run at a time."""
        clean, config = self.clean, self.plan.work.config
        columns = receivers_of(config, unit.layer, unit.kind)
        senders, receivers = self.plan.edges_of(unit).nonzero(as_tuple=True)
        senders = senders + unit.start
        per_run = self.plan.work.runs_at_once(clean.batch.extent)

        def runs_of(u: Tensor, v: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
            """Senders and receivers of the edges of each run."""
            return zip(u.split(per_run), v.split(per_run), strict=True)

        if unit.kind in "qkv":
            run = clean.trace[unit.layer]
            held = HeldAttention.of(self.plan.work.model, unit.layer, run, clean.batch.cache)
            # The heads' changes are computed for as many senders at a time as edges are run.
            for chunk in senders.unique().split(per_run):
                of_some = torch.isin(senders, chunk)
                changes = rearrange(
                    held.change_of_z(unit.kind, clean.changes.everywhere[chunk]),
                    "n batch query (receiver head) d_head -> n receiver batch query (head d_head)",
                    receiver=config.n_receivers(unit.kind),
                )
                for u, v in runs_of(senders[of_some], receivers[of_some]):
                    of_heads = changes[torch.searchsorted(chunk, u), v]
                    finals = self._into_heads(unit.layer, unit.kind, of_heads, v)
                    yield u, v + columns.start, clean.measure(finals)
            return
        for u, v in runs_of(senders, receivers):
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
        """Final residual streams when the z of one receiver's heads changes by `changes`."""
        clean, config = self.clean, self.plan.work.config
        block, run = self.plan.work.model.blocks[layer], clean.trace[layer]
        # The heads that read one receiver are adjacent, in the weights as in `changes`.
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

"""Passes over a batch, the terms of methods that are linear in the senders' outputs.

A pass is a change of the senders' outputs, from one run to another, with gradients at the
receivers. A score is the product of the two, summed over passes. Scorers compute the products edge
by edge, `part_runs` part by part.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from eap.engine.path_gradients import (
    CleanRun,
    equal_pairs,
    gradients_at,
    input_at,
    run_clean,
    run_points,
    weighted_sum,
)
from eap.engine.path_gradients import (
    Request as Request,
)
from eap.engine.prepared import PreparedBatch
from eap.engine.receivers import MlpRun, RecordedRun, RunGradient, differentiate
from eap.metrics.metric import Predictions
from eap.model.runs import LayerTrace, SenderOutputs, run_layers, sender_changes


@dataclass(frozen=True, eq=False)
class TracedRun:
    """Run with its layers, and with the output of the input node (without positions)."""

    embedding: Float[Tensor, "batch pos d_model"]
    trace: list[LayerTrace]


@dataclass(frozen=True, eq=False)
class Change:
    """Change of the senders' outputs from one run to another, or to their ablated activations.

    Attributes:
        batch: batch that is run.
        before: first run.
        after: second run; None: the ablated activations, which may differ from the outputs that the
            ablated run computes.
    """

    batch: PreparedBatch
    before: TracedRun
    after: TracedRun | None = None

    @cached_property
    def outputs(self) -> SenderOutputs:
        """Changes of every sender at every position."""
        batch, model = self.batch, self.batch.work.model
        if self.after is None:
            step = batch.ablated - self.before.embedding
            changes = batch.ablated_run.changes(model, step, self.before.trace, batch.cache)
        else:
            step = self.after.embedding - self.before.embedding
            before, after = self.before.trace, self.after.trace
            changes = sender_changes(model, step, before, after, batch.cache)
        # Two runs of the same prompt in stacks of different sizes differ by rounding.
        equal = equal_pairs(batch)
        for outputs in (changes.everywhere, changes.at_last):  # [sender, batch, pos, d_model]
            outputs.masked_fill_(equal.to(outputs.device)[:, None, None], 0.0)
        return changes


def ablation_of(batch: PreparedBatch, clean: CleanRun) -> Change:
    """Change from the clean run to the ablated activations."""
    return Change(batch, TracedRun(batch.clean, clean.trace))


class Pass(NamedTuple):
    """One term of a score: a change, gradients, and the senders it applies to (None: all)."""

    change: Change
    gradients: RunGradient
    senders: slice | None = None


@torch.no_grad()
def note_baselines(batch: PreparedBatch, request: Request, clean: CleanRun) -> None:
    """Collect the metric of the clean run, of the ablated model, and at the ablated input.

    The ablated input is the end of the path of methods that integrate. The model at that input is
    the ablated model only if all ablated activations come from one run; for mean ablation it is
    not, because the mean of outputs is not the output at a mean.
    """
    if request.baselines is None:
        return
    metric, ablated_run = batch.work.metrics[0], batch.ablated_run
    finals = [ablated_run.final]
    if request.method.integrates and ablated_run.offsets is not None:
        finals.append(run_layers(batch.work.model, input_at(batch, 0.0), batch.cache))
    runs = [Predictions(batch.unembed(final[:, 0]), clean.predictions) for final in finals]
    values = [metric.measure(run, batch.answers) for run in (clean.predictions, *runs)]
    request.baselines.add(torch.stack([*values, values[-1]][:3], dim=1))


def gradient_passes(batch: PreparedBatch, request: Request) -> Iterator[Pass]:
    """One pass: the ablation, with the gradient averaged over the method's points (EAP, EAP-IG)."""
    gradients, clean = gradients_at(batch, request)
    note_baselines(batch, request, clean)
    yield Pass(ablation_of(batch, clean), gradients)


def increment_passes(batch: PreparedBatch, request: Request) -> Iterator[Pass]:
    """A pass per step from the ablated to the clean input, with the gradient before the step."""
    work, rules = batch.work, request.method.rules
    clean = run_clean(batch)
    note_baselines(batch, request, clean)
    descending = sorted(request.points, key=lambda point: -point.position)
    later = TracedRun(batch.clean, clean.trace)
    for first in range(0, len(descending), request.points_per_run):
        stacked = descending[first : first + request.points_per_run]
        run, logits = run_points(batch, stacked, rules)
        # An increment belongs to the whole step, so it has no weight.
        unweighted = [point._replace(weight=1.0) for point in stacked]
        value = weighted_sum(batch, logits, clean.predictions, unweighted)
        gradients = differentiate(
            work.model, run, value, batch.cache, units=request.units, by_point=True
        )
        for number, (point, gradient) in enumerate(zip(stacked, gradients, strict=True)):
            rows = slice(number * len(batch), (number + 1) * len(batch))
            embedding = batch.ablated + point.position * (batch.clean - batch.ablated)
            earlier = TracedRun(embedding, [layer.rows(rows).detached() for layer in run.trace])
            # From the later point back to this one, which gives the sign of an ablation.
            yield Pass(Change(batch, later, earlier), gradient)
            later = earlier


def activation_passes(batch: PreparedBatch, request: Request) -> Iterator[Pass]:
    """A pass per sublayer, with the gradient along the path of the sublayer's own outputs.

    The outputs of the input, of a layer's attention or of its MLP are interpolated between ablated
    and clean, while everything before them is clean; each path scores only the senders of its own
    sublayer. A receiver after several sublayers is on each of their paths, so the paths share the
    credit only in part. If the clean end is one of the points, its gradient is the same on all
    paths and is computed once.
    """
    config = batch.work.config
    at_end = [point for point in request.points if point.position == 1.0]
    path = replace(request, points=[point for point in request.points if point.position != 1.0])
    end: RunGradient | None = None
    if at_end:
        end, clean = gradients_at(batch, replace(request, points=at_end))
    else:
        clean = run_clean(batch)
    note_baselines(batch, request, clean)
    change = ablation_of(batch, clean)

    def both(along: RunGradient | None, end: RunGradient | None) -> RunGradient:
        gradients = [gradient for gradient in (along, end) if gradient is not None]
        return gradients[0] if len(gradients) == 1 else gradients[0].plus(gradients[1])

    along = gradients_at(batch, path, clean)[0] if path.points else None
    yield Pass(change, both(along, end), slice(0, 1))
    for layer in range(config.n_layers):
        mlp = config.mlp_sender(layer)
        for senders in (config.heads(layer), slice(mlp, mlp + 1)):
            reads = senders.start != mlp and not config.parallel_attn_mlp
            along = _after_sublayer(batch, path, clean, change.outputs, layer, senders)
            behind = None if end is None else end.after(layer, mlp=reads)
            yield Pass(change, both(along, behind), senders)


def _after_sublayer(
    batch: PreparedBatch,
    request: Request,
    clean: CleanRun,
    changes: SenderOutputs,
    layer: int,
    senders: slice,
) -> RunGradient | None:
    """Gradients after a layer's heads (or its MLP) while their sum goes from ablated to clean.

    The result is None if there are no points.
    """
    work, rules, run = batch.work, request.method.rules, clean.trace[layer]
    model, config, block = work.model, work.config, work.model.blocks[layer]
    last = layer == config.n_layers - 1
    of_mlp = senders.start == config.mlp_sender(layer)
    change = (changes.at_last if last else changes.everywhere)[senders].sum(0).to(run.x.device)
    before = batch.cache.at_last(run.x) if last else run.x
    attended = before + block.finish_attention(run.attention_raw)
    total: RunGradient | None = None
    for first in range(0, len(request.points), request.points_per_run):
        stacked = request.points[first : first + request.points_per_run]
        moved = torch.cat([(1 - point.position) * change for point in stacked]).requires_grad_()
        copies = len(stacked)
        x, mlp = attended.repeat(copies, 1, 1), None
        if of_mlp:
            x = x + run.mlp_out.repeat(copies, 1, 1) + moved
        elif config.parallel_attn_mlp:
            x = x + moved + run.mlp_out.repeat(copies, 1, 1)
        else:
            x = x + moved
            into = x.view_as(x)
            mlp = MlpRun(into, block.run_mlp(into, rules))
            x = x + mlp.mlp_out
        trace: list[LayerTrace] = []
        final = run_layers(
            model, x, batch.cache, first_layer=layer + 1,
            trace=trace, expanded_kv=config.expanded_kv, rules=rules,
        )  # fmt: skip
        logits = batch.unembed(final[:, 0], rules)
        value = weighted_sum(batch, logits, clean.predictions, stacked)
        (part,) = differentiate(
            model, RecordedRun(trace, final, rules, layer + 1, mlp), value, batch.cache,
            units=request.units,
        )  # fmt: skip
        total = part if total is None else total.plus(part)
    return total


Passes = Callable[[PreparedBatch, Request], Iterator[Pass]]

PASSES: dict[str, Passes] = {
    "gradients": gradient_passes,
    "increments": increment_passes,
    "activations": activation_passes,
}
"""Passes of the methods that are linear in the sender's output, by `Method.scorer`."""

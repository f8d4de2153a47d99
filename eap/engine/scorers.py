"""How each kind of method scores a batch: blocks of per-example scores, every edge in one block.

All share the plain forward and backward pass, the closed form of `eap.engine.receivers`, and one
sign: the change of the metric when the edge is ablated. `SCORERS` is their table; `eap.methods`
says which method is which kind, at which points and by which rules.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from einops import einsum, reduce
from jaxtyping import Float
from torch import Tensor

from eap.engine.moments import Moments
from eap.engine.path_gradients import (
    CleanRun,
    gradients_at,
    input_at,
    run_clean,
    run_points,
    sender_changes_of,
    the_metric,
    weighted_sum,
    zero_where_equal,
)
from eap.engine.prepared import PreparedBatch
from eap.engine.receivers import RunGradient, contract, differentiate
from eap.engine.score_blocks import ScoreBlock, summed, to_nodes
from eap.engine.span_layout import WHOLE
from eap.methods import Method, Point
from eap.metrics.metric import Predictions
from eap.model.runs import (
    LayerTrace,
    SenderOutputs,
    changed_attention,
    outputs_everywhere,
    run_layers,
    sender_changes,
)


@dataclass(frozen=True, eq=False)
class Request:
    """What a scorer is asked for.

    Attributes:
        method: whose rules apply.
        points: at which inputs gradients are taken.
        points_per_run: how many of them may be stacked in one run.
        level: 'edge' or 'node'.
        spans: score every span of the prompt on its own.
        baselines: gathers, if given, every example's metric of the clean run, of the model with
            every edge ablated, and of the model run on the ablated input: [3].
    """

    method: Method
    points: Sequence[Point]
    points_per_run: int = 1
    level: str = "edge"
    spans: bool = False
    baselines: Moments | None = None


Scorer = Callable[[PreparedBatch, Request], Iterator[ScoreBlock]]


@torch.no_grad()
def note_baselines(batch: PreparedBatch, request: Request, clean: CleanRun) -> None:
    """Gather the metric of the clean run, of the ablated model, and at the ablated input.

    The last is where the path of the methods that integrate ends. It is the ablated model only
    where ablated activations are those of one run: a mean of outputs is not the output of a mean.
    """
    if request.baselines is None:
        return
    metric, ablated_run = the_metric(batch), batch.ablated_run
    finals = [ablated_run.final]
    if request.method.integrates and ablated_run.offsets is not None:
        finals.append(run_layers(batch.work.model, input_at(batch, 0.0), batch.cache))
    runs = [Predictions(batch.unembed(final[:, 0]), clean.predictions) for final in finals]
    values = [metric.measure(run, batch.answers) for run in (clean.predictions, *runs)]
    request.baselines.add(torch.stack([*values, values[-1]][:3], dim=1))


def contracted(
    batch: PreparedBatch,
    request: Request,
    changes: SenderOutputs,
    gradients: RunGradient,
    senders: slice | None = None,
) -> Iterator[ScoreBlock]:
    """What senders changed times the receivers' gradients, in all or span by span."""
    work, layout = batch.work, batch.layout if request.spans else None
    return contract(work.model, work.config, changes, gradients, batch.cache, senders, layout)


def score_gradients(batch: PreparedBatch, request: Request) -> Iterator[ScoreBlock]:
    """What senders changed, times the gradient averaged over the method's points (EAP, EAP-IG)."""
    gradients, clean = gradients_at(
        batch, request.method.rules, request.points, request.points_per_run
    )
    note_baselines(batch, request, clean)
    yield from contracted(batch, request, sender_changes_of(batch, clean), gradients)


# ---- methods of several parts --------------------------------------------------------------------


def score_increments(batch: PreparedBatch, request: Request) -> Iterator[ScoreBlock]:
    """Minus the sum over steps of what senders changed in a step, times the gradient before it."""
    work, rules = batch.work, request.method.rules
    clean = run_clean(batch)
    note_baselines(batch, request, clean)
    descending = sorted(request.points, key=lambda point: -point.position)

    def parts() -> Iterator[Iterator[ScoreBlock]]:
        later, position = clean.trace, 1.0
        for first in range(0, len(descending), request.points_per_run):
            some = descending[first : first + request.points_per_run]
            trace, final, logits = run_points(batch, some, rules)
            # An increment is the whole step's: no weight.
            unweighted = [point._replace(weight=1.0) for point in some]
            value = weighted_sum(batch, logits, clean.predictions, unweighted)
            gradients = differentiate(
                work.model, trace, final, value, batch.cache, rules=rules, by_point=True
            )
            for number, (point, gradient) in enumerate(zip(some, gradients, strict=True)):
                rows = slice(number * len(batch), (number + 1) * len(batch))
                here = [run.rows(rows).detached() for run in trace]
                step = (position - point.position) * (batch.ablated - batch.clean)
                # From the later point back to this one: the sign of an ablation.
                changes = sender_changes(work.model, step, later, here, batch.cache)
                zero_where_equal(batch, changes)
                yield contracted(batch, request, changes, gradient)
                later, position = here, point.position

    yield from summed(parts())


def score_dropped_layers(batch: PreparedBatch, request: Request) -> Iterator[ScoreBlock]:
    """The mean over layers of |score|, where that layer passes no gradient on (GradDrop).

    Behind the dropped layer gradients are the plain ones, its own receivers have none, and what
    arrives behind it goes on before it: so one run is made, and for every layer only the part of
    the backward pass that lies before it.
    """
    config, n_layers = batch.work.config, batch.work.config.n_layers
    plain, before, clean = _gradients_before_layers(batch, request)
    note_baselines(batch, request, clean)
    changes = sender_changes_of(batch, clean)

    def blocks(gradients: RunGradient) -> Iterator[tuple[int, ScoreBlock]]:
        for block in contracted(batch, request, changes, gradients):
            yield config.layer_of_receiver(block.receivers[0]), block

    plain_blocks = list(blocks(plain))
    if request.level == "node":
        totals: list[Float[Tensor, "batch *span n_forward 1"]] = []
        for layer in range(n_layers):
            behind = [block for at, block in plain_blocks if at > layer]
            ahead = [block for at, block in blocks(before[layer]) if at < layer] if layer else []
            totals.append(to_nodes(config, [*behind, *ahead]).scores.abs())
        yield ScoreBlock(slice(0, config.n_forward), [0], torch.stack(totals).sum(0) / n_layers)
        return

    def parts() -> Iterator[list[ScoreBlock]]:
        # A receiver of layer n lies behind n dropped layers; the logits behind all.
        yield [b._replace(scores=b.scores.abs() * at / n_layers) for at, b in plain_blocks]
        for layer in range(1, n_layers):
            yield [
                block._replace(scores=block.scores.abs() / n_layers)
                for at, block in blocks(before[layer])
                if at < layer
            ]

    yield from summed(parts())


def _gradients_before_layers(
    batch: PreparedBatch, request: Request
) -> tuple[RunGradient, dict[int, RunGradient], CleanRun]:
    """The plain gradients; those before each layer when it passes none on; the clean run."""
    model, cache, rules = batch.work.model, batch.cache, request.method.rules
    clean, last = run_clean(batch), batch.work.config.n_layers - 1
    plain: RunGradient | None = None
    before: dict[int, RunGradient] = {}
    for first in range(0, len(request.points), request.points_per_run):
        points = request.points[first : first + request.points_per_run]
        trace, final, logits = run_points(batch, points, rules)
        value = weighted_sum(batch, logits, clean.predictions, points)
        behind = torch.autograd.grad(
            value, [*(run.x for run in trace[1:]), final], retain_graph=True
        )
        (gradient,) = differentiate(
            model, trace, final, value, cache, rules=rules, retain_graph=True
        )
        plain = gradient if plain is None else plain.plus(gradient)
        for layer in range(1, last + 1):
            x = cache.at_last(trace[layer].x) if layer == last else trace[layer].x
            (gradient,) = differentiate(
                model, trace[:layer], final, x, cache,
                value_gradient=behind[layer].to(x.device), rules=rules, retain_graph=layer < last,
            )  # fmt: skip
            before[layer] = before[layer].plus(gradient) if layer in before else gradient
    assert plain is not None
    return plain, before, clean


def score_activations(batch: PreparedBatch, request: Request) -> Iterator[ScoreBlock]:
    """Senders of one sublayer at a time, with the gradient along their own outputs' path.

    The outputs of the input, of a layer's attention or of its MLP are interpolated between ablated
    and clean while all before is clean; only edges out of that sublayer are scored by that path. A
    receiver behind several sublayers sees each of their paths, so that credit is partial. Where
    the clean end is one of the points, its gradient is the same on all paths, and made once.
    """
    config = batch.work.config
    rules, per_run = request.method.rules, request.points_per_run
    at_end = [point for point in request.points if point.position == 1.0]
    path = [point for point in request.points if point.position != 1.0]
    end: RunGradient | None = None
    if at_end:
        end, clean = gradients_at(batch, rules, at_end, per_run)
    else:
        clean = run_clean(batch)
    note_baselines(batch, request, clean)
    changes = sender_changes_of(batch, clean)

    def both(along: RunGradient | None, end: RunGradient | None) -> RunGradient:
        parts = [part for part in (along, end) if part is not None]
        return parts[0] if len(parts) == 1 else parts[0].plus(parts[1])

    along = gradients_at(batch, rules, path, per_run, clean)[0] if path else None
    yield from contracted(batch, request, changes, both(along, end), slice(0, 1))
    request = replace(request, points=path)
    for layer in range(config.n_layers):
        mlp = config.mlp_sender(layer)
        for senders in (config.heads(layer), slice(mlp, mlp + 1)):
            reads = senders.start != mlp and not config.parallel_attn_mlp
            along = _after_sublayer(batch, request, clean, changes, layer, senders)
            behind = None if end is None else end.after(layer, mlp=reads)
            yield from contracted(batch, request, changes, both(along, behind), senders)


def _after_sublayer(
    batch: PreparedBatch,
    request: Request,
    clean: CleanRun,
    changes: SenderOutputs,
    layer: int,
    senders: slice,
) -> RunGradient | None:
    """Gradients behind a layer's heads (or its MLP) while their sum runs from ablated to clean.

    None without points.
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
        some = request.points[first : first + request.points_per_run]
        moved = torch.cat([(1 - point.position) * change for point in some]).requires_grad_()
        copies = len(some)
        x, mlp_in = attended.repeat(copies, 1, 1), None
        if of_mlp:
            x = x + run.mlp_out.repeat(copies, 1, 1) + moved
        elif config.parallel_attn_mlp:
            x = x + moved + run.mlp_out.repeat(copies, 1, 1)
        else:
            x = x + moved
            mlp_in = x.view_as(x)
            x = x + block.run_mlp(mlp_in, rules)
        trace: list[LayerTrace] = []
        final = run_layers(
            model, x, batch.cache, first_layer=layer + 1,
            trace=trace, expanded_kv=config.expanded_kv, rules=rules,
        )  # fmt: skip
        logits = batch.unembed(final[:, 0], rules)
        value = weighted_sum(batch, logits, clean.predictions, some)
        (part,) = differentiate(
            model, trace, final, value, batch.cache,
            rules=rules, first_layer=layer + 1, mlp_before=mlp_in,
        )  # fmt: skip
        total = part if total is None else total.plus(part)
    return total


def score_patterns(batch: PreparedBatch, request: Request) -> Iterator[ScoreBlock]:
    """EAP, but for q and k edges the exact change of the attention pattern (AtP*'s QK fix).

    The change of z that the new pattern makes is multiplied by the metric's gradient at z.
    """
    config, model = batch.work.config, batch.work.model
    x = input_at(batch, 1.0).requires_grad_()
    trace: list[LayerTrace] = []
    final = run_layers(model, x, batch.cache, trace=trace, expanded_kv=config.expanded_kv)
    logits = batch.unembed(final[:, 0])
    clean = CleanRun([run.detached() for run in trace], Predictions(logits.detach()))
    note_baselines(batch, request, clean)
    value = weighted_sum(batch, logits, clean.predictions, request.points)
    at_z = torch.autograd.grad(value, [run.z for run in trace], retain_graph=True)
    (gradient,) = differentiate(model, trace, final, value, batch.cache)
    changes = sender_changes_of(batch, clean)
    others = {
        layer: replace(part, scaled={"v": part.scaled["v"]})
        for layer, part in gradient.layers.items()
    }
    yield from contract(model, config, changes, replace(gradient, layers=others), batch.cache)
    for layer, d_z in enumerate(at_z):
        n_senders = config.senders_before(layer, "attention")
        for kind in "qk":
            scores = torch.stack(
                [
                    _pattern_score(batch, layer, kind, clean.trace[layer], change[None], d_z)
                    for change in changes.everywhere[:n_senders]
                ],
                dim=1,
            )
            receivers = config.receivers(layer, kind)
            yield ScoreBlock(
                slice(0, n_senders), list(range(receivers.start, receivers.stop)), scores
            )


@torch.no_grad()
def _pattern_score(
    batch: PreparedBatch,
    layer: int,
    kind: str,
    clean: LayerTrace,
    change: Float[Tensor, "1 batch pos d_model"],
    d_z: Float[Tensor, "batch query n_heads d_head"],
) -> Float[Tensor, "batch n"]:
    """Of one sender: the change of every head's z times its gradient, summed by receiver."""
    work = batch.work
    z = changed_attention(work.model, layer, kind, clean, change, batch.cache)[0]
    by_head = einsum(z, d_z, "batch query head d, batch query head d -> batch head")
    return reduce(by_head, "batch (n shared) -> batch n", "sum", n=work.config.n_receivers(kind))


def score_flow(batch: PreparedBatch, request: Request) -> Iterator[ScoreBlock]:
    """Information flow routes: how much of what a receiver reads is what a sender sends.

    max(0, |x|_1 - |x - a_u|_1) with x what the receiver reads, normalised over senders, averaged
    over the prompt's positions. There is no metric, no corrupted prompt and no sign.
    """
    work, config, tokens = batch.work, batch.work.config, batch.batch
    layout = batch.layout if request.spans else WHOLE
    outputs, trace, final = outputs_everywhere(work.model, tokens.clean, tokens.last)
    places = torch.arange(tokens.n_positions, device=outputs.device)
    real = (places <= tokens.last[:, None]).to(outputs.dtype)
    weights = layout.spread(real / real.sum(-1, keepdim=True))

    def shares(x: Tensor, n_senders: int) -> Float[Tensor, "batch span sender"]:
        x = x.to(outputs.device)
        size = x.abs().sum(-1)
        near = torch.stack([size - (x - sent).abs().sum(-1) for sent in outputs[:n_senders]])
        near = near.clamp(min=0)  # [sender, batch, pos]
        total = near.sum(0)
        share = near / torch.where(total > 0, total, 1.0)
        return einsum(share, weights, "sender batch pos, batch span pos -> batch span sender")

    def block(x: Tensor, n_senders: int, receivers: list[int]) -> ScoreBlock:
        scores = shares(x, n_senders)[..., None].expand(-1, -1, -1, len(receivers))
        scores = scores if request.spans else scores[:, 0]
        return ScoreBlock(slice(0, n_senders), receivers, scores)

    for layer, run in enumerate(trace):
        first = config.receivers(layer, "q").start
        attention = list(range(first, config.receivers(layer, "v").stop))
        yield block(run.x, config.senders_before(layer, "attention"), attention)
        mlp = [config.mlp_receiver(layer)]
        yield block(run.mlp_in, config.senders_before(layer, "mlp"), mlp)
    yield block(final, config.n_forward, [config.logits_receiver])


SCORERS: dict[str, Scorer] = {
    "gradients": score_gradients,
    "increments": score_increments,
    "activations": score_activations,
    "patterns": score_patterns,
    "dropped layers": score_dropped_layers,
    "flow": score_flow,
}
"""Scorers by the name that `Method.scorer` has."""

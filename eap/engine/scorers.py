"""Scorers: how each kind of method scores a batch, as blocks of per-example scores.

Every edge is in exactly one block. All scorers share the plain forward and backward pass, the
closed form of `eap.engine.receivers`, and one sign convention: a score is the change of the metric
when the edge is ablated. `SCORERS` is the table of scorers; `eap.methods` gives the scorer, points
and backward rules of each method.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain

import torch
from einops import einsum, reduce
from jaxtyping import Float
from torch import Tensor

from eap.engine.passes import (
    Passes,
    Request,
    ablation_of,
    activation_passes,
    gradient_passes,
    increment_passes,
    note_baselines,
)
from eap.engine.path_gradients import CleanRun, run_clean, run_points, weighted_sum
from eap.engine.prepared import PreparedBatch
from eap.engine.receivers import RunGradient, contract, differentiate
from eap.engine.score_blocks import ScoreBlock, summed, to_nodes
from eap.engine.span_layout import WHOLE
from eap.graph import GraphConfig
from eap.metrics.metric import Predictions
from eap.model.held_attention import HeldAttention
from eap.model.rules import EXACT
from eap.model.runs import SenderOutputs, outputs_everywhere

Scorer = Callable[[PreparedBatch, Request], Iterator[ScoreBlock]]


def contracted(
    batch: PreparedBatch,
    request: Request,
    changes: SenderOutputs,
    gradients: RunGradient,
    senders: slice | None = None,
) -> Iterator[ScoreBlock]:
    """Changes of senders times gradients at receivers, for the whole prompt or span by span."""
    work, layout = batch.work, batch.layout if request.spans else None
    return contract(work.model, work.config, changes, gradients, batch.cache, senders, layout)


def of_passes(passes: Passes, *, overlap: bool = False) -> Scorer:
    """Scorer of a linear method: changes times gradients, pass by pass.

    Args:
        passes: passes of the method over a batch.
        overlap: whether an edge is in several passes, whose scores are then summed.
    """

    def score(batch: PreparedBatch, request: Request) -> Iterator[ScoreBlock]:
        products = (
            contracted(batch, request, change.outputs, gradients, senders)
            for change, gradients, senders in passes(batch, request)
        )
        return iter(summed(products)) if overlap else chain.from_iterable(products)

    return score


def score_dropped_layers(batch: PreparedBatch, request: Request) -> Iterator[ScoreBlock]:
    """Mean over layers of |score| when that layer passes no gradient on (GradDrop).

    After the dropped layer, gradients are the plain ones; the receivers of the layer itself have no
    gradient; and the gradient that arrives after the layer continues before it. So one run is made,
    and for every layer only the part of the backward pass before the layer.
    """
    config, n_layers = batch.work.config, batch.work.config.n_layers
    plain, before, clean = _gradients_before_layers(batch, request)
    note_baselines(batch, request, clean)
    changes = ablation_of(batch, clean).outputs

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
        # A receiver of layer n is after n dropped layers, and the logits are after all layers.
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
    """Plain gradients, gradients before each layer if that layer is dropped, and the clean run."""
    model, cache, rules = batch.work.model, batch.cache, request.method.rules
    clean, last = run_clean(batch), batch.work.config.n_layers - 1
    plain: RunGradient | None = None
    before: dict[int, RunGradient] = {}
    for first in range(0, len(request.points), request.points_per_run):
        points = request.points[first : first + request.points_per_run]
        run, logits = run_points(batch, points, rules)
        value = weighted_sum(batch, logits, clean.predictions, points)
        behind = torch.autograd.grad(
            value, [*(layer.x for layer in run.trace[1:]), run.final], retain_graph=True
        )
        (gradient,) = differentiate(model, run, value, cache, retain_graph=True)
        plain = gradient if plain is None else plain.plus(gradient)
        for layer in range(1, last + 1):
            x = cache.at_last(run.trace[layer].x) if layer == last else run.trace[layer].x
            (gradient,) = differentiate(
                model, run._replace(trace=run.trace[:layer]), x, cache,
                value_gradient=behind[layer].to(x.device), retain_graph=layer < last,
            )  # fmt: skip
            before[layer] = before[layer].plus(gradient) if layer in before else gradient
    assert plain is not None
    return plain, before, clean


@dataclass(frozen=True, eq=False)
class HeadGradients:
    """Clean run, with the gradient of the metric at the z of all heads.

    Attributes:
        clean: clean run.
        changes: changes of the senders' outputs when they are ablated.
        at_z: gradients at the z of every layer.
        gradient: gradients at all receivers.
    """

    clean: CleanRun
    changes: SenderOutputs
    at_z: tuple[Float[Tensor, "batch _query n_heads d_head"], ...]
    gradient: RunGradient


def gradients_at_heads(batch: PreparedBatch, request: Request) -> HeadGradients:
    """Run the clean prompts once, and take the gradient at all heads and receivers."""
    run, logits = run_points(batch, request.points, EXACT)
    clean = CleanRun([layer.detached() for layer in run.trace], Predictions(logits.detach()))
    note_baselines(batch, request, clean)
    value = weighted_sum(batch, logits, clean.predictions, request.points)
    at_z = torch.autograd.grad(value, [layer.z for layer in run.trace], retain_graph=True)
    (gradient,) = differentiate(batch.work.model, run, value, batch.cache)
    return HeadGradients(clean, ablation_of(batch, clean).outputs, at_z, gradient)


def score_patterns(batch: PreparedBatch, request: Request) -> Iterator[ScoreBlock]:
    """EAP, with the exact change of the attention pattern for q and k edges (QK fix of AtP*).

    The change of the pattern is multiplied by the metric's gradient at the pattern.
    """
    config, model = batch.work.config, batch.work.model
    run = gradients_at_heads(batch, request)
    clean, changes, gradient = run.clean, run.changes, run.gradient
    others = {
        layer: replace(part, heads=replace(part.heads, scaled={"v": part.heads.scaled["v"]}))
        for layer, part in gradient.layers.items()
    }
    yield from contract(model, config, changes, replace(gradient, layers=others), batch.cache)
    for layer, d_z in enumerate(run.at_z):
        held = HeldAttention.of(model, layer, clean.trace[layer], batch.cache)
        before = changes.everywhere[: config.senders_before(layer, "attention")]
        yield from _pattern_blocks(config, layer, held, before, d_z)


@torch.no_grad()
def _pattern_blocks(
    config: GraphConfig,
    layer: int,
    held: HeldAttention,
    changes: Float[Tensor, "sender batch pos d_model"],
    d_z: Float[Tensor, "batch query n_heads d_head"],
) -> Iterator[ScoreBlock]:
    """Scores of the q and k edges of a layer: changes of patterns, times the gradient there."""
    values = held.values.repeat_interleave(d_z.shape[2] // held.values.shape[1], dim=1)
    d_pattern = einsum(d_z, values, "batch query head d, batch head key d -> batch head query key")
    product = "batch head query key, batch head query key -> batch head"
    for kind in "qk":
        moved = (held.pattern_with(kind, change[None]) - held.pattern for change in changes)
        scores = torch.stack([einsum(x, d_pattern.to(x), product) for x in moved], 1)
        shared = config.n_heads // config.n_receivers(kind)
        receivers = config.receivers(layer, kind)
        yield ScoreBlock(
            slice(0, len(changes)),
            list(range(receivers.start, receivers.stop)),
            reduce(scores, "batch sender (n shared) -> batch sender n", "sum", shared=shared),
        )


def score_flow(batch: PreparedBatch, request: Request) -> Iterator[ScoreBlock]:
    """Information flow routes: the fraction of a receiver's input that comes from each sender.

    The score is max(0, |x|_1 - |x - a_u|_1) with x the input of the receiver, normalised over
    senders and averaged over the positions of the prompt. There is no metric, no corrupted prompt
    and no sign.
    """
    work, config, tokens = batch.work, batch.work.config, batch.batch
    layout = batch.layout if request.spans else WHOLE
    outputs, trace, final = outputs_everywhere(work.model, tokens.clean, tokens.last)
    places = torch.arange(tokens.n_positions, device=outputs.device)
    real = (places <= tokens.last[:, None]).to(outputs.dtype)
    weights = layout.spread(real / real.sum(-1, keepdim=True), layout.everywhere)

    def proximities(x: Tensor, n_senders: int) -> Float[Tensor, "batch span sender"]:
        x = x.to(outputs.device)
        size = x.abs().sum(-1)
        near = torch.stack([size - (x - sent).abs().sum(-1) for sent in outputs[:n_senders]])
        near = near.clamp(min=0)  # [sender, batch, pos]
        total = near.sum(0)
        proximity = near / torch.where(total > 0, total, 1.0)
        return einsum(proximity, weights, "sender batch pos, batch span pos -> batch span sender")

    def block(x: Tensor, n_senders: int, receivers: list[int]) -> ScoreBlock:
        scores = proximities(x, n_senders)[..., None].expand(-1, -1, -1, len(receivers))
        scores = scores if request.spans else scores[:, 0]
        return ScoreBlock(slice(0, n_senders), receivers, scores)

    for layer, run in enumerate(trace):
        first = config.receivers(layer, "q").start
        attention = list(range(first, config.receivers(layer, "v").stop))
        yield block(run.x, config.senders_before(layer, "attention"), attention)
        mlp = [config.mlp_receiver(layer)]
        yield block(run.mlp_in, config.senders_before(layer, "mlp"), mlp)
    yield block(final, config.n_forward, [config.logits_receiver])


score_gradients = of_passes(gradient_passes)

SCORERS: dict[str, Scorer] = {
    "gradients": score_gradients,
    "increments": of_passes(increment_passes, overlap=True),
    "activations": of_passes(activation_passes),
    "patterns": score_patterns,
    "dropped layers": score_dropped_layers,
    "flow": score_flow,
}
"""Scorers, by the name in `Method.scorer`."""

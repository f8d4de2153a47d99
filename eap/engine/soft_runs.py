"""Runs of soft circuits: every edge keeps a fraction of the change of its sender.

With spans of the prompt, an edge has a mask at each span. `eap.soft.circuits` defines what is
computed; `eap.engine.mask_training` learns from the gradient with respect to the masks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from eap.engine.prepared import PreparedBatch
from eap.engine.span_layout import WHOLE, Piece, mix
from eap.model.model import Model
from eap.model.prefix import PrefixCache


def run_soft_circuit(
    model: Model, masks: Float[Tensor, "*span n_forward n_backward"], batch: PreparedBatch
) -> Float[Tensor, "batch d_model"]:
    """Final residual stream at the last token, differentiable in `masks`.

    Masks of pairs that are not edges are not read.
    """
    config, cache, ablated = batch.work.config, batch.cache, batch.ablated_run
    layout = WHOLE if masks.ndim == 2 else batch.layout
    weights = masks.view(-1, *masks.shape[-2:]).mT  # [span, n_backward, n_forward]
    changes = Changes.start((batch.clean - batch.ablated)[None], config.n_forward)
    for layer, (block, trace) in enumerate(zip(model.blocks, ablated.trace, strict=True)):
        last = layer == config.n_layers - 1
        rows = slice(config.receivers(layer, "q").start, config.receivers(layer, "v").stop)
        mixed = changes.mix(weights[:, rows], layout.everywhere)
        heads = _head_changes(model, layer, mixed, batch)
        if last:  # from here on, only the last token matters
            changes = changes.at_last(cache)
        row = config.mlp_receiver(layer)
        if not config.parallel_attn_mlp:
            changes.append(heads)
        mixed = changes.mix(
            weights[:, row : row + 1], layout.at_last if last else layout.everywhere
        )
        x = trace.mlp_in + mixed[0].to(trace.mlp_in.device)
        if config.parallel_attn_mlp:
            changes.append(heads)
        mlp = (block.run_mlp(x) - trace.mlp_out).to(heads)[None]
        changes.append(_with_offset(mlp, batch, config.mlp_sender(layer), last=last))
    row = config.logits_receiver
    return ablated.final[:, 0] + changes.mix(weights[:, row : row + 1], layout.at_last)[0, :, 0]


def _head_changes(
    model: Model,
    layer: int,
    mixed: Float[Tensor, "n_receivers batch pos d_model"],
    batch: PreparedBatch,
) -> Float[Tensor, "n_heads batch query d_model"]:
    """Outputs of a layer's heads, minus the activations that their ablated edges carry.

    `mixed` is the change of the heads' q, k and v inputs from their ablated values.
    """
    config, cache = batch.work.config, batch.cache
    block, trace = model.blocks[layer], batch.ablated_run.trace[layer]
    attention, last = block.attention, layer == config.n_layers - 1
    x = trace.x + mixed.to(trace.x.device)  # [n_receivers, batch, pos, d_model]
    normed = block.ln1(x).split([config.n_receivers(kind) for kind in "qkv"])
    q, k, v = (attention.project_each(kind, x) for kind, x in zip("qkv", normed, strict=True))
    if last:
        q = cache.at_last(q)
    z = attention.attend(layer, q, k, v, cache, last_only=last)
    # Without a norm after attention, nothing reads the heads' sum.
    raw = trace.attention_raw if block.post_attention_norm is None else attention.combine(z)
    scaled_z = block.scaled_z(z, raw) - block.scaled_z(trace.z, trace.attention_raw)
    heads = block.head_outputs(scaled_z).to(mixed)
    return _with_offset(heads, batch, config.heads(layer).start, last=last)


def _with_offset(
    change: Float[Tensor, "n batch query d_model"], batch: PreparedBatch, first: int, *, last: bool
) -> Float[Tensor, "n batch query d_model"]:
    """Changes relative to what ablated edges carry, from changes relative to the ablated run."""
    offsets = batch.ablated_run.offsets
    if offsets is None:
        return change
    return change + (offsets.at_last if last else offsets.everywhere)[first : first + len(change)]


@dataclass(frozen=True, eq=False)
class Changes:
    """Outputs of the senders so far, minus the activations that their ablated edges carry.

    Attributes:
        values: changes of all senders; rows of later senders are not read.
        parts: the same changes of every sublayer so far, with their autograd graph.
    """

    values: Float[Tensor, "n_forward batch pos d_model"]
    parts: list[Float[Tensor, "_ batch pos d_model"]]

    @classmethod
    def start(cls, first: Float[Tensor, "1 batch pos d_model"], n_forward: int) -> "Changes":
        """Changes of the input, with room for `n_forward` senders."""
        changes = cls(first.new_empty(n_forward, *first.shape[1:]), [])
        changes.append(first)
        return changes

    def append(self, part: Float[Tensor, "n batch pos d_model"]) -> None:
        """Add the changes of the next sublayer."""
        n_senders = sum(map(len, self.parts))
        self.values[n_senders : n_senders + len(part)] = part.detach()
        self.parts.append(part)

    def at_last(self, cache: PrefixCache) -> "Changes":
        """The same changes at the last token of each row only."""
        first, *rest = map(cache.each_at_last, self.parts)
        changes = Changes.start(first, len(self.values))
        for part in rest:
            changes.append(part)
        return changes

    def mix(
        self, weights: Float[Tensor, "span n_receivers n_forward"], pieces: Sequence[Piece]
    ) -> Float[Tensor, "n_receivers batch pos d_model"]:
        """Weighted sums for every receiver, with the weights of each span at its positions."""
        n_senders = sum(map(len, self.parts))
        values = self.values[:n_senders]
        return _Mix.apply(pieces, weights[..., :n_senders], values, *self.parts)


class _Mix(torch.autograd.Function):
    """Weighted sums by one matrix product per piece; no receiver keeps a copy of its input."""

    @staticmethod
    def forward(
        ctx: Any, pieces: Sequence[Piece], weights: Tensor, values: Tensor, *parts: Tensor
    ) -> Tensor:
        # Only rows that are not kept here are filled later, so the kept values do not change.
        ctx.pieces, ctx.weights, ctx.values = pieces, weights.detach(), values
        ctx.sizes = [len(part) for part in parts]
        return mix(ctx.weights, values, pieces)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        of_weights = torch.zeros_like(ctx.weights)
        for piece in ctx.pieces:
            place = (slice(None), piece.rows, piece.positions)
            flat, values = gradient[place].flatten(1), ctx.values[place].flatten(1)
            of_weights[piece.span] += flat @ values.T
        of_parts = mix(ctx.weights.mT, gradient, ctx.pieces)
        return None, of_weights, None, *of_parts.split(ctx.sizes)

"""The slow twin of scores of parts: a leaf for every hidden unit, or channel, at every position.

A plain Hugging Face model, one pair of prompts. Each unit's leaf is added to what the unit adds to
the residual stream, so that autograd gives the gradient along the unit's direction; what a unit
sends is read by a hook. Nothing is shared with `eap`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from reference.hf_parts import parts_of
from reference.oracle import Metric

DOWN = ("down_proj", "c_proj", "dense_4h_to_h", "fc_out", "fc2")


class Place:
    """A projection into the residual stream: its module, and the module that ends its sublayer."""

    def __init__(self, projection: nn.Module, end: nn.Module, norm: nn.Module | None) -> None:
        self.projection, self.end, self.norm = projection, end, norm
        self.sent: Tensor | None = None  # coefficients in the last run
        self.leaf: Tensor | None = None

    @property
    def directions(self) -> Tensor:
        W = self.projection.weight
        W = W if isinstance(self.projection, Conv1D) else W.T
        return W if self.norm is None else W * (1 + self.norm.weight)

    @contextmanager
    def hooked(self):
        """Coefficients are read, and leaves added."""

        def before(_module, args):
            x = args[0]
            scale = 1.0
            if self.norm is not None:
                raw = self.projection.forward(x)
                scale = torch.rsqrt(raw.square().mean(-1, keepdim=True) + self.norm.eps)
            self.sent = (x * scale).detach().reshape(-1, x.shape[-1])

        def after(_module, _args, output):
            self.leaf = torch.zeros_like(self.sent, requires_grad=True)
            return output + (self.leaf @ self.directions).reshape(output.shape)

        handles = (
            self.projection.register_forward_pre_hook(before),
            self.end.register_forward_hook(after),
        )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def places_of(model: PreTrainedModel, kind: str) -> list[Place]:
    """One for every layer's MLP ('hidden units') or attention ('channels')."""
    places = []
    for block, layer in zip(parts_of(model).blocks, parts_of(model).layers, strict=True):
        if kind == "channels":
            norm = layer.attention_post_norm
            places.append(Place(layer.output, norm or layer.output, norm))
            continue
        (down,) = [
            module
            for name, module in block.named_modules()
            if name.split(".")[-1] in DOWN and "attn" not in name and "attention" not in name
        ]
        gemma = type(layer.mlp_last).__name__.endswith("RMSNorm")
        places.append(
            Place(down, layer.mlp_last if gemma else down, layer.mlp_last if gemma else None)
        )
    return places


def part_scores(
    model: PreTrainedModel,
    clean: Sequence[int],
    corrupted: Sequence[int],
    metric: Metric,
    points: Sequence[float],
    weights: Sequence[float],
    kind: str,
) -> list[Tensor]:
    """By layer, the score of every unit (or every channel of all heads, head by head)."""
    places = places_of(model, kind)
    table = model.get_input_embeddings()
    ends = [table(torch.tensor([list(tokens)])).detach() for tokens in (corrupted, clean)]

    def run(position: float) -> Tensor:
        with ExitStack() as hooks:
            embedded = ends[0] + position * (ends[1] - ends[0])
            handle = table.register_forward_hook(lambda *_: embedded)
            hooks.callback(handle.remove)
            for place in places:
                hooks.enter_context(place.hooked())
            with torch.enable_grad():
                return model(torch.tensor([list(clean)])).logits[0, -1]

    clean_logits = run(1.0).detach()
    sent = [place.sent for place in places]
    run(0.0)
    changes = [place.sent - first for place, first in zip(places, sent, strict=True)]
    scores = [torch.zeros(change.shape[-1], dtype=change.dtype) for change in changes]
    for point, weight in zip(points, weights, strict=True):
        value = metric(run(point), clean_logits)
        gradients = torch.autograd.grad(value, [place.leaf for place in places])
        for total, change, gradient in zip(scores, changes, gradients, strict=True):
            total += weight * (change * gradient).sum(0)
    return scores


@torch.no_grad()
def hidden_of(model: PreTrainedModel, tokens: Sequence[int], layer: int) -> Tensor:
    """Coefficients [pos, unit] of one layer's hidden units."""
    place = places_of(model, "hidden units")[layer]
    with place.hooked():
        model(torch.tensor([list(tokens)]))
    assert place.sent is not None
    return place.sent


@torch.no_grad()
def logits_with_sent(
    model: PreTrainedModel, tokens: Sequence[int], layer: int, change: Tensor
) -> Tensor:
    """Last logits where what the hidden units of a layer send has changed."""
    place = places_of(model, "hidden units")[layer]
    handle = place.end.register_forward_hook(
        lambda _module, _args, out: out + (change @ place.directions).reshape(out.shape)
    )
    try:
        return model(torch.tensor([list(tokens)])).logits[0, -1]
    finally:
        handle.remove()

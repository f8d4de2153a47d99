"""Operations with a replaced backward pass; their forward pass is that of the plain operations."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


def scale_gradient(x: Float[Tensor, "*shape"], factor: float) -> Float[Tensor, "*shape"]:
    """Return `x`, with its gradient multiplied by `factor`."""
    return x if factor == 1.0 else _ScaledGradient.apply(x, factor)


class _FrozenActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        out = activation(x)
        ctx.save_for_backward(torch.where(x == 0, 0.0, out / x))
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (ratio,) = ctx.saved_tensors
        return gradient * ratio, None


def frozen_activation(
    x: Float[Tensor, "*shape"], activation: Callable[[Tensor], Tensor]
) -> Float[Tensor, "*shape"]:
    """`activation(x)`, differentiated as `x` times a constant (zero where `x` is zero)."""
    return _FrozenActivation.apply(x, activation)


class _TemperedSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward((scores / temperature).softmax(dim=-1))
        return scores.softmax(dim=-1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (p,) = ctx.saved_tensors
        weighted = gradient * p
        return weighted - p * weighted.sum(dim=-1, keepdim=True), None


def tempered_softmax(
    scores: Float[Tensor, "*rows key"], temperature: float
) -> Float[Tensor, "*rows key"]:
    """Softmax, differentiated as softmax(scores / T) without the factor 1 / T (GIM)."""
    if temperature == 1.0:
        return scores.softmax(dim=-1)
    return _TemperedSoftmax.apply(scores, temperature)


class _FrozenNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: Any) -> Tensor:
        ctx.norm = norm
        ctx.save_for_backward(norm.scale(x))
        return norm(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (scale,) = ctx.saved_tensors
        weighted = gradient * scale
        if ctx.norm.weight is not None:
            weighted = weighted * ctx.norm.weight
        return ctx.norm.centre(weighted), None


def frozen_norm(norm: Any, x: Float[Tensor, "*batch d_norm"]) -> Float[Tensor, "*batch d_norm"]:
    """`norm(x)`, differentiated as if the scale that it divides by were a constant."""
    return _FrozenNorm.apply(x, norm)


def gelu_tanh(x: Tensor) -> Tensor:
    """Tanh-approximated GELU in one kernel; in transformers it is a chain of elementwise steps."""
    return F.gelu(x, approximate="tanh")

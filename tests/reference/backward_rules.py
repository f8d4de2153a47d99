"""Backward rules imposed on a Hugging Face model from outside, by plain torch code with `detach`.

Norms, activations, gates and attention of the model's own modules are rewritten so that their
values stay and their gradients follow a method's rule. No code is shared with `eap`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Rules:
    """What is changed; the defaults change nothing."""

    norms: bool = False
    activations: bool = False
    gate: float = 1.0
    query_key: float = 1.0
    pattern_value: float = 1.0
    temperature: float = 1.0


EXACT = Rules()
RELP = Rules(norms=True, activations=True, gate=0.5)
ATTNLRP = Rules(norms=True, activations=True, gate=0.5, query_key=0.5, pattern_value=0.5)
GIM = Rules(norms=True, gate=0.5, query_key=0.5, pattern_value=0.5, temperature=2.0)


def weakened(x: Tensor, factor: float) -> Tensor:
    """`x`, with `factor` of its gradient."""
    return factor * x + ((1 - factor) * x).detach() if factor != 1.0 else x


def frozen_norm(module: nn.Module, x: Tensor) -> Tensor:
    """The norm with a constant scale."""
    name = type(module).__name__
    weight, bias = (getattr(module, key, None) for key in ("weight", "bias"))
    eps = getattr(module, "eps", None) or getattr(module, "variance_epsilon", None) or 1e-5
    if "RMS" in name:
        scale = (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt().detach()
        weight = 1 + weight if "Gemma" in name else weight
    else:
        x = x - x.mean(-1, keepdim=True)
        scale = (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt().detach()
    y = x * scale
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def frozen_activation(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`x` times the constant act(x) / x."""
    ratio = (forward(x) / x).detach()
    return x * torch.where(x == 0, 0.0, ratio)


def tempered_softmax(scores: Tensor, temperature: float) -> Tensor:
    """Softmax of `scores`, whose Jacobian is that of the softmax at another temperature."""
    p = (scores / temperature).softmax(-1).detach()
    linear = p * (scores - (p * scores.nan_to_num(neginf=0.0)).sum(-1, keepdim=True))
    linear = linear.nan_to_num(nan=0.0)  # a hidden key has p = 0 and a score of minus infinity
    return scores.softmax(-1).detach() + linear - linear.detach()


class _Attention(TorchFunctionMode):
    """Changes the softmax and the two products of attention; other products have fewer axes."""

    def __init__(self, rules: Rules) -> None:
        super().__init__()
        self.rules, self.after_softmax = rules, False

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.softmax and self.rules.temperature != 1.0:
            self.after_softmax = True
            dtype = kwargs.get("dtype")
            scores = args[0] if dtype is None else args[0].to(dtype)
            return tempered_softmax(scores, self.rules.temperature)
        if func is F.softmax:
            self.after_softmax = True
        elif func is torch.matmul and args[0].ndim == 4:
            factor = self.rules.pattern_value if self.after_softmax else self.rules.query_key
            self.after_softmax = False
            return func(weakened(args[0], factor), weakened(args[1], factor))
        return func(*args, **kwargs)


@contextmanager
def following(model: PreTrainedModel, rules: Rules) -> Iterator[None]:
    """The model, differentiated by the rules."""
    with ExitStack() as stack:
        for module in model.modules():
            kind = type(module).__name__
            if rules.norms and "Norm" in kind:
                replace_forward(stack, module, lambda x, module=module: frozen_norm(module, x))
                module.frozen_scale = True
                stack.callback(delattr, module, "frozen_scale")
            if rules.activations and ("GELU" in kind or kind in ("SiLU", "SiLUActivation", "ReLU")):
                forward = module.forward
                replace_forward(
                    stack, module, lambda x, forward=forward: frozen_activation(forward, x)
                )
            if rules.gate != 1.0 and hasattr(module, "gate_proj"):
                hook = module.down_proj.register_forward_pre_hook(
                    lambda _module, args: (weakened(args[0], rules.gate),)
                )
                stack.callback(hook.remove)
        stack.enter_context(_Attention(rules))
        yield


def replace_forward(stack: ExitStack, module: nn.Module, forward: Callable[..., Tensor]) -> None:
    """Give a module another forward until the stack closes."""
    module.forward = forward  # type: ignore[method-assign]
    stack.callback(lambda: module.__dict__.pop("forward"))

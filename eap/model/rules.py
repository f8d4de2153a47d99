"""Backward rules: changes that a method makes to the backward pass, with values left unchanged.

A rule is a set of switches for the forward pass. Methods that replace gradients by relevance (RelP,
AttnLRP, GIM) differ only in these switches.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class BackwardRules:
    """Switches for the flow of gradients; the defaults give the exact gradient.

    Attributes:
        frozen_norms: whether the scale that a norm divides by counts as a constant.
        frozen_activations: whether `act(x)` counts as `x` times the constant `act(x) / x`.
        gate_product: factor on the gradient of a gated MLP's product.
        query_key: factor on the gradients of q and of k from their product.
        pattern_value: factor on the gradients of pattern and of v from their product.
        softmax_temperature: temperature T of the pattern's backward pass, which uses
            softmax(scores / T), times T / T.
    """

    frozen_norms: bool = False
    frozen_activations: bool = False
    gate_product: float = 1.0
    query_key: float = 1.0
    pattern_value: float = 1.0
    softmax_temperature: float = 1.0


EXACT = BackwardRules()
"""Rules of the exact gradient."""

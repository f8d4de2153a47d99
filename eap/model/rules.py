"""Backward rules: what a method changes in the backward pass while all values stay what they are.

A rule is a set of switches given to the forward pass. Methods that replace gradients by relevance
(RelP, AttnLRP, GIM) differ in these switches alone.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class BackwardRules:
    """How gradients flow; the defaults are the exact gradient.

    Attributes:
        frozen_norms: the scale that a norm divides by counts as a constant.
        frozen_activations: `act(x)` counts as `x` times the constant `act(x) / x`.
        gate_product: factor on the gradient of a gated MLP's product.
        query_key: factor on the gradients of q and of k from their product.
        pattern_value: factor on the gradients of pattern and of v from their product.
        softmax_temperature: T: the pattern's backward uses softmax(scores / T), times T / T.
    """

    frozen_norms: bool = False
    frozen_activations: bool = False
    gate_product: float = 1.0
    query_key: float = 1.0
    pattern_value: float = 1.0
    softmax_temperature: float = 1.0


EXACT = BackwardRules()
"""The gradient itself."""

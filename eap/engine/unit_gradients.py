"""Gradients at the inputs of an MLP's hidden units, from the gradient at the MLP's output.

The gradient at an MLP's input is a sum over the inputs of its units (in a gated MLP, each unit has
two: in and gate), by the closed form of `eap.engine.receivers` with units in the place of heads:

    G_j = P (w * (r g_j W_j)) - x^ c_j,    c_j = r/d_model g_j (pre_j - pre_j0).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from eap.model.blocks import Block
from eap.model.rules import BackwardRules


@dataclass(frozen=True, eq=False)
class UnitGradient:
    """Gradients at the inputs of an MLP's units, as far as they can be summed over points.

    Attributes:
        scaled: sums over points of r g, by kind of input ('in', and 'gate' in a gated MLP).
        along: coefficients c of every point by kind, in pieces; empty if the norm's scale has no
            gradient.
        hat: x^ of every point, in pieces; empty if there is no `along`.
    """

    scaled: Sequence[Float[Tensor, "batch query d_mlp"]]
    along: Sequence[tuple[Float[Tensor, "_point batch query d_mlp"], ...]]
    hat: tuple[Float[Tensor, "_point batch query d_model"], ...]

    def plus(self, other: "UnitGradient") -> "UnitGradient":
        """Sum over the points of both gradients."""
        return UnitGradient(
            [mine + theirs for mine, theirs in zip(self.scaled, other.scaled, strict=True)],
            [mine + theirs for mine, theirs in zip(self.along, other.along, strict=True)],
            self.hat + other.hat,
        )

    def scores_of(
        self, change: Float[Tensor, "batch query d_model"], backs: Sequence[Float[Tensor, "n d"]]
    ) -> Float[Tensor, "batch input n"]:
        """Scores of one sender: its change times the gradients, without computing any G_j.

        Args:
            change: change of the sender's output.
            backs: `Norm.pull_back_weights` of the input weights of the units, for each kind.
        """
        scores = [
            einsum(change @ back.T, scaled, "batch query n, batch query n -> batch n")
            for back, scaled in zip(backs, self.scaled, strict=True)
        ]
        if self.along:
            hat = torch.cat(self.hat)
            on_hat = einsum(change, hat, "batch query d, point batch query d -> point batch query")
            between = "point batch query, point batch query n -> batch n"
            scores = [
                score - einsum(on_hat, torch.cat(along), between)
                for score, along in zip(scores, self.along, strict=True)
            ]
        return torch.stack(scores, dim=1)


def unit_gradients(
    block: Block,
    mlp_in: Float[Tensor, "rows query d_model"],
    at_output: Float[Tensor, "rows query d_model"],
    rules: BackwardRules,
    groups: Sequence[slice],
    batch: int,
) -> list[UnitGradient]:
    """Gradients at the inputs of units, from the gradient at the MLP's output.

    Args:
        block: layer of the MLP.
        mlp_in: input of the MLP; rows are points (outermost) times examples.
        at_output: gradient at the output of the MLP.
        rules: backward rules of the run.
        groups: points that are summed in each of the results.
        batch: number of examples.
    """
    mlp, norm, x = block.mlp, block.ln2, mlp_in.detach()
    read = [one.detach().requires_grad_() for one in mlp.inputs(norm(x))]
    with torch.enable_grad():
        out = F.linear(mlp.activate(*read, rules=rules), mlp.W_out, mlp.b_out).to(x)
        out = out if block.post_mlp_norm is None else block.post_mlp_norm(out, rules)
        gradients = torch.autograd.grad(out, read, at_output)

    def by_point(values: Tensor) -> Tensor:
        return rearrange(values, "(point batch) ... -> point batch ...", batch=batch)

    scaled = [gradient * norm.scale(x) for gradient in gradients]
    along: list[Tensor] = []
    if norm.kind != "none" and not rules.frozen_norms:
        weights = [(mlp.W_in, mlp.b_in)]
        if mlp.W_gate is not None:
            weights.append((mlp.W_gate, mlp.b_gate))
        for (W, b), pre, gradient in zip(weights, read, scaled, strict=True):
            at_zero = torch.zeros_like(W[:, 0]) if b is None else b
            if norm.bias is not None:
                at_zero = at_zero + W @ norm.bias.to(W)
            along.append(by_point(gradient * (pre.detach() - at_zero) / x.shape[-1]))
    hat = by_point(norm.hat(x)) if along else None
    return [
        UnitGradient(
            [by_point(gradient)[group].sum(0) for gradient in scaled],
            [(c[group],) for c in along],
            () if hat is None else (hat[group],),
        )
        for group in groups
    ]

"""Edges into hidden units: a receiver MLP's gradient, split into those of its units' inputs.

The gradient at an MLP's input is a sum over what its units read (in a gated MLP twice: in and
gate), by the closed form of `eap.engine.receivers` with units in the place of heads:

    G_j = P (w * (r g_j W_j)) - x^ c_j,    c_j = r/d_model g_j (pre_j - pre_j0).

No G_j is made: changes of senders are projected onto all W_j at once, one sender at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from eap.engine.passes import Request, note_baselines
from eap.engine.path_gradients import run_clean, run_points, sender_changes_of, weighted_sum
from eap.engine.prepared import PreparedBatch
from eap.model.blocks import Block
from eap.model.rules import BackwardRules
from eap.model.runs import LayerTrace


@dataclass(frozen=True, eq=False)
class InputGradient:
    """Gradients at one kind of the units' inputs ('in' or 'gate').

    Attributes:
        scaled: the sum over points of r g.
        along: c of every point; None where the norm's scale has no gradient.
    """

    scaled: Float[Tensor, "batch query d_mlp"]
    along: Float[Tensor, "point batch query d_mlp"] | None


def score_unit_edges(
    batch: PreparedBatch, request: Request, layer: int
) -> Float[Tensor, "batch sender input d_mlp"]:
    """Scores of the edges from all senders before an MLP into what its units read."""
    work, rules = batch.work, request.method.rules
    config, block = work.config, work.model.blocks[layer]
    clean = run_clean(batch)
    note_baselines(batch, request, clean)
    runs: list[Sequence[InputGradient]] = []
    hats: list[Tensor] = []
    for first in range(0, len(request.points), request.points_per_run):
        points = request.points[first : first + request.points_per_run]
        trace, _, logits = run_points(batch, points, rules)
        value = weighted_sum(batch, logits, clean.predictions, points)
        (at_output,) = torch.autograd.grad(value, [trace[layer].mlp_out])
        runs.append(_at_inputs(block, trace[layer], at_output, rules, len(batch)))
        hat = block.ln2.hat(trace[layer].mlp_in.detach())
        hats.append(rearrange(hat, "(point batch) ... -> point batch ...", batch=len(batch)))
    hat = torch.cat(hats)
    with torch.no_grad():
        changes = sender_changes_of(batch, clean)
        last = layer == config.n_layers - 1
        D = (changes.at_last if last else changes.everywhere)[: config.senders_before(layer, "mlp")]
        weights = [block.mlp.W_in] + ([] if block.mlp.W_gate is None else [block.mlp.W_gate])
        backs = [block.ln2.pull_back_weights(W.T[None])[0] for W in weights]
        inputs = [_of_all_points(pieces) for pieces in zip(*runs, strict=True)]
        scores = D.new_zeros(len(batch), len(D), len(backs), len(backs[0]))
        for sender, change in enumerate(D.to(block.device)):
            on_hat = einsum(change, hat, "b q d, point b q d -> point b q")
            for number, (back, gradient) in enumerate(zip(backs, inputs, strict=True)):
                score = einsum(change @ back.T, gradient.scaled, "b q n, b q n -> b n")
                if gradient.along is not None:
                    along = einsum(on_hat, gradient.along, "point b q, point b q n -> b n")
                    score = score - along
                scores[:, sender, number] = score.to(scores)
    return scores


def _of_all_points(pieces: Sequence[InputGradient]) -> InputGradient:
    along = [piece.along for piece in pieces if piece.along is not None]
    total = torch.stack([piece.scaled for piece in pieces]).sum(0)
    return InputGradient(total, torch.cat(along) if along else None)


def _at_inputs(
    block: Block,
    run: LayerTrace,
    at_output: Float[Tensor, "rows query d_model"],
    rules: BackwardRules,
    batch: int,
) -> Sequence[InputGradient]:
    """Gradients at the units' inputs, from the gradient at the MLP's output."""
    mlp, norm, x = block.mlp, block.ln2, run.mlp_in.detach()
    read = [one.detach().requires_grad_() for one in mlp.inputs(norm(x))]
    with torch.enable_grad():
        out = F.linear(mlp.activate(*read, rules=rules), mlp.W_out, mlp.b_out).to(x)
        out = out if block.post_mlp_norm is None else block.post_mlp_norm(out, rules)
        gradients = torch.autograd.grad(out, read, at_output)
    scale_varies = norm.kind != "none" and not rules.frozen_norms
    weights = [(mlp.W_in, mlp.b_in)]
    if mlp.W_gate is not None:
        weights.append((mlp.W_gate, mlp.b_gate))
    inputs = []
    for (W, b), pre, gradient in zip(weights, read, gradients, strict=True):
        scaled = gradient * norm.scale(x)
        along = None
        if scale_varies:
            at_zero = torch.zeros_like(W[:, 0]) if b is None else b
            if norm.bias is not None:
                at_zero = at_zero + W @ norm.bias.to(W)
            c = scaled * (pre.detach() - at_zero) / x.shape[-1]
            along = rearrange(c, "(point batch) ... -> point batch ...", batch=batch)
        by_point = rearrange(scaled, "(point batch) ... -> point batch ...", batch=batch)
        inputs.append(InputGradient(by_point.sum(0), along))
    return inputs

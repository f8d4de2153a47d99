"""Edges into hidden units: the gradient of a receiver MLP, split into those of its units' inputs.

The gradient at an MLP's input is a sum over the inputs of its units (in a gated MLP, each unit has
two: in and gate), by the closed form of `eap.engine.receivers` with units in the place of heads:

    G_j = P (w * (r g_j W_j)) - x^ c_j,    c_j = r/d_model g_j (pre_j - pre_j0).

Changes of senders are projected onto the inputs of all units at once, one sender at a time, so that
no G_j is computed. The passes may be those of any method that is linear in the sender's output.
"""

from collections.abc import Iterator, Sequence

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from eap.engine.passes import Pass
from eap.engine.prepared import PreparedBatch
from eap.engine.receivers import InputGradients


def score_unit_edges(
    batch: PreparedBatch, passes: Iterator[Pass], layer: int
) -> Float[Tensor, "batch sender input d_mlp"]:
    """Scores of the edges from all senders before an MLP into the inputs of its units.

    Args:
        batch: batch that is scored.
        passes: passes of a request whose `units` is the layer of the MLP.
        layer: layer of the MLP.
    """
    config, block = batch.work.config, batch.work.model.blocks[layer]
    weights = [block.mlp.W_in] + ([] if block.mlp.W_gate is None else [block.mlp.W_gate])
    backs = [block.ln2.pull_back_weights(W.T[None])[0] for W in weights]
    n_senders, last = config.senders_before(layer, "mlp"), layer == config.n_layers - 1
    shape = (len(batch), n_senders, len(backs), len(backs[0]))
    scores = torch.zeros(shape, dtype=batch.clean.dtype, device=block.device)
    for change, gradients, senders in passes:
        covered = range(n_senders)[senders or slice(None)]
        if layer not in gradients.layers or not covered:
            continue  # senders after the MLP
        units = gradients.layers[layer].units
        assert units is not None
        with torch.no_grad():
            outputs = change.outputs.at_last if last else change.outputs.everywhere
            for sender in covered:
                moved = outputs[sender].to(block.device)
                scores[:, sender] += _scores(moved, units, backs).to(scores)
    return scores


def _scores(
    change: Float[Tensor, "batch query d_model"],
    units: InputGradients,
    backs: Sequence[Float[Tensor, "d_mlp d_model"]],
) -> Float[Tensor, "batch input d_mlp"]:
    """Scores of one sender, from the change of its output.

    Args:
        change: change of the sender's output.
        units: gradients at the inputs of the units.
        backs: `Norm.pull_back_weights` of the input weights of the units, for each kind.
    """
    between = "batch query n, batch query n -> batch n"
    scores = [
        einsum(change @ back.T, scaled[..., 0], between)
        for back, scaled in zip(backs, units.scaled.values(), strict=True)
    ]
    if units.along:
        hat = torch.cat(units.hat)
        on_hat = einsum(change, hat, "batch query d, point batch query d -> point batch query")
        between = "point batch query, point batch query n -> batch n"
        scores = [
            score - einsum(on_hat, torch.cat(along), between)
            for score, along in zip(scores, units.along.values(), strict=True)
        ]
    return torch.stack(scores, dim=1)

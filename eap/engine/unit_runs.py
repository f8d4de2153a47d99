"""Edges into hidden units: the gradient of a receiver MLP, split into those of its units' inputs.

Changes of senders are projected onto the inputs of all units at once, one sender at a time (see
`eap.engine.unit_gradients`). The passes may be those of any method that is linear in the sender's
output.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from eap.engine.passes import Pass
from eap.engine.prepared import PreparedBatch


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
                scores[:, sender] += units.scores_of(moved, backs).to(scores)
    return scores

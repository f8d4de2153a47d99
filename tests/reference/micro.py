"""A model whose every score can be worked out with pen and paper.

One layer, two heads, a residual stream of four numbers, seven tokens; token t has the value t. The
norms have so large an epsilon, and so large a weight, that they hand on what they read.

    stream[0]   the token's value, from the embedding
    stream[1]   head 0: the average of stream[0] over the positions so far (q and k are zero, so
                attention is even; the value is stream[0])
    stream[2]   MLP: relu(stream[1]) * stream[0] + relu(stream[0]) * stream[0]
    stream[3]   nothing; head 1 does nothing

    logits[1] = 10 stream[1] + stream[2]        the correct answer
    logits[2] = stream[0]                       the incorrect answer

The metric is their difference, at the last of two tokens. Clean (4, 2) and corrupted (2, 6):

                stream[0]    stream[1]    stream[2]          metric
    clean           2            3        3*2 + 2*2 = 10     30 + 10 - 2 = 38
    corrupted       6            4        4*6 + 6*6 = 60     40 + 60 - 6 = 94
"""

from __future__ import annotations

import torch
from models.tiny import bridge_of
from transformer_lens.model_bridge import TransformerBridge
from transformers import LlamaConfig, LlamaForCausalLM

from eap.data.dataset import Example

EXAMPLE = Example(clean=(4, 2), corrupted=(2, 6), correct=(1,), incorrect=(2,))
CLEAN, CORRUPTED = 38.0, 94.0

# Each with the arithmetic that gives it: what the metric becomes, minus 38.
EXACT = {
    # stream[1] = 4 for the MLP and the logits: 40 + (4*2 + 2*2) - 2 = 50
    "input->a0.h0<v>": 50 - CLEAN,
    # the MLP reads stream[0] = 6: 30 + (3*6 + 6*6) - 2 = 82
    "input->m0": 82 - CLEAN,
    # the incorrect logit alone: 30 + 10 - 6 = 34
    "input->logits": 34 - CLEAN,
    # the MLP alone reads stream[1] = 4: 30 + (4*2 + 2*2) - 2 = 40
    "a0.h0->m0": 40 - CLEAN,
    # 40 + 10 - 2 = 48
    "a0.h0->logits": 48 - CLEAN,
    # 30 + 60 - 2 = 88
    "m0->logits": 88 - CLEAN,
}
"""All others are zero."""

# Gradients at the clean run: at the MLP's input, stream[1]: 2; stream[0]: 3 + 2*2 = 7.
# At a value of head 0, one of two positions: (10 + 2) / 2 = 6.
EAP = {
    "input->a0.h0<v>": 6.0 * (2 - 4) + 6.0 * (6 - 2),
    "input->m0": 7.0 * (6 - 2),
    "input->logits": -1.0 * (6 - 2),
    "a0.h0->m0": 2.0 * (4 - 3),
    "a0.h0->logits": 10.0 * (4 - 3),
    "m0->logits": 1.0 * (60 - 10),
}

# At the middle of the path stream[0] is 4 and stream[1] 3.5. Gradients there: at the MLP's input,
# stream[1]: 4; stream[0]: 3.5 + 2*4 = 11.5. At a value of head 0: (10 + 4) / 2 = 7.
MIDDLE = {
    "input->a0.h0<v>": 7.0 * (2 - 4) + 7.0 * (6 - 2),
    "input->m0": 11.5 * (6 - 2),
    "input->logits": -1.0 * (6 - 2),
    "a0.h0->m0": 4.0 * (4 - 3),
    "a0.h0->logits": 10.0 * (4 - 3),
    "m0->logits": 1.0 * (60 - 10),
}

# The paper's rule with two steps takes the middle and the clean end.
TWO_STEPS = {edge: (EAP[edge] + MIDDLE[edge]) / 2 for edge in EAP}

CIRCUITS = {
    # Only the head's path is clean; the MLP does not run: 30 + 60 - 6.
    ("input->a0.h0<v>", "a0.h0->logits"): 84.0,
    # The MLP reads a clean stream[0] and the corrupted head: 4*2 + 2*2 = 12; 40 + 12 - 6.
    ("input->m0", "m0->logits"): 46.0,
    # The head is corrupted although it is in the circuit, as nothing clean reaches it.
    ("a0.h0->logits",): 94.0,
    # 40 + 60 - 2.
    ("input->logits",): 98.0,
    # The MLP reads a clean head and the corrupted stream[0]: 3*6 + 6*6 = 54; 40 + 54 - 6.
    ("input->a0.h0<v>", "a0.h0->m0", "m0->logits"): 88.0,
    # q and k do nothing.
    ("input->a0.h0<q>", "input->a0.h0<k>", "a0.h0->logits", "input->logits"): 98.0,
}
"""What the metric is when only these edges are clean."""


def micro_hf() -> LlamaForCausalLM:
    """The model in float64; `oracle.float64` makes it compute so."""
    config = LlamaConfig(
        vocab_size=7,
        hidden_size=4,
        intermediate_size=2,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        hidden_act="relu",
        rms_norm_eps=1e16,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).double().eval().requires_grad_(False)
    model.config.architectures = ["LlamaForCausalLM"]
    for parameter in model.parameters():
        parameter.zero_()
    layer = model.model.layers[0]
    for norm in (layer.input_layernorm, layer.post_attention_layernorm, model.model.norm):
        norm.weight.fill_(1e8)  # the square root of epsilon
    model.model.embed_tokens.weight[:, 0] = torch.arange(7.0)
    layer.self_attn.v_proj.weight[0, 0] = 1  # [to dimension 0 of head 0, from stream[0]]
    layer.self_attn.o_proj.weight[1, 0] = 1
    layer.mlp.gate_proj.weight[0, 1] = 1  # relu(stream[1])
    layer.mlp.gate_proj.weight[1, 0] = 1  # relu(stream[0])
    layer.mlp.up_proj.weight[:, 0] = 1  # each times stream[0]
    layer.mlp.down_proj.weight[2, :] = 1
    model.lm_head.weight[1, 1], model.lm_head.weight[1, 2] = 10, 1
    model.lm_head.weight[2, 0] = 1
    return model


def micro_bridge() -> TransformerBridge:
    """A bridge around it."""
    return bridge_of(micro_hf())

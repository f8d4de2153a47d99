"""The sizes of a loaded model: those that memory and time depend on, and its graph's."""

from dataclasses import replace

import torch

from eap.graph.numbering import GraphConfig
from eap.model.model import Model
from eap.runtime.errors import UserError
from eap.runtime.memory import Shapes


def shapes_of(model: Model) -> Shapes:
    """Sizes of a model; widths of heads and MLPs are those of the weights, whatever d_model is."""
    config, block = model.config, model.blocks[0]
    return Shapes(
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        d_model=config.d_model,
        d_head=block.attention.W_Q.shape[2],
        d_mlp=max(block.mlp.W_in.shape[0] for block in model.blocks),
        d_vocab=model.W_U.shape[0],
        gated=block.mlp.W_gate is not None,
        parallel=config.parallel_attn_mlp,
        bytes=torch.finfo(model.residual_dtype).bits // 8,
    )


def graph_config(model: Model, *, expanded_kv: bool = False) -> GraphConfig:
    """The shape of a model's graph.

    Raises:
        UserError: the model is something else (a name, a model of another library).
    """
    if not isinstance(model, Model):
        raise UserError(f"the model is {type(model).__name__}; give what eap.load_model returns")
    return replace(model.config, expanded_kv=expanded_kv)

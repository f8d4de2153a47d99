"""Sizes of a loaded model that memory and time depend on, and the shape of its graph."""

from dataclasses import replace

import torch

from eap.graph.numbering import GraphConfig
from eap.model.model import Model
from eap.runtime.errors import UserError
from eap.runtime.memory import Shapes


def shapes_of(model: Model) -> Shapes:
    """Sizes of a model; the widths of heads and MLPs come from the weights, not from d_model."""
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
    """Shape of a model's graph.

    Raises:
        UserError: the argument is not a model (a name, or a model of another library).
    """
    if not isinstance(model, Model):
        raise UserError(f"the model is {type(model).__name__}; give what eap.load_model returns")
    return replace(model.config, expanded_kv=expanded_kv)

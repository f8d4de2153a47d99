"""What the parts of a Hugging Face model are called, by model type.

Written from the modelling code of `transformers` alone; the package reads its weights elsewhere
(through TransformerLens), so a mistake there is not repeated here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from torch import nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Names:
    """Where the parts are: of the model, then (from `attention` on) of one block."""

    blocks: str
    final_norm: str
    attention: str
    projections: tuple[str, ...]
    """q, k and v of the attention module; or one that computes all three."""
    output: str
    """The attention module's output projection."""
    attention_norm: str
    mlp_norm: str
    mlp_first: str = "mlp"
    """Receives the normalised input of the MLP."""
    mlp_last: str = "mlp"
    """Its output is what the MLP adds to the residual stream."""
    attention_post_norm: str | None = None
    """RMS norm (weight stored as an offset to one) between attention and the residual stream."""
    positions: str | None = None
    """Of the model: learned positional embeddings."""
    fused: str = "no"
    """"concatenated": all q, all k, all v; "interleaved": q, k, v of head 0, of head 1, ..."""
    parallel: bool = False
    """The MLP reads what attention reads."""


_SEPARATE = ("q_proj", "k_proj", "v_proj")
_GPT2 = Names(
    blocks="transformer.h",
    final_norm="transformer.ln_f",
    attention="attn",
    projections=("c_attn",),
    output="c_proj",
    attention_norm="ln_1",
    mlp_norm="ln_2",
    positions="transformer.wpe",
    fused="concatenated",
)
_NEOX = Names(
    blocks="gpt_neox.layers",
    final_norm="gpt_neox.final_layer_norm",
    attention="attention",
    projections=("query_key_value",),
    output="dense",
    attention_norm="input_layernorm",
    mlp_norm="post_attention_layernorm",
    fused="interleaved",
    parallel=True,
)
_LLAMA = Names(
    blocks="model.layers",
    final_norm="model.norm",
    attention="self_attn",
    projections=_SEPARATE,
    output="o_proj",
    attention_norm="input_layernorm",
    mlp_norm="post_attention_layernorm",
)
_GEMMA = replace(
    _LLAMA,
    attention_post_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_last="post_feedforward_layernorm",
)
_NAMES = {
    "gpt2": _GPT2,
    "gpt_neo": replace(
        _GPT2,
        attention="attn.attention",
        projections=_SEPARATE,
        output="out_proj",
        fused="no",
    ),
    "gptj": replace(
        _GPT2,
        projections=_SEPARATE,
        output="out_proj",
        fused="no",
        mlp_norm="ln_1",
        positions=None,
        parallel=True,
    ),
    "gpt_neox": _NEOX,
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "smollm3", "olmo"), _LLAMA),
    **dict.fromkeys(("gemma2", "gemma3_text"), _GEMMA),
    "phi": replace(
        _LLAMA,
        final_norm="model.final_layernorm",
        output="dense",
        mlp_norm="input_layernorm",
        parallel=True,
    ),
    "opt": replace(
        _LLAMA,
        blocks="model.decoder.layers",
        final_norm="model.decoder.final_layer_norm",
        output="out_proj",
        attention_norm="self_attn_layer_norm",
        mlp_norm="final_layer_norm",
        mlp_first="fc1",
        mlp_last="fc2",
        positions="model.decoder.embed_positions",
    ),
}


@dataclass(frozen=True)
class Layer:
    """The modules of one block."""

    attention: nn.Module
    projections: tuple[nn.Module, ...]
    output: nn.Module
    attention_norm: nn.Module
    attention_post_norm: Any
    mlp_norm: nn.Module
    mlp_first: nn.Module
    mlp_last: nn.Module


@dataclass(frozen=True)
class Parts:
    """The modules of a model and what says how to use them."""

    n_heads: int
    n_kv_heads: int
    d_head: int
    parallel: bool
    fused: str
    blocks: list[nn.Module]
    layers: list[Layer]
    final_norm: nn.Module
    positions: nn.Module | None


@cache
def parts_of(model: PreTrainedModel) -> Parts:
    """Find the parts of a model."""
    config = model.config
    names = _NAMES[config.model_type]
    blocks = list(model.get_submodule(names.blocks).children())
    n_heads = config.num_attention_heads

    def layer(block: nn.Module) -> Layer:
        attention, post_norm = block.get_submodule(names.attention), names.attention_post_norm
        return Layer(
            attention=attention,
            projections=tuple(attention.get_submodule(name) for name in names.projections),
            output=attention.get_submodule(names.output),
            attention_norm=block.get_submodule(names.attention_norm),
            attention_post_norm=block.get_submodule(post_norm) if post_norm else None,
            mlp_norm=block.get_submodule(names.mlp_norm),
            mlp_first=block.get_submodule(names.mlp_first),
            mlp_last=block.get_submodule(names.mlp_last),
        )

    return Parts(
        n_heads=n_heads,
        n_kv_heads=getattr(config, "num_key_value_heads", None) or n_heads,
        d_head=getattr(config, "head_dim", None) or config.hidden_size // n_heads,
        parallel=names.parallel and getattr(config, "use_parallel_residual", True),
        fused=names.fused,
        blocks=blocks,
        layers=[layer(block) for block in blocks],
        final_norm=model.get_submodule(names.final_norm),
        positions=model.get_submodule(names.positions) if names.positions else None,
    )

"""Model families: a table of their differences, and how to read their weights.

The bridge of TransformerLens gives one set of module names across families (`blocks[i].ln1`,
`.attn.q`, `.mlp.in`, ...). `read_blocks` reads the weights through these names, without copying.
`FAMILIES` has what the names do not tell: how to find activations, windows and rotary tables.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers.activations import ACT2FN

from eap.model.backward import gelu_tanh
from eap.model.blocks import MLP, Attention, Block, Norm, RotaryTable, residual_dtype
from eap.runtime.errors import UserError, quoted


@dataclass(frozen=True)
class Family:
    """Properties of one architecture that the names of the bridge do not tell."""

    label: str
    parallel: Callable[[Any], bool] = lambda config: False  # attention and MLP read the same input
    one_norm: bool = False  # attention and MLP share ln1
    norm_offset: float = 0.0  # 1 for Gemma, which stores weight - 1
    rotary: str | None = "half"  # None, 'half' or 'interleaved'
    position_offset: int = 0  # number of rows in the position table before position 0
    scale: float | None = None  # scale of attention scores; None: the module's own
    windows: Callable[[Any, int], int | None] = lambda config, layer: None
    requires: tuple[tuple[str, Any], ...] = ()  # settings of the config that the engine assumes
    applies: tuple[str, ...] = ()  # settings that only some architectures apply

    def setting(self, config: Any, name: str) -> Any:
        """Setting of the config; None if the architecture ignores it."""
        return getattr(config, name, None) if name in self.applies else None


def _only_window(config: Any, layer: int) -> int | None:
    """Window of all layers: Mistral ignores `layer_types` and `use_sliding_window`."""
    return getattr(config, "sliding_window", None)


def _sliding_window(config: Any, layer: int) -> int | None:
    """Window of a layer, if the config has the type of each layer, or one window for all layers."""
    if getattr(config, "use_sliding_window", True) is False:
        return None
    types = getattr(config, "layer_types", None)
    if types is not None and types[layer] != "sliding_attention":
        return None
    return getattr(config, "sliding_window", None)


def _gpt_neo_window(config: Any, layer: int) -> int | None:
    return config.window_size if config.attention_layers[layer] == "local" else None


FAMILIES: dict[str, Family] = {
    "GPT2LMHeadModel": Family("GPT-2", rotary=None, requires=(("add_cross_attention", False),)),
    "GPTNeoXForCausalLM": Family(
        "GPT-NeoX, Pythia",
        parallel=lambda config: config.use_parallel_residual,
        requires=(("attention_bias", True),),
    ),
    "LlamaForCausalLM": Family("Llama, SmolLM2"),
    "MistralForCausalLM": Family("Mistral", windows=_only_window),
    "Qwen2ForCausalLM": Family("Qwen2, Qwen2.5", windows=_sliding_window),
    "Qwen3ForCausalLM": Family("Qwen3", windows=_sliding_window),
    "SmolLM3ForCausalLM": Family("SmolLM3", windows=_sliding_window),
    "OlmoForCausalLM": Family("OLMo", applies=("clip_qkv",)),
    "Gemma2ForCausalLM": Family(
        "Gemma 2",
        norm_offset=1.0,
        windows=_sliding_window,
        applies=("attn_logit_softcapping", "final_logit_softcapping"),
    ),
    "Gemma3ForCausalLM": Family(
        "Gemma 3",
        norm_offset=1.0,
        windows=_sliding_window,
        applies=("final_logit_softcapping",),
    ),
    "GPTJForCausalLM": Family(
        "GPT-J", parallel=lambda config: True, one_norm=True, rotary="interleaved"
    ),
    "PhiForCausalLM": Family(
        "Phi", parallel=lambda config: True, one_norm=True, requires=(("qk_layernorm", False),)
    ),
    "GPTNeoForCausalLM": Family("GPT-Neo", rotary=None, scale=1.0, windows=_gpt_neo_window),
    "OPTForCausalLM": Family(
        "OPT",
        rotary=None,
        position_offset=2,
        requires=(("do_layer_norm_before", True), ("_remove_final_layer_norm", False)),
    ),
}


def find_family(architecture: str, config: Any) -> Family:
    """Family of a Hugging Face architecture.

    Raises:
        UserError: the architecture is not supported; the message names those that are.
    """
    family = FAMILIES.get(architecture)
    if family is None:
        known = ", ".join(family.label for family in FAMILIES.values())
        what = (
            f"architecture {quoted(architecture)}" if architecture else "a model of no known type"
        )
        raise UserError(f"{what} is not supported; supported are {known}")
    for setting, needed in family.requires:
        value = getattr(config, setting, needed)
        if value != needed:
            raise UserError(
                f"{architecture} with {setting}={value} is not supported; {setting}={needed} is"
            )
    if "longrope" in _rope_types(config):
        raise UserError(
            f"{architecture} with rope_type=longrope is not supported: its rotary frequencies "
            "depend on the length of the whole prompt"
        )
    if getattr(config, "word_embed_proj_dim", config.hidden_size) != config.hidden_size:
        raise UserError(
            f"{architecture} whose embedding has another width than its layers is not supported"
        )
    return family


def _rope_types(config: Any) -> set[str]:
    """Kinds of rotary frequencies, of all layers or by type of layer."""
    settings = getattr(config, "rope_parameters", None) or {}
    each = [settings, *(part for part in settings.values() if isinstance(part, dict))]
    return {str(part.get("rope_type", "default")) for part in each}


def read_blocks(bridge: Any, family: Family) -> tuple[Block, ...]:
    """Weights of every layer in the form that the engine uses, as views of the bridge's weights."""
    config = bridge.original_model.config
    blocks = []
    for layer, block in enumerate(bridge.blocks):
        ln1 = read_norm(block.ln1, family)
        blocks.append(
            Block(
                ln1=ln1,
                attention=_read_attention(bridge, block.attn, layer, family, config),
                post_attention_norm=_read_optional_norm(block, "ln1_post", family),
                ln2=ln1 if family.one_norm else read_norm(block.ln2, family),
                mlp=_read_mlp(block.mlp, config),
                post_mlp_norm=_read_optional_norm(block, "ln2_post", family),
            )
        )
    return tuple(blocks)


def read_norm(module: Any, family: Family) -> Norm:
    """Weight (with the offset), bias and epsilon of a norm, in float32 or wider."""
    inner = module.original_component
    eps = next(
        (getattr(inner, key) for key in ("eps", "variance_epsilon") if hasattr(inner, key)), 1e-5
    )
    name = type(inner).__name__
    weight, bias = (_frozen(getattr(inner, key, None)) for key in ("weight", "bias"))
    if weight is not None:
        weight = weight.to(residual_dtype(weight.dtype)) + family.norm_offset
    if bias is not None:
        bias = bias.to(residual_dtype(bias.dtype))
    return Norm(weight, bias, float(eps), kind="rms" if "RMS" in name else "layer")


def _read_optional_norm(parent: Any, name: str, family: Family) -> Norm | None:
    module = getattr(parent, name, None)
    return None if module is None else read_norm(module, family)


def _read_attention(bridge: Any, attn: Any, layer: int, family: Family, config: Any) -> Attention:
    inner = attn.original_component
    rotary = None
    if family.rotary == "half" and getattr(inner, "use_rope", True):
        rotary = _rotary_of_module(bridge, getattr(inner, "layer_type", None))
    elif family.rotary == "interleaved":
        rotary = _gptj_rotary(bridge)
    W_Q, W_K, W_V = (_as_one_matrix(getattr(attn, f"W_{name}").detach()) for name in "QKV")
    W_O = attn.W_O.detach().contiguous()
    b_Q, b_K, b_V, b_O = (_frozen(getattr(attn, f"b_{name}", None)) for name in "QKVO")
    d_head = W_Q.shape[-1]
    scale = family.scale
    if scale is None:
        scale = getattr(inner, "scaling", None) or d_head**-0.5
    return Attention(
        W_Q=W_Q,
        W_K=W_K,
        W_V=W_V,
        W_O=W_O,
        b_Q=None if b_Q is None else b_Q.reshape(-1, d_head),
        b_K=None if b_K is None else b_K.reshape(-1, d_head),
        b_V=None if b_V is None else b_V.reshape(-1, d_head),
        b_O=b_O,
        scale=float(scale),
        window=family.windows(config, layer),
        softcap=family.setting(config, "attn_logit_softcapping"),
        clip=family.setting(config, "clip_qkv"),
        q_norm=_read_optional_norm(attn, "q_norm", family),
        k_norm=_read_optional_norm(attn, "k_norm", family),
        rotary=rotary,
        rotary_interleaved=family.rotary == "interleaved",
    )


def _as_one_matrix(W: Tensor) -> Tensor:
    """The same [n, d_model, d_head], in a layout of which [d_model, n * d_head] is a view."""
    n, d_model, d_head = W.shape
    return W.transpose(0, 1).reshape(d_model, n * d_head).view(d_model, n, d_head).transpose(0, 1)


def _read_mlp(mlp: Any, config: Any) -> MLP:
    W_in, b_in = _read_linear(getattr(mlp, "in"))
    W_out, b_out = _read_linear(mlp.out)
    W_gate, b_gate = _read_linear(mlp.gate) if hasattr(mlp, "gate") else (None, None)
    name = next(
        getattr(config, key)
        for key in ("hidden_activation", "hidden_act", "activation_function")
        if getattr(config, key, None)
    )
    is_tanh = name in ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")
    activation = gelu_tanh if is_tanh else ACT2FN[name]
    return MLP(W_in, b_in, W_gate, b_gate, W_out, b_out, activation)


def _read_linear(module: Any) -> tuple[Tensor, Tensor | None]:
    inner = module.original_component
    weight = inner.weight.detach()
    if type(inner).__name__ == "Conv1D":  # GPT-2 stores [d_in, d_out]
        weight = weight.T
    return weight, _frozen(getattr(inner, "bias", None))


def _frozen(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()


def _rotary_of_module(bridge: Any, layer_type: str | None) -> RotaryTable:
    """Rotary tables from the model's own module, because configs are read in several ways."""
    module = bridge.rotary_emb.original_component
    weight = bridge.embed.original_component.weight
    takes_type = "layer_type" in inspect.signature(module.forward).parameters
    extra: Sequence[str] = (layer_type,) if layer_type and takes_type else ()

    @lru_cache(maxsize=4)
    def table(n_positions: int) -> tuple[Tensor, Tensor]:
        dtype = residual_dtype(weight.dtype)
        like = torch.zeros(1, n_positions, 1, dtype=dtype, device=weight.device)
        positions = torch.arange(n_positions, device=weight.device)[None]
        with torch.no_grad():
            cos, sin = module(like, positions, *extra)
        return cos[0], sin[0]

    return table


def _gptj_rotary(bridge: Any) -> RotaryTable:
    """Rotary table of GPT-J, which stores sines, then cosines, of all positions."""
    modules = bridge.original_model.modules()
    sincos = next(part.embed_positions for part in modules if hasattr(part, "embed_positions"))
    weight = bridge.embed.original_component.weight

    @lru_cache(maxsize=4)
    def table(n_positions: int) -> tuple[Tensor, Tensor]:
        kept = sincos[:n_positions].to(weight.device, residual_dtype(weight.dtype))
        sin, cos = kept.repeat_interleave(2, dim=1).chunk(2, dim=1)
        return cos, sin

    return table

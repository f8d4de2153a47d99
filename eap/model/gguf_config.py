"""Configuration of a model in a GGUF file, from the file's own metadata.

If transformers does not map a setting, it uses the default of its configuration class, which is
the value of one particular checkpoint: the rotary base of Gemma's local layers, which layers have
a window, the scale of queries. Here the value is taken from the file; if the key is absent, it is
the value that llama.cpp assumes. A key that nothing here reads is refused.
"""

from collections.abc import Callable
from typing import Any

import transformers

from eap.model.gguf_header import PATTERN, Header
from eap.runtime.errors import quoted

ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
"""Special tokens by their name in transformers, with the name in tokenizer.ggml.<name>_token_id."""

SIZES = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
# Settings that do not change results: the size of the vocabulary is that of the embedding, and the
# quantiser of llama.cpp records what it did.
UNUSED = ("vocab_size", "rope.scaling.finetuned")


def _llama(header: Header, d_head: int) -> dict[str, Any]:
    """Settings of Llama and of models with the same blocks: rotary heads, RMS norms."""
    scale = header.setting("attention.scale") or d_head**-0.5
    if abs(scale - d_head**-0.5) > 1e-6:
        raise header.refused(
            f"its queries are scaled by {scale:.6g}, which {header.architecture} models of "
            f"transformers cannot have; theirs is {d_head**-0.5:.6g}"
        )
    return {"rope_parameters": _rotary(header, 10_000.0)}


def _gemma2(header: Header, d_head: int) -> dict[str, Any]:
    return {
        **_gemma(header, d_head, period=2, window=4096, largest=46),
        "rope_parameters": _rotary(header, 10_000.0),
        "attn_logit_softcapping": header.setting("attn_logit_softcapping", 50.0) or None,
        "final_logit_softcapping": header.setting("final_logit_softcapping", 30.0) or None,
    }


def _gemma3(header: Header, d_head: int) -> dict[str, Any]:
    local = float(header.setting("rope.freq_base_swa", 10_000.0))
    return {
        **_gemma(header, d_head, period=6, window=0, largest=62),
        "rope_parameters": {
            "full_attention": _rotary(header, 1_000_000.0),
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        },
        "final_logit_softcapping": header.setting("final_logit_softcapping") or None,
    }


def _gemma(
    header: Header, d_head: int, *, period: int, window: int, largest: int
) -> dict[str, Any]:
    """Settings that Gemma 2 and 3 share.

    Args:
        header: header of the file.
        d_head: width of a head.
        period: distance between layers with full attention, if the file does not give the pattern.
        window: window of the other layers, if the file does not give it.
        largest: number of layers of the model whose queries are scaled by d_model / n_heads.
    """
    n_layers, scalar = header.number("block_count"), float(d_head)
    if scale := header.setting("attention.scale"):
        scalar = float(scale) ** -2
    elif n_layers == largest:
        scalar = header.number("embedding_length") / header.number("attention.head_count")
    if abs(scalar - round(scalar)) > 1e-4 * scalar:
        raise header.refused(
            f"its queries are scaled by {scalar:.6g} ** -0.5; transformers takes whole numbers"
        )
    window = header.setting("attention.sliding_window", window)
    pattern = header.setting(PATTERN, period)
    if isinstance(pattern, int):
        pattern = [pattern > 0 and (layer + 1) % pattern > 0 for layer in range(n_layers)]
    if len(pattern) != n_layers:
        raise header.refused(f"its {PATTERN} is about {len(pattern)} layers, and it has {n_layers}")
    slides = [bool(window) and bool(layer) for layer in pattern]
    return {
        "query_pre_attn_scalar": round(scalar),
        "sliding_window": window or header.number("context_length"),
        "layer_types": ["sliding_attention" if local else "full_attention" for local in slides],
    }


def _d_head(header: Header) -> int:
    """Width of a head, all of whose dimensions must be rotated."""
    d_head = header.setting("attention.key_length")
    if d_head is None:
        d_head = header.number("embedding_length") // header.number("attention.head_count")
    for key in ("attention.value_length", "rope.dimension_count"):
        if header.setting(key, d_head) != d_head:
            raise header.refused(f"its {key} is {header.setting(key)} where a head has {d_head}")
    return int(d_head)


def _rotary(header: Header, base: float) -> dict[str, Any]:
    kind = header.setting("rope.scaling.type", "none")
    factor = float(header.setting("rope.scaling.factor", 1.0))
    rotary = {"rope_type": "default", "rope_theta": float(header.setting("rope.freq_base", base))}
    if kind == "linear":
        return {**rotary, "rope_type": "linear", "factor": factor}
    if kind != "none":
        raise header.refused(
            f"its positions are scaled by {quoted(str(kind))}; none and linear are read"
        )
    return rotary


ARCHITECTURES: dict[str, tuple[str, Callable[[Header, int], dict[str, Any]]]] = {
    "llama": ("LlamaForCausalLM", _llama),
    "qwen2": ("Qwen2ForCausalLM", _llama),
    "qwen3": ("Qwen3ForCausalLM", _llama),
    "gemma2": ("Gemma2ForCausalLM", _gemma2),
    "gemma3": ("Gemma3ForCausalLM", _gemma3),
}
"""Model class in transformers, and settings besides sizes (of a header and the width of a head), by
the name of the architecture in llama.cpp."""


def read_config(header: Header) -> Any:
    """Configuration that the file describes.

    Raises:
        UserError: the file describes something that the model in transformers would not compute.
    """
    architecture, tensors = header.architecture, header.tensors
    if architecture not in ARCHITECTURES:
        raise header.refused(
            f"its architecture is {quoted(architecture)}; read are {', '.join(ARCHITECTURES)}"
        )
    if header.setting("attention.causal", True) is not True:
        raise header.refused("its attention is not causal")
    if header.metadata.get("split.count", 1) > 1:
        raise header.refused("it is one part of a model in several files; merge them first")
    if "token_embd.weight" not in tensors:
        raise header.refused("it has no token_embd.weight: it is not a language model")
    name, read_settings = ARCHITECTURES[architecture]
    d_head = _d_head(header)
    settings = {
        **{ours: header.number(key) for key, ours in SIZES.items()},
        **{
            f"{role}_token_id": header.metadata.get(f"tokenizer.ggml.{key}_token_id")
            for role, key in ROLES.items()
            if role != "unk"
        },
        **read_settings(header, d_head),
        "head_dim": d_head,
        "vocab_size": int(tensors["token_embd.weight"].shape[-1]),
        "tie_word_embeddings": "output.weight" not in tensors,
        "architectures": [name],
    }
    if architecture != "qwen2":  # in which q, k and v have a bias, and the output has none
        settings["attention_bias"] = "blk.0.attn_q.bias" in tensors
    prefix = f"{architecture}."
    known = header.used | {f"{prefix}{key}" for key in UNUSED}
    unknown = [key for key in header.metadata if key.startswith(prefix) and key not in known]
    if unknown:
        raise header.refused(f"it has the setting {unknown[0]}, which {name} does not have")
    return getattr(transformers, name).config_class(**settings)

"""Tiny random models of every supported family, and random pairs of prompts for them.

The weights are larger than a fresh initialisation would make them, and biases and norm weights are
random too: attention is far from uniform and every term of the forward pass matters, so a mistake
in any of them moves the result.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformer_lens.model_bridge import TransformerBridge

from eap.data.dataset import Example

D_VOCAB = 50
MAX_POSITIONS = 32
WINDOW = 4
"""Attention window of the families that have one: shorter than the prompts of the tests."""

# Names shared by the configurations of most families.
_LLAMA = {
    "vocab_size": D_VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_POSITIONS,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
# Where half of a head is rotated, it needs at least 8 dimensions for two frequencies.
_WIDE_HEADS = {"hidden_size": 24, "num_attention_heads": 3}
_NEOX = {
    "vocab_size": D_VOCAB,
    **_WIDE_HEADS,
    "intermediate_size": 24,
    "max_position_embeddings": MAX_POSITIONS,
    "rotary_pct": 0.5,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_GPT2 = {
    "vocab_size": D_VOCAB,
    "n_embd": 16,
    "n_head": 4,
    "n_positions": MAX_POSITIONS,
    "bos_token_id": 0,
    "eos_token_id": 0,
}

# family -> (name of the configuration class, its arguments as a function of the number of layers)
_CONFIGS: dict[str, tuple[str, Any]] = {
    "gpt2": ("GPT2Config", lambda n: {**_GPT2, "n_layer": n}),
    "neox": ("GPTNeoXConfig", lambda n: {**_NEOX, "num_hidden_layers": n}),
    "neox_sequential": (
        "GPTNeoXConfig",
        lambda n: {**_NEOX, "num_hidden_layers": n, "use_parallel_residual": False},
    ),
    "llama": ("LlamaConfig", lambda n: {**_LLAMA, "num_hidden_layers": n}),
    "mistral": (
        "MistralConfig",
        lambda n: {**_LLAMA, "num_hidden_layers": n, "sliding_window": WINDOW, "head_dim": 4},
    ),
    "qwen2": ("Qwen2Config", lambda n: {**_LLAMA, "num_hidden_layers": n}),
    "qwen3": ("Qwen3Config", lambda n: {**_LLAMA, "num_hidden_layers": n, "head_dim": 6}),
    "smollm3": (
        "SmolLM3Config",
        # 0: a layer without positional encoding. They alternate here, beginning with rotary.
        lambda n: {
            **_LLAMA,
            "num_hidden_layers": n,
            "no_rope_layers": [(layer + 1) % 2 for layer in range(n)],
        },
    ),
    "olmo": ("OlmoConfig", lambda n: {**_LLAMA, "num_hidden_layers": n}),
    "olmo_clipped": ("OlmoConfig", lambda n: {**_LLAMA, "num_hidden_layers": n, "clip_qkv": 1.0}),
    "gemma2": (
        "Gemma2Config",
        lambda n: {
            **_LLAMA,
            "num_hidden_layers": n,
            "head_dim": 6,
            "query_pre_attn_scalar": 9,
            "sliding_window": WINDOW,
            # Far lower than in published models, so that both caps bend their arguments.
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": (
        "Gemma3TextConfig",
        lambda n: {
            **_LLAMA,
            "num_hidden_layers": n,
            "head_dim": 6,
            "query_pre_attn_scalar": 9,
            "sliding_window": WINDOW,
            "layer_types": [
                "sliding_attention" if layer % 2 == 0 else "full_attention" for layer in range(n)
            ],
        },
    ),
    "gptj": (
        "GPTJConfig",
        lambda n: {
            **_GPT2,
            "n_layer": n,
            "n_embd": 24,
            "n_head": 3,
            "rotary_dim": 4,
            "tie_word_embeddings": False,
        },
    ),
    "phi": (
        "PhiConfig",
        lambda n: {
            **_LLAMA,
            **_WIDE_HEADS,
            "num_hidden_layers": n,
            "num_key_value_heads": 3,
            "partial_rotary_factor": 0.5,
        },
    ),
    "gpt_neo": (
        "GPTNeoConfig",
        lambda n: {
            "vocab_size": D_VOCAB,
            "hidden_size": 16,
            "num_layers": n,
            "num_heads": 4,
            "intermediate_size": 24,
            "max_position_embeddings": MAX_POSITIONS,
            "window_size": WINDOW,
            "attention_types": [[["global", "local"], math.ceil(n / 2)]],
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
    ),
    "opt": (
        "OPTConfig",
        lambda n: {
            "vocab_size": D_VOCAB,
            "hidden_size": 16,
            "num_hidden_layers": n,
            "num_attention_heads": 4,
            "ffn_dim": 24,
            "word_embed_proj_dim": 16,
            "max_position_embeddings": MAX_POSITIONS,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "pad_token_id": 1,
        },
    ),
}

FAMILIES = tuple(_CONFIGS)
MAIN_FAMILIES = ("gpt2", "neox", "llama")
"""Learned positions and fused projections; parallel blocks; grouped-query attention."""
PARALLEL_FAMILIES = ("neox", "gptj", "phi")
GROUPED_FAMILIES = tuple(
    family
    for family, (_, arguments) in _CONFIGS.items()
    if arguments(2).get("num_key_value_heads", 4) == 2
)


def tiny_hf(
    family: str,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    n_layers: int = 2,
    **config_arguments: Any,
) -> transformers.PreTrainedModel:
    """A Hugging Face model with random weights: 3 or 4 heads, d_model 16 or 24, 50 tokens.

    The same arguments give the same weights. Attention is eager, as everywhere in this project.
    `config_arguments` override the arguments of the family's configuration class.
    """
    class_name, arguments = _CONFIGS[family]
    config = getattr(transformers, class_name)(**{**arguments(n_layers), **config_arguments})
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    # The bridge chooses its adapter by this name.
    model.config.architectures = [type(model).__name__]
    # GPT-Neo does not scale its attention scores; smaller weights make up for it.
    _randomise(model, seed, gain=0.9 if family == "gpt_neo" else 1.2)
    model = model.to(dtype).eval().requires_grad_(False)
    if family == "gptj" and dtype == torch.float64:
        _exact_rotary_tables(model)
    return model


def _exact_rotary_tables(model: Any) -> None:
    """GPT-J keeps its tables as a buffer, computed in float32: compute them in float64."""
    d_rotary = model.config.rotary_dim
    frequencies = 1.0 / 10000 ** (torch.arange(0, d_rotary, 2) / d_rotary)
    angles = torch.arange(MAX_POSITIONS).double()[:, None] * frequencies.double()
    table = torch.cat([angles.sin(), angles.cos()], dim=-1)
    for module in model.modules():  # one table in all, or one a layer in older versions
        if hasattr(module, "embed_positions"):
            module.embed_positions = table.to(module.embed_positions.device)


def tiny_bridge(
    family: str,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    n_layers: int = 2,
    **config_arguments: Any,
) -> TransformerBridge:
    """A bridge around `tiny_hf` of the same arguments; it shares no tensor with other calls."""
    model = tiny_hf(family, seed=seed, dtype=dtype, n_layers=n_layers, **config_arguments)
    return bridge_of(model)


def bridge_of(model: transformers.PreTrainedModel) -> TransformerBridge:
    """A bridge around a copy of `model` (booting a bridge replaces submodules in place)."""
    return TransformerBridge.boot_transformers(
        "tiny",
        hf_model=copy.deepcopy(model),
        tokenizer=tiny_tokenizer(),
        device="cpu",
        dtype=model.dtype,
    )


def tiny_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A word-level tokenizer of 50 tokens: `<bos>`, `<pad>`, `<unk>`, then `w3` .. `w49`."""
    words = ["<bos>", "<pad>", "<unk>", *(f"w{index}" for index in range(3, D_VOCAB))]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<bos>",
        pad_token="<pad>",
        unk_token="<unk>",
        name_or_path="tiny",
        add_bos_token=True,
    )


def _randomise(model: transformers.PreTrainedModel, seed: int, *, gain: float) -> None:
    """Fill every parameter: matrices with `gain`, biases 0.3, norm weights about their centre."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    # A norm whose weight starts at zero is an offset to one (Gemma).
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if id(parameter) in embeddings:
                # Where they are the unembedding too, larger ones would make logits too far apart.
                parameter.copy_(noise * (0.5 if model.config.tie_word_embeddings else 1.0))
            elif parameter.ndim == 2:
                parameter.copy_(noise * gain / math.sqrt(min(parameter.shape)))
            else:
                centre = parameter.mean() if parameter.numel() else 0.0
                parameter.copy_(centre + 0.3 * noise)


def random_examples(
    lengths: Sequence[int],
    first_differences: Sequence[int | None],
    *,
    seed: int = 0,
    n_answers: Sequence[tuple[int, int]] = ((1, 1), (2, 3)),
    bos: int | None = None,
) -> tuple[Example, ...]:
    """One example for every entry of `lengths`, on token ids 3 .. 49.

    The prompts of pair i are equal before position `first_differences[i]` and differ there; after
    it, each position differs with probability one half. None makes them equal throughout. With
    `bos` they begin with that token, before the `lengths[i]` others.
    `n_answers` gives the sizes of the correct and incorrect sets, which are disjoint, and is
    repeated as needed.
    """
    if len(lengths) != len(first_differences):
        raise ValueError("one first difference is needed for every length")
    source = random.Random(seed)
    begin = () if bos is None else (bos,)
    examples = []
    for index, (length, first) in enumerate(zip(lengths, first_differences, strict=True)):
        if first is not None and not 0 <= first < length:
            raise ValueError(f"first difference {first} lies outside a prompt of {length} tokens")
        clean = [source.randrange(3, D_VOCAB) for _ in range(length)]
        corrupted = list(clean)
        if first is not None:
            for position in range(first, length):
                if position == first or source.random() < 0.5:
                    others = [token for token in range(3, D_VOCAB) if token != clean[position]]
                    corrupted[position] = source.choice(others)
        n_correct, n_incorrect = n_answers[index % len(n_answers)]
        answers = source.sample(range(3, D_VOCAB), n_correct + n_incorrect)
        examples.append(
            Example(
                clean=(*begin, *clean),
                corrupted=(*begin, *corrupted),
                correct=tuple(answers[:n_correct]),
                incorrect=tuple(answers[n_correct:]),
            )
        )
    return tuple(examples)

"""Tiny models written as GGUF files, the way llama.cpp's converter writes published ones."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.models.tiny import D_VOCAB

LETTERS = [chr(ord("a") + index) for index in range(26)]
DIGITS = [str(digit) for digit in range(10)]
SPECIAL = ["<bos>", "<eos>", "<unk>"]
ADDED = "<think>"
SPACE = {"llama": "\u2581", "gpt2": "\u0120"}


def vocabulary(kind: str) -> tuple[list[str], list[int]]:
    """50 tokens and their types: three of control, one added, letters, digits, a few words."""
    space = SPACE[kind]
    words = [space, "12", "ab", "the"[:2], f"{space}a", f"{space}1", "cd", "ef", "34", "56"]
    tokens = [*SPECIAL, ADDED, *LETTERS, *DIGITS, *words]
    assert len(tokens) == D_VOCAB
    return tokens, [3, 3, 3, 4] + [1] * (D_VOCAB - 4)


def write_gguf(
    path: Path,
    model: Any,
    *,
    tokenizer: str = "llama",
    settings: dict[str, Any] | None = None,
    metadata: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
    file_type: int = 0,
) -> Path:
    """Write a model of `tests.models.tiny.tiny_hf`.

    Args:
        path: of the file.
        model: llama, qwen2, qwen3, gemma2 or gemma3.
        tokenizer: `llama` (SentencePiece) or `gpt2` (byte-level).
        settings: of the architecture, besides sizes; None removes one.
        metadata: whole keys, likewise.
        tensors: besides the model's.
        file_type: what is said of the quantisation.
    """
    config = model.config
    architecture = config.model_type.removesuffix("_text")
    values: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "attention.key_length": config.head_dim,
        **(settings or {}),
    }
    tokens, types = vocabulary(tokenizer)
    whole = {
        "tokenizer.ggml.model": tokenizer,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 2,
        "general.file_type": file_type,
    }
    if tokenizer == "gpt2":
        whole |= {"tokenizer.ggml.merges": ["1 2", "a b"], "tokenizer.ggml.pre": "smollm"}
    else:
        whole["tokenizer.ggml.scores"] = [-float(index) for index in range(len(tokens))]
    whole |= {f"{architecture}.{key}": value for key, value in values.items()} | (metadata or {})

    writer = gguf.GGUFWriter(path, architecture)
    for key, value in whole.items():
        if value is not None:
            _add(writer, key, value)
    for name, array in (_tensors(model, architecture) | (tensors or {})).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
        return
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    kinds.get(type(value), writer.add_string)(key, value)


def _tensors(model: Any, architecture: str) -> dict[str, np.ndarray]:
    """As the converter stores them: Llama's rotated pairs side by side, Gemma's norms plus one."""
    config = model.config
    (number,) = (key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    arrays = {}
    for name, parameter in model.named_parameters():
        stem, end = name.rsplit(".", 1)
        stored = names.get_name(stem)
        array = parameter.detach().float().numpy()
        kind = stored.rsplit(".", 1)[-1]
        if architecture == "llama" and kind in heads:
            pairs = array.reshape(heads[kind], 2, -1, *array.shape[1:])
            array = pairs.swapaxes(1, 2).reshape(array.shape)
        if architecture.startswith("gemma") and kind.endswith("norm"):
            array = array + 1
        arrays[f"{stored}.{end}"] = np.ascontiguousarray(array)
    return arrays

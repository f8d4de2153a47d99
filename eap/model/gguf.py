"""A model in one GGUF file, the format of llama.cpp: weights, settings and tokenizer.

The weights are dequantised by the package `gguf`; the settings and the tokenizer come from the
file's own metadata (`gguf_config`, `gguf_tokenizer`). A file is refused if it has a setting, a
tensor or a token that the model in transformers would ignore.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (needs `pip install gguf`).
"""

import hashlib
from pathlib import Path
from typing import Any

import torch
import transformers
from einops import rearrange
from torch import Tensor
from transformers import PreTrainedModel

from eap.model.gguf_config import read_config
from eap.model.gguf_header import Header, library
from eap.model.saved_model import quiet_libraries
from eap.runtime.errors import UserError, first_line
from eap.runtime.home import from_home


def find_file(name: str) -> Path | None:
    """Path of the GGUF file that a model name refers to; None: the name is not of a GGUF file.

    Raises:
        UserError: the name ends in .gguf and there is no such file.
    """
    if not name.lower().endswith(".gguf") or "\0" in name:
        return None
    path = from_home(name)
    if path.is_dir():
        return None
    if not path.is_file():
        raise UserError(f"no file at {path}")
    return path


def read_model(header: Header, dtype: torch.dtype) -> PreTrainedModel:
    """Read the model of a GGUF file, with dequantised weights and in evaluation mode.

    Args:
        header: header of the file.
        dtype: dtype of the dequantised weights.

    Raises:
        UserError: the file is broken, not supported, or describes something that the model in
            transformers would not compute.

    Example:
        >>> model = read_model(read_header(Path("gemma-3-270m-q4_k_m.gguf")), torch.float32)
    """
    config = read_config(header)
    model_class = getattr(transformers, config.architectures[0])
    names = _names_of_parameters(header, config, model_class)
    model: PreTrainedModel
    try:
        weights = {
            names[stored]: _read_tensor(header, config, stored).to(dtype)
            for stored in header.tensors
        }
        with quiet_libraries():
            model, report = model_class.from_pretrained(
                None, config=config, state_dict=weights, dtype=dtype, output_loading_info=True
            )
    except Exception as error:  # every library raises its own kind of error
        raise header.refused(first_line(error)) from error
    if missing := sorted(report["missing_keys"]):
        raise header.refused(f"its weights lack {missing[0]} (of {len(missing)})")
    return model.eval()


def _names_of_parameters(header: Header, config: Any, model_class: Any) -> dict[str, str]:
    """Names of the model's parameters, by their names in the file.

    Raises:
        UserError: a tensor of the file is not a parameter of the model (such as factors of the
            rotary frequencies, or an extra bias).
    """
    (number,) = (
        key for key, name in library.MODEL_ARCH_NAMES.items() if name == header.architecture
    )
    mapping = library.get_tensor_name_map(number, config.num_hidden_layers)
    with torch.device("meta"):
        parameters = model_class(config).state_dict()
    names = {}
    for name in parameters:
        stem, end = name.rsplit(".", 1)
        if stored := mapping.get_name(stem):
            names[f"{stored}.{end}"] = name
    if unknown := [tensor for tensor in header.tensors if tensor not in names]:
        raise header.refused(
            f"its tensor {unknown[0]} (of {len(unknown)}) has no place in {model_class.__name__}"
        )
    return names


def _read_tensor(header: Header, config: Any, name: str) -> Tensor:
    """Dequantised tensor, as the model in transformers has it."""
    tensor, kind = header.tensors[name], name.split(".")[-2]
    values = library.dequantize(tensor.data, tensor.tensor_type)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    if header.architecture == "llama" and kind in heads:  # pairs that are rotated are neighbours
        values = rearrange(
            values, "(head pair two) ... -> (head two pair) ...", head=heads[kind], two=2
        )
    if header.architecture.startswith("gemma") and kind.endswith("norm"):
        values = values - 1
    return torch.tensor(values)  # a copy, because the file is only mapped into memory


def source_of(header: Header) -> dict[str, Any]:
    """Name and SHA-256 of the file, and the quantisation of its weights."""
    with header.path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    number = header.metadata.get("general.file_type")
    if number in set(library.LlamaFileType):  # Q4_K_M, for example
        name = str(library.LlamaFileType(number).name)
        quantisation = name.removeprefix("MOSTLY_").removeprefix("ALL_")
    else:
        kinds = {tensor.tensor_type.name for tensor in header.tensors.values()}
        quantisation = ", ".join(sorted(kinds))
    return {"file": header.path.name, "weights_sha256": digest, "quantisation": quantisation}

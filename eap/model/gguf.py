"""A model in one GGUF file, the format of llama.cpp: weights, settings and tokenizer.

transformers dequantises the weights and builds the tokenizer; the settings come from the file's own
metadata (`gguf_config`, `gguf_tokenizer`). A file is refused if it has a setting, a tensor or a
token that transformers would ignore.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (needs `pip install gguf`).
"""

import hashlib
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from eap.model.gguf_config import read_config
from eap.model.gguf_header import Header, alone, library, read_header
from eap.model.gguf_tokenizer import read_tokenizer
from eap.runtime.errors import UserError, first_line
from eap.runtime.home import from_home


@dataclass(frozen=True)
class Stored:
    """Contents of a GGUF file.

    Attributes:
        model: model with dequantised weights, in evaluation mode.
        tokenizer: tokenizer with the ids of the file, without a BOS token if the file says that
            prompts have none; None: not requested.
        source: name and SHA-256 of the file, and the quantisation of its weights.
    """

    model: PreTrainedModel
    tokenizer: Any
    source: dict[str, Any]


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


def read_file(path: Path, *, dtype: torch.dtype, tokenizer: bool = True) -> Stored:
    """Read the model, the tokenizer and the provenance of a GGUF file.

    Args:
        path: path of the file.
        dtype: dtype of the dequantised weights.
        tokenizer: whether to read the tokenizer.

    Raises:
        UserError: the package `gguf` is missing, or the file is broken, not supported, or describes
            something that transformers would not compute.

    Example:
        >>> stored = read_file(Path("gemma-3-270m-q4_k_m.gguf"), dtype=torch.float32)
    """
    header = read_header(path)
    config = read_config(header)
    _check_tensors(header, config)
    model_class = getattr(transformers, config.architectures[0])
    try:
        with alone(path) as folder, _quiet():
            model, report = model_class.from_pretrained(
                folder, gguf_file=path.name, config=config, dtype=dtype, output_loading_info=True
            )
    except Exception as error:  # every library raises its own kind of error
        raise header.refused(first_line(error)) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise header.refused(f"its weights lack {missing[0]} (of {len(missing)})")
    _check_norm(header, model)
    # Once dequantised, this is a model like any other.
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return Stored(
        model=model.eval(),
        tokenizer=read_tokenizer(header) if tokenizer else None,
        source={
            "file": path.name,
            "weights_sha256": _hash(path),
            "quantisation": _quantisation(header),
        },
    )


def _check_tensors(header: Header, config: Any) -> None:
    """Check that every tensor of the file is a parameter of the model.

    Raises:
        UserError: a tensor is not (such as factors of the rotary frequencies, or an extra bias).
    """
    with torch.device("meta"):
        names = getattr(transformers, config.architectures[0])(config).state_dict()
    (number,) = (
        key for key, name in library.MODEL_ARCH_NAMES.items() if name == header.architecture
    )
    mapping = library.get_tensor_name_map(number, config.num_hidden_layers)
    ends = (".weight", ".bias")
    known = {
        f"{mapping.get_name(stem, ends) or stem}.{end}"
        for stem, end in (name.rsplit(".", 1) for name in names)
    }
    if unknown := [name for name in header.tensors if name not in known]:
        raise header.refused(
            f"its tensor {unknown[0]} (of {len(unknown)}) has no place in {config.architectures[0]}"
        )


def _check_norm(header: Header, model: Any) -> None:
    """Check that the weight of the last norm is that of the file; Gemma's class stores weight - 1.

    Raises:
        UserError: the weights differ.
    """
    weights = torch.from_numpy(header.tensors["output_norm.weight"].data.copy()).float()
    norm = model.get_submodule(
        "transformer.ln_f" if header.architecture == "gpt2" else "model.norm"
    )
    offset = 1.0 if header.architecture.startswith("gemma") else 0.0
    difference = float((norm.weight.detach().float().cpu() + offset - weights).abs().max())
    if not difference <= 2e-2 * float(weights.abs().max()):
        raise header.refused(
            f"the weights of its last norm were read with an error of {difference:.2g}: "
            "this version of transformers adds another offset than the file has"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the library's progress bar if there is no terminal."""
    with nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):
        yield


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _quantisation(header: Header) -> str:
    """Name of the quantisation in llama.cpp (`Q4_K_M`), or the types of the tensors."""
    number = header.metadata.get("general.file_type")
    if number in set(library.LlamaFileType):
        name = library.LlamaFileType(number).name
        return str(name.removeprefix("MOSTLY_").removeprefix("ALL_"))
    return ", ".join(sorted({tensor.tensor_type.name for tensor in header.tensors.values()}))

"""Directories of models: required files, checks of their contents, configurations and hashes."""

import hashlib
import json
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from eap.runtime.errors import UserError, first_line, quoted
from eap.runtime.home import from_home
from eap.runtime.shipped import data_folder

TOY_MODEL = data_folder() / "toy-model"

# Settings of a configuration that are numbers of layers or sizes of matrices.
SIZES = (
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_size",
    "intermediate_size",
    "ffn_dim",
    "n_inner",
    "head_dim",
    "vocab_size",
)
WEIGHTS = ("*.safetensors", "*.bin")
SETTINGS = ("*.json", "*.model", "*.txt")
ADAPTER = "adapter_config.json"
# Settings files that the libraries read as JSON objects.
OBJECTS = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    ADAPTER,
)
TOKENIZER = "a tokenizer (tokenizer.json, vocab.json or *.model)"
NEEDED = {
    "config.json": ("config.json",),
    "weights (*.safetensors or *.bin)": WEIGHTS,
    TOKENIZER: ("tokenizer.json", "vocab.json", "*.model"),
}


def find_directory(name: str) -> Path | None:
    """Directory that a name refers to, including `toy`; None: the name is of a model of the hub.

    Raises:
        UserError: the name is empty, or looks like a path and there is no directory.
    """
    if not name.strip() or "\0" in name:
        raise UserError(f"{quoted(name)} is not a model: give a directory, a hub name or 'toy'")
    path = TOY_MODEL if name == "toy" else from_home(name)
    try:
        if path.is_dir():
            return path
        is_file = path.is_file()
    except (OSError, ValueError):
        raise UserError(f"{quoted(name)} is not a model: the name cannot be a path") from None
    if is_file:
        raise UserError(f"{quoted(str(path))} is a file; give the model's directory")
    if name == "toy" or name.startswith((".", "/", "~")):
        raise UserError(f"no model directory at {path}; give a directory, a hub name or 'toy'")
    return None


def check_directory(path: Path, *, tokenizer: bool = True) -> None:
    """Check that a directory has everything that a model needs, in regular files.

    Args:
        path: path of the directory.
        tokenizer: whether a tokenizer is needed.

    Raises:
        UserError: a file is missing, or is a pipe or a device, which would block reading.
    """
    for file in _matching(path, (*WEIGHTS, *SETTINGS)):
        if not file.is_file():
            raise UserError(f"{path} is not loaded: {file.name} is not a regular file")
    if (path / ADAPTER).exists() and not (path / "config.json").exists():
        base = read_json(path / ADAPTER).get("base_model_name_or_path") or "its base model"
        raise UserError(
            f"{path} is an adapter, not a model: put it beside the weights of {quoted(base)}, or "
            "merge it with PEFT (merge_and_unload) and save the result"
        )
    _check_settings(path)
    _check_shards(path)
    for needed, patterns in NEEDED.items():
        if needed == TOKENIZER and not tokenizer:
            continue
        if not any(_matching(path, patterns)):
            raise UserError(f"{path} is not a Hugging Face model directory: it has no {needed}")


def read_config(name: str, path: Path | None, revision: str | None = None) -> Any:
    """Read the configuration of a model, without running code that comes with it.

    Raises:
        UserError: there is no configuration, or the weights cannot be those of the model that it
            describes.
    """
    try:
        config = AutoConfig.from_pretrained(
            str(path or name), revision=revision or "main", trust_remote_code=False
        )
    except Exception as error:  # every library raises its own kind of error
        raise UserError(f"cannot load model {quoted(name)}: {first_line(error)}") from None
    if getattr(config, "quantization_config", None):
        raise UserError(
            f"cannot load model {quoted(name)}: its weights are quantized; give the weights in "
            "floating point"
        )
    for what, value in config.to_dict().items():
        if isinstance(value, float) and not isfinite(value):
            raise UserError(f"cannot load model {quoted(name)}: its {what} is {value}")
    given = {what: getattr(config, what, None) for what in SIZES}
    sizes = {what: size for what, size in given.items() if isinstance(size, int)}
    for what, size in sizes.items():
        if size < 1:
            raise UserError(f"cannot load model {quoted(name)}: its {what} is {size}")
    if path is not None:
        n_bytes = sum(file.stat().st_size for file in _matching(path, WEIGHTS))
        width = sizes.get("hidden_size", 1)
        # Each setting is one side of a matrix whose other side is the width. The limits, a quarter
        # of a byte per weight and a quarter of a square matrix per layer, are far below any model.
        parts = {what: width * size // 4 for what, size in sizes.items()}
        parts["num_hidden_layers"] = sizes.get("num_hidden_layers", 1) * width * width // 16
        what = max(parts, key=lambda part: parts[part], default="")
        if what and parts[what] > max(n_bytes, 2**16):
            raise UserError(
                f"cannot load model {quoted(name)}: its {what} is {sizes[what]} where hidden_size "
                f"is {width}, which weights of {n_bytes} bytes cannot hold"
            )
    return config


def hash_directory(path: Path) -> dict[str, Any]:
    """Identity of a directory: its name, a hash of its weights, and a hash of its settings."""
    return {
        "directory": path.resolve().name,
        "weights_sha256": _hash_files(
            path, {*_matching(path, WEIGHTS), *(path / shard for shard in _shards(path))}
        ),
        "settings_sha256": _hash_files(path, set(_matching(path, SETTINGS))),
    }


def read_json(path: Path) -> dict[str, Any]:
    """Contents of a JSON file with an object; empty if the file is missing or has no object."""
    read = _parsed(path)
    return read if isinstance(read, dict) else {}


def _parsed(path: Path) -> Any:
    """Contents of a JSON file; an empty object if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError, RecursionError):
        return {}


def _check_settings(path: Path) -> None:
    """Check that settings files hold JSON objects; for others, libraries raise unclear errors.

    Raises:
        UserError: a file holds something else.
    """
    for name in OBJECTS:
        read = _parsed(path / name)
        if not isinstance(read, dict):
            kind = "null" if read is None else type(read).__name__
            raise UserError(f"{path}: {name} holds {kind}, where a JSON object is needed")


def _check_shards(path: Path) -> None:
    """Check that the files named by an index are in the directory, because only these are hashed.

    Raises:
        UserError: a file is outside the directory.
    """
    for shard in _shards(path):
        parts = Path(shard).parts
        if Path(shard).is_absolute() or ".." in parts:
            raise UserError(
                f"{path}: its index names weights outside the directory, {quoted(shard)}; put all "
                "shards into the directory"
            )


def _shards(path: Path) -> set[str]:
    """Names of the weight files that the indices in a directory refer to."""
    maps = (read_json(index).get("weight_map") for index in path.glob("*.index.json"))
    return {str(name) for of_map in maps if isinstance(of_map, dict) for name in of_map.values()}


def _matching(folder: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    return (file for pattern in patterns for file in folder.glob(pattern))


def _hash_files(folder: Path, files: set[Path]) -> str:
    """SHA-256 over the names and contents of some files in a folder."""
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(str(file.relative_to(folder)).encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()

"""Model directories as people have them: what must be there, what is no file, what they hold."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from eap.errors import UserError, first_line, quoted
from eap.runtime.home import from_home
from eap.runtime.shipped import data_folder

TOY_MODEL = data_folder() / "toy-model"

# Of a configuration: numbers of layers, and sides of matrices.
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
TOKENIZER = "a tokenizer (tokenizer.json, vocab.json or *.model)"
NEEDED = {
    "config.json": ("config.json",),
    "weights (*.safetensors or *.bin)": WEIGHTS,
    TOKENIZER: ("tokenizer.json", "vocab.json", "*.model"),
}


def find_directory(name: str) -> Path | None:
    """The directory that a name means, `toy` included; None: it is a name of the hub.

    Raises:
        UserError: the name is empty, or looks like a path where there is no directory.
    """
    if not name.strip() or "\0" in name:
        raise UserError(f"{quoted(name)} is no model: give a directory, a hub name or 'toy'")
    path = TOY_MODEL if name == "toy" else from_home(name)
    try:
        if path.is_dir():
            return path
        is_file = path.is_file()
    except (OSError, ValueError):
        raise UserError(f"{quoted(name)} is no model: the name cannot be a path") from None
    if is_file:
        raise UserError(f"{quoted(str(path))} is a file; give the model's directory")
    if name == "toy" or name.startswith((".", "/", "~")):
        raise UserError(f"no model directory at {path}; give a directory, a hub name or 'toy'")
    return None


def check_directory(path: Path, *, tokenizer: bool = True) -> None:
    """Whether a directory has what a model needs, in regular files.

    Args:
        path: the directory.
        tokenizer: whether it needs one.

    Raises:
        UserError: something is missing, or is a pipe or a device, which reading would wait on.
    """
    for file in _matching(path, (*WEIGHTS, *SETTINGS)):
        if not file.is_file():
            raise UserError(f"{path} is not loaded: {file.name} is not a regular file")
    for needed, patterns in NEEDED.items():
        if needed == TOKENIZER and not tokenizer:
            continue
        if not any(_matching(path, patterns)):
            raise UserError(f"{path} is not a Hugging Face model directory: it has no {needed}")


def read_config(name: str, path: Path | None) -> Any:
    """The configuration of a model, without running code that comes with it.

    Raises:
        UserError: there is none, or it describes no model that the weights could be.
    """
    try:
        config = AutoConfig.from_pretrained(str(path or name), trust_remote_code=False)
    except Exception as error:  # every library below raises its own kind
        raise UserError(f"cannot load model {quoted(name)}: {first_line(error)}") from None
    given = {what: getattr(config, what, None) for what in SIZES}
    sizes = {what: size for what, size in given.items() if isinstance(size, int)}
    for what, size in sizes.items():
        if size < 1:
            raise UserError(f"cannot load model {quoted(name)}: its {what} is {size}")
    if path is not None:
        n_bytes = sum(file.stat().st_size for file in _matching(path, WEIGHTS))
        width = sizes.get("hidden_size", 1)
        # Each is a side of a matrix, whose other side is the width; a quarter of a byte a weight,
        # a quarter of a square matrix a layer: far below any model.
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
    """What identifies a directory: its name, a hash of its weights, and one of its settings."""
    return {
        "directory": path.resolve().name,
        "weights_sha256": _hash_files(path, WEIGHTS),
        "settings_sha256": _hash_files(path, SETTINGS),
    }


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where the file is missing or is none."""
    try:
        read = json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}


def _matching(folder: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    return (file for pattern in patterns for file in folder.glob(pattern))


def _hash_files(folder: Path, patterns: tuple[str, ...]) -> str:
    """SHA-256 over the names and contents of a folder's files."""
    digest = hashlib.sha256()
    for file in sorted(set(_matching(folder, patterns))):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()

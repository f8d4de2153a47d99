"""Metadata and tensors of a GGUF file, by name."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lazy_loader

from eap.runtime.errors import UserError, first_line, quoted

library = lazy_loader.load("gguf", error_on_import=False)

PATTERN = "attention.sliding_window_pattern"


@dataclass(frozen=True)
class Header:
    """The metadata and the tensors of a file, by name; tensors are read when used."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Any]

    @property
    def architecture(self) -> str:
        """As llama.cpp calls it: `llama`, `gemma3`."""
        return str(self.metadata["general.architecture"])

    def setting(self, key: str, default: Any = None) -> Any:
        """A setting of the architecture; one value a layer is one value if all are equal."""
        value = self.metadata.get(f"{self.architecture}.{key}", default)
        if isinstance(value, list) and key != PATTERN and len(set(value)) == 1:
            return value[0]
        return value

    def number(self, key: str) -> Any:
        """A number that the file must have."""
        value = self.setting(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
            what = "missing" if value is None else quoted(str(value))
            raise self.refused(f"its {self.architecture}.{key} is {what}; it must be a number")
        return value

    def refused(self, why: str) -> UserError:
        """An error that names the file."""
        return UserError(f"cannot load {self.path.name}: {why}")


def read_header(path: Path) -> Header:
    """Metadata and tensors of a file.

    Raises:
        UserError: `gguf` is missing, or the file is no whole GGUF file.
    """
    try:
        reader_class = library.GGUFReader
    except ModuleNotFoundError:
        raise UserError(
            f"{path.name} is a GGUF file, which needs the package `gguf` (pip install gguf)"
        ) from None
    try:
        reader = reader_class(path)
        metadata = {key: field.contents() for key, field in reader.fields.items()}
        metadata["general.architecture"]
    except Exception as error:  # what numpy says of bytes that are not there
        raise UserError(
            f"cannot load {path.name}: it is no whole GGUF file ({first_line(error)})"
        ) from None
    return Header(path, metadata, {tensor.name: tensor for tensor in reader.tensors})


@contextmanager
def alone(path: Path) -> Iterator[str]:
    """A folder with nothing but the file: settings that lie beside it are of another model."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / path.name).symlink_to(path.resolve())
        yield folder

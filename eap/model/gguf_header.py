"""Header of a GGUF file: metadata and tensors by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import lazy_loader
import numpy as np

from eap.runtime.errors import UserError, first_line, quoted

library = lazy_loader.load("gguf", error_on_import=False)

PATTERN = "attention.sliding_window_pattern"


@dataclass(frozen=True)
class Header:
    """Metadata and tensors of a file, by name; a tensor is read when it is used.

    Attributes:
        path: path of the file.
        metadata: values of all keys.
        tensors: tensors as stored.
        used: keys of the architecture's settings that have been asked for.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Any]
    used: set[str] = field(default_factory=set)

    @property
    def architecture(self) -> str:
        """Name of the architecture in llama.cpp, such as `llama` or `gemma3`."""
        return str(self.metadata["general.architecture"])

    def setting(self, key: str, default: Any = None) -> Any:
        """Setting of the architecture; a list with one value per layer is reduced if all agree."""
        self.used.add(f"{self.architecture}.{key}")
        value = self.metadata.get(f"{self.architecture}.{key}", default)
        if isinstance(value, list) and key != PATTERN and len(set(value)) == 1:
            return value[0]
        return value

    def number(self, key: str) -> Any:
        """Positive number that the file must have."""
        value = self.setting(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
            what = "missing" if value is None else quoted(str(value))
            raise self.refused(f"its {self.architecture}.{key} is {what}; it must be a number")
        return value

    def refused(self, why: str) -> UserError:
        """Error about the file, for the caller to raise."""
        return UserError(f"cannot load {self.path.name}: {why}")


def read_header(path: Path) -> Header:
    """Read the metadata and tensors of a file.

    Raises:
        UserError: the package `gguf` is missing, or the file is not a complete GGUF file.
    """
    try:
        reader = _reader_class()(path)
        metadata = {key: field.contents() for key, field in reader.fields.items()}
        metadata["general.architecture"]
    except ModuleNotFoundError:
        raise UserError(
            f"{path.name} is a GGUF file, which needs the package `gguf` (pip install gguf)"
        ) from None
    except Exception as error:  # numpy raises several kinds of errors for missing bytes
        raise UserError(
            f"cannot load {path.name}: it is not a complete GGUF file ({first_line(error)})"
        ) from None
    return Header(path, metadata, {tensor.name: tensor for tensor in reader.tensors})


@cache
def _reader_class() -> Any:
    """The reader of `gguf`, without an `np.memmap` object for each of a million small slices.

    For a vocabulary of 262,144 tokens, it takes 3.4 s instead of 11.3 s.
    """

    class Reader(library.GGUFReader):  # type: ignore[name-defined]
        @property
        def data(self) -> np.ndarray:
            return self._bytes

        @data.setter
        def data(self, mapped: np.ndarray) -> None:
            self._bytes = mapped.view(np.ndarray)

    return Reader

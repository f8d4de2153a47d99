"""Identity of a model in the provenance of a result."""

from collections.abc import Mapping
from typing import Any

# Entries that say where the files lie.
NOT_OF_A_MODEL = ("name", "directory", "file")


def model_identity(model: Any) -> Any:
    """A model's hashes or revision, and dtype; the name only if nothing else is known."""
    if not isinstance(model, Mapping):
        return model
    kept = {key: value for key, value in model.items() if key not in NOT_OF_A_MODEL}
    return kept if set(kept) - {"dtype"} else model

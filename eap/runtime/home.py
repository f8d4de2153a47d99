"""Paths below a person's home folder."""

import os
from pathlib import Path


def from_home(text: str | os.PathLike[str]) -> Path:
    """A path, where `~` and `~name` are home folders.

    Whoever is unknown, or homeless, has none: then the text stands as it is.
    """
    return Path(os.path.expanduser(text))  # noqa: PTH111 - pathlib raises for unknown users

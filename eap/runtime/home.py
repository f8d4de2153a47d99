"""Paths that begin with a user's home folder."""

import os
from pathlib import Path


def from_home(text: str | os.PathLike[str]) -> Path:
    """Path with `~` and `~name` replaced by home folders.

    The text is left unchanged if the user is unknown or has no home folder.
    """
    return Path(os.path.expanduser(text))  # noqa: PTH111 - pathlib raises for unknown users

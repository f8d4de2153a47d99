"""Version of the package, which is defined in pyproject.toml only."""

import tomllib
from importlib.metadata import PackageNotFoundError, version

from eap.runtime.shipped import CHECKOUT

DISTRIBUTION = "eap-circuits"


def _version() -> str:
    """Version in the checkout that the package is imported from, else the installed version."""
    project = CHECKOUT / "pyproject.toml"
    if project.is_file():
        return str(tomllib.loads(project.read_text(encoding="utf8"))["project"]["version"])
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "unknown"


__version__ = _version()

"""Provenance of results: code, libraries and command. Does not import torch.

Two keys identify the code that a number depends on. They are hashes over folders of the package
(here called rooms), so that a new file needs no entry in a list:

* `score_code`, for graphs: the rooms that compute scores, so that a change elsewhere does not
  invalidate exact values;
* `package_code`, for everything computed from scores (curves, areas, verdicts): all rooms except
  those that only draw.
"""

import ast
import hashlib
import platform
import shlex
import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from eap.runtime.shipped import CHECKOUT
from eap.runtime.version import __version__

PACKAGE = Path(__file__).resolve().parents[1]

LIBRARIES = ("numpy", "torch", "transformer_lens", "transformers")
"""Libraries that numbers depend on; each is also the name of its distribution."""

SCORE_ROOMS = ("", "data", "engine", "graph", "metrics", "model", "parts", "soft")
"""Folders of the package that compute scores, without their subfolders; "" is the top folder.

The rows that tasks and readers produce are identified by the hash of their tokens instead.
"""

DRAWING_ROOMS = ("figures",)
"""Folders that only draw."""

SHIPPED = ("_data", "_scripts")
"""Folders of a wheel that belong to the repository, not to the package."""


@cache
def score_code() -> str:
    """Hash of the code that computes scores; if it changes, graphs are computed again."""
    return hash_of(path for path in _sources() if "/".join(path.parent.parts) in SCORE_ROOMS)


@cache
def package_code() -> str:
    """Hash of all code that a number may depend on: the package without the drawing code."""
    return hash_of(path for path in _sources() if path.parts[0] not in DRAWING_ROOMS)


@cache
def drawing_code() -> str:
    """Hash of the code that draws figures: the folders that draw, and everything they import."""
    sources = set(_sources())
    drawing = [path for path in sources if path.parts[0] in DRAWING_ROOMS]
    reached: set[Path] = set()
    while drawing:
        path = drawing.pop()
        if path not in reached:
            reached.add(path)
            drawing += _imported(path, sources)
    return hash_of(reached)


def hash_of(paths: Iterable[Path]) -> str:
    """Hash of the syntax trees of files of the package.

    Comments, docstrings and layout do not count, because no number depends on them.

    Args:
        paths: paths relative to the package.
    """
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.as_posix()}\n{_tree_hash((PACKAGE / path).read_bytes())}\n".encode())
    return digest.hexdigest()[:16]


@cache
def _tree_hash(source: bytes) -> str:
    """Hash of a file's syntax tree; cached, as parsing is slow and most files are in three keys."""
    tree = ast.parse(source)
    _drop_docstrings(tree)
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _sources() -> list[Path]:
    paths = (path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
    return [path for path in paths if path.parts[0] not in SHIPPED]


def _imported(path: Path, sources: set[Path]) -> list[Path]:
    """Files of the package that a file imports at its top level."""
    modules = _modules_of((PACKAGE / path).read_bytes())
    files = [Path(*module.split(".")[1:]) for module in modules if module.startswith("eap.")]
    candidates = [
        name for file in files for name in (file.with_suffix(".py"), file / "__init__.py")
    ]
    return [name for name in candidates if name in sources]


@cache
def _modules_of(source: bytes) -> frozenset[str]:
    """Modules that a file imports from, and the imported names, which may be modules, too."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(modules)


def library_versions() -> dict[str, str]:
    """Versions of Python, of the package, and of the libraries that results depend on."""
    libraries = {name: _version_of(name) for name in LIBRARIES}
    return {"python": platform.python_version(), "eap": __version__, **libraries}


@cache
def _version_of(library: str) -> str:
    """Version of an installed library; cached, because every verb asks for it."""
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"


def command() -> str:
    """The command as it was typed, with paths relative to the working directory where possible.

    So the same command in two folders, or by two people, gives the same bytes.
    """
    return shlex.join([*_script(sys.argv[0]), *map(_relative, sys.argv[1:])])


def _script(path: str) -> list[str]:
    """Words of the script: its path if it draws (`results/...`), else its name."""
    script = Path(path).resolve()
    if script.suffix == ".py" and script.is_relative_to(CHECKOUT / "results"):
        return [script.relative_to(CHECKOUT).as_posix()]
    return Path(path).name.split()


def _relative(argument: str) -> str:
    path = Path(argument)
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        return path.relative_to(Path.cwd()).as_posix()
    return argument


def _drop_docstrings(tree: ast.AST) -> None:
    """Remove texts that are statements: docstrings, also of attributes and of a module's names."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            body[:] = [statement for statement in body if not _is_text(statement)]


def _is_text(statement: ast.AST) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )

"""What a result says about how it was made: code, libraries, command. Loads no torch.

Two keys say which code a number depends on, by rooms, so that a new file needs no entry in a list:

* `score_code`, of graphs: the rooms that a score goes through, so that a change elsewhere does not
  throw exact values away;
* `package_code`, of everything made of scores (curves, areas, verdicts): all but what only draws.
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

PACKAGE = Path(__file__).resolve().parents[1]

# By name, the distribution that brings it.
LIBRARIES = {"eap": "eap-circuits"} | {
    name: name for name in ("numpy", "torch", "transformer_lens", "transformers")
}

SCORE_ROOMS = ("", "data", "engine", "graph", "metrics", "model", "parts", "soft")
"""Rooms that a score goes through, without the rooms inside them; "" is the top of the package.

The rows that tasks and readers make are known by the hash of their tokens.
"""

DRAWING_ROOMS = ("figures",)
"""Rooms that only draw."""

SHIPPED = ("_data", "_scripts")
"""Folders of a wheel that are the repository's, not the package's."""


@cache
def score_code() -> str:
    """A hash of the code that scores go through: another one means that graphs are made anew."""
    return hash_of(path for path in _sources() if _room(path) in SCORE_ROOMS)


@cache
def package_code() -> str:
    """A hash of all code that a number may depend on: the package without what only draws."""
    return hash_of(path for path in _sources() if path.parts[0] not in DRAWING_ROOMS)


@cache
def drawing_code() -> str:
    """A hash of what figures are drawn by: the rooms that draw, and all that they import."""
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
    """A hash of the syntax trees of files of the package.

    Comments, docstrings and layout change no number.

    Args:
        paths: relative to the package.
    """
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.as_posix()}\n{_tree_hash((PACKAGE / path).read_bytes())}\n".encode())
    return digest.hexdigest()[:16]


@cache
def _tree_hash(source: bytes) -> str:
    """Hash of a file's syntax tree. Parsing takes long, and three keys hash most files."""
    tree = ast.parse(source)
    _drop_docstrings(tree)
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _sources() -> list[Path]:
    paths = (path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
    return [path for path in paths if path.parts[0] not in SHIPPED]


def _room(path: Path) -> str:
    room = path.parent.as_posix()
    return "" if room == "." else room


def _imported(path: Path, sources: set[Path]) -> list[Path]:
    """Files of the package that a file imports at its top."""
    modules = _modules_of((PACKAGE / path).read_bytes())
    files = [Path(*module.split(".")[1:]) for module in modules if module.startswith("eap.")]
    candidates = [
        name for file in files for name in (file.with_suffix(".py"), file / "__init__.py")
    ]
    return [name for name in candidates if name in sources]


@cache
def _modules_of(source: bytes) -> frozenset[str]:
    """What a file imports from, and each name there, which may be a module, too."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(modules)


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that compute."""
    versions = {"python": platform.python_version()}
    for name, distribution in LIBRARIES.items():
        try:
            versions[name] = version(distribution)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def command() -> str:
    """The command as it was typed; paths below the working directory relative to it.

    Two people, or two folders, that run the same command get the same bytes.
    """
    return shlex.join([*Path(sys.argv[0]).name.split(), *map(_relative, sys.argv[1:])])


def _relative(argument: str) -> str:
    path = Path(argument)
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        return path.relative_to(Path.cwd()).as_posix()
    return argument


def _drop_docstrings(tree: ast.AST) -> None:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
            and isinstance(body[0].value.value, str)
        ):
            del body[0]

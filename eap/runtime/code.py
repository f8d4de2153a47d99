"""What a result says about how it was made: code, libraries, command. Loads no torch."""

import ast
import hashlib
import platform
import shlex
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]

# By name, the distribution that brings it.
LIBRARIES = {"eap": "eap-circuits"} | {
    name: name for name in ("numpy", "torch", "transformer_lens", "transformers")
}

# Parts of the package that no score and no value of a circuit goes through.
NOT_ENGINE = (
    "figures", "studies", "runtime", "__init__.py", "errors.py", "measures.py", "compare.py",
    "stability.py", "verdicts.py", "screening.py", "hand_made.py", "mib.py", "rankings.py",
    "clusters.py", "known_circuits.py", "hypotheses.py", "signature.py", "attention.py",
    "example_scores.py", "version.py", "commands", "_data", "_scripts",
)  # fmt: skip


@cache
def engine_hash() -> str:
    """A hash of the code that scores and values go through: changed code is another result.

    It is taken of the syntax trees: comments, docstrings and layout change no number.
    """
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE)
        if name.parts[0] not in NOT_ENGINE:
            tree = ast.parse(path.read_bytes())
            _drop_docstrings(tree)
            digest.update(f"{name.as_posix()}\n{ast.dump(tree)}\n".encode())
    return digest.hexdigest()[:16]


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that compute."""
    found = {"python": platform.python_version()}
    for name, distribution in LIBRARIES.items():
        try:
            found[name] = version(distribution)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


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

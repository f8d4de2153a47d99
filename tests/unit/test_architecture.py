"""The rooms of the package: imports run one way, and stand at the top of files."""

from __future__ import annotations

import ast
import re

import pytest
from importlinter.cli import lint_imports
from running import ROOT

# It names the model's type, which is above it, for the type checker only.
EXCEPT = ROOT / "eap" / "runtime" / "memory.py"
FILES = sorted(path for path in (ROOT / "eap").rglob("*.py") if path != EXCEPT)


def test_help_texts_begin_with_a_noun():
    """A help text stands alone in a terminal: what it is comes first."""
    patterns = ("*.py", "results/*.py", "results/*/*.py", "benchmarks/*.py")
    scripts = [path for pattern in patterns for path in ROOT.glob(pattern)]
    for path in [*scripts, *FILES]:
        found = re.findall(r'help="((?:of|that|as|which|whose) [^"]*)', path.read_text("utf8"))
        assert found == [], path


def test_imports_run_downwards(monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == 0, (
        capfd.readouterr().out
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_stand_at_the_top(path):
    tree = ast.parse(path.read_bytes())
    inside = [
        node.lineno
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.If)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert inside == []

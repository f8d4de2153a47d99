"""What a result says of the code and the command that made it."""

from __future__ import annotations

import sys

import pytest

from eap.runtime import code

FILES = {
    "attribution.py": (
        '"""Scores."""\n\nSTEPS = 5\n\n\ndef score(x):\n    """Twice."""\n    return 2 * x\n'
    ),
    "graph/numbering.py": "N = 1\n",
    "figures/style.py": "COLOUR = 1\n",
    "studies/shell.py": "WORD = 1\n",
    "verdicts.py": "P = 1\n",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A small package in the place of ours."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(code, "PACKAGE", tmp_path)
    return tmp_path


def hash_now() -> str:
    code.engine_hash.cache_clear()
    try:
        return code.engine_hash()
    finally:
        code.engine_hash.cache_clear()


@pytest.mark.parametrize(
    ("name", "old", "new", "same"),
    [
        ("attribution.py", "2 * x", "3 * x", False),
        ("attribution.py", "STEPS = 5", "STEPS = 6", False),
        ("graph/numbering.py", "N = 1", "N = 2", False),
        ("attribution.py", "Twice.", "Two times.", True),
        ("attribution.py", "return 2 * x", "return 2*x  # twice", True),
        ("figures/style.py", "1", "2", True),
        ("studies/shell.py", "1", "2", True),
        ("verdicts.py", "1", "2", True),
    ],
)
def test_only_code_that_numbers_go_through_counts(package, name, old, new, same):
    before = hash_now()
    assert hash_now() == before
    path = package / name
    path.write_text(path.read_text().replace(old, new))
    assert (hash_now() == before) == same


def test_a_new_file_counts_until_it_is_said_that_it_does_not(package):
    before = hash_now()
    (package / "new.py").write_text("X = 1\n")
    assert hash_now() != before


def test_a_command_is_as_it_was_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    typed = [str(tmp_path / "pareto.py"), "--task", "my task", "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", typed)
    assert code.command() == "pareto.py --task 'my task' --output out"
    monkeypatch.setattr(sys, "argv", ["pareto.py", "--output", "/elsewhere", "--head", "4"])
    assert code.command() == "pareto.py --output /elsewhere --head 4"


def test_versions_are_of_what_computes():
    versions = code.library_versions()
    assert {"python", "eap", "torch", "transformer_lens", "transformers", "numpy"} <= set(versions)
    assert versions["torch"][0].isdigit()

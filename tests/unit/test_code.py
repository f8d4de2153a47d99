"""What a result says of the code and the command that made it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

import eap
from eap.runtime import code

KEYS = ("score_code", "package_code", "drawing_code")


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """A copy of the package."""
    return Path(
        shutil.copytree(
            code.PACKAGE,
            tmp_path_factory.mktemp("copy") / "eap",
            ignore=shutil.ignore_patterns("__pycache__", *code.SHIPPED),
        )
    )


@pytest.fixture
def package(copied, monkeypatch):
    """The copy in the package's place."""
    monkeypatch.setattr(code, "PACKAGE", copied)
    return copied


def keys(names=KEYS) -> dict[str, str]:
    for name in names:
        getattr(code, name).cache_clear()
    try:
        return {name: getattr(code, name)() for name in names}
    finally:
        for name in names:
            getattr(code, name).cache_clear()


def changed_by(path: Path, line: str, before=None) -> set[str]:
    """Keys that change with another line in a file; `before`: keys without the line."""
    before, text = before or keys(), path.read_bytes()
    try:
        path.write_bytes(text + line.encode())
        return {name for name, key in keys(tuple(before)).items() if key != before[name]}
    finally:
        path.write_bytes(text)


ALL_FILES = sorted(path.relative_to(code.PACKAGE) for path in code.PACKAGE.rglob("*.py"))


def expected_of(path: Path) -> set[str]:
    """Scores of edges go through the verbs and seams and seven rooms; drawing draws alone."""
    room = path.parts[0] if len(path.parts) > 1 else ""
    inner = len(path.parts) > 2
    keys = set() if room == "figures" else {"package_code"}
    if room in {"", "data", "engine", "graph", "metrics", "model", "parts", "soft"} and not inner:
        keys.add("score_code")
    return keys


def test_a_line_in_any_file_makes_anew_what_depends_on_it(package):
    """The whole package, file by file; what figures import is asked for below."""
    before = keys(("score_code", "package_code"))
    for path in ALL_FILES:
        if path.parts[0] not in code.SHIPPED:
            changed = changed_by(package / path, "\nCHANGED_BEHAVIOUR = 1\n", before)
            assert changed == expected_of(path), path
    assert keys(tuple(before)) == before


@pytest.mark.parametrize(
    ("name", "redone"),
    [
        ("analysis/verdicts.py", {"package_code"}),
        ("analysis/random_circuits.py", {"package_code"}),
        ("analysis/stability.py", {"package_code"}),
        ("studies/sweep.py", {"package_code"}),
        ("runtime/distributed.py", {"package_code"}),
        ("data/collections/mib.py", {"package_code"}),
        ("graph/formats/export.py", {"package_code"}),
        ("inside/crossing.py", {"package_code"}),
        ("statistics/measures.py", {"package_code", "drawing_code"}),
        ("figures/style.py", {"drawing_code"}),
        ("engine/receivers.py", {"package_code", "score_code"}),
        ("soft/learning.py", {"package_code", "score_code"}),
        ("attribution.py", {"package_code", "score_code"}),
    ],
)
def test_graphs_tables_and_figures_depend_on_different_rooms(package, name, redone):
    assert (
        changed_by(package / name, "\nCHANGED_BEHAVIOUR = 1\n")
        - ({"drawing_code"} if name.startswith(("runtime", "graph")) else set())
        == redone
    )


def test_comments_docstrings_and_layout_change_no_number(package):
    assert changed_by(package / "attribution.py", "\n\n# a remark\n") == set()
    assert changed_by(package / "engine" / "moments.py", "\n\n\n") == set()
    text = (package / "methods.py").read_text("utf8")
    before = keys()
    module, attribute = "The table of methods", "Every method, by name."
    for docstring in (module, attribute):
        assert docstring in text
        (package / "methods.py").write_text(text.replace(docstring, "Another text"), "utf8")
        assert keys() == before, docstring
    (package / "methods.py").write_text(text, "utf8")


def test_a_new_file_belongs_to_its_room(package):
    before = keys()
    for folder, redone in (("engine", "score_code"), ("analysis", "package_code")):
        path = package / folder / "new.py"
        path.write_text("X = 1\n")
        assert keys()[redone] != before[redone]
        path.unlink()


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
    assert versions["eap"] == eap.__version__

"""What the README and the notebook show works."""

from __future__ import annotations

import json
import re
import runpy

import matplotlib.pyplot as plt
import pytest
from running import ROOT

import eap
from eap import Graph
from eap.studies.catalogue import STEPS
from eap.studies.paper_figures import FIGURES

# Of the library that the page compares with.
THEIRS = ("apply_topn", "apply_greedy", "count_included_edges", "edges", "to_json", "to_pt")

README = (ROOT / "README.md").read_text("utf8")


def run(code: str, folder, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    exec(compile(code, "documentation", "exec"), {})


def test_the_code_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    run(code, tmp_path, monkeypatch)
    assert "faithfulness" in capsys.readouterr().out
    assert (tmp_path / "ioi.json").exists()


def test_the_code_of_the_page_on_graphs_runs(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "graphs.md").read_text("utf8")
    run("\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL)), tmp_path, monkeypatch)
    assert (tmp_path / "circuit.html").stat().st_size < 1_000_000
    for name in re.findall(r"`(?:graph|circuit)\.(\w+)", page):
        assert hasattr(Graph, name) or name in (*THEIRS, *Graph.__dataclass_fields__), name


def test_the_code_of_the_page_on_measures_runs(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "measures.md").read_text("utf8")
    run("\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL)), tmp_path, monkeypatch)
    said = capsys.readouterr().out
    for shown in ("CPR", "edge_jaccard", "partial necessity"):
        assert shown in said
    for name in re.findall(r"`eap\.([a-z_]+)`", page):
        assert hasattr(eap, name), name


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path, tmp_path, monkeypatch):
    notebook = json.loads(path.read_text("utf8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells), "outputs are made when the manual is built"
    lines = "\n".join("".join(cell["source"]) for cell in cells).splitlines()
    monkeypatch.setattr(plt, "show", lambda: None)
    run("\n".join(line for line in lines if not line.startswith("%")), tmp_path, monkeypatch)


PAGES = sorted(
    path
    for path in (ROOT / "docs").rglob("*.md")
    if "```python" in path.read_text("utf8") and path.name not in ("graphs.md", "measures.md")
)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_code_of_the_manual_runs(path, tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", path.read_text("utf8"), re.DOTALL)
    run("\n".join(blocks), tmp_path, monkeypatch)


def test_the_documents_are_no_longer_than_promised():
    assert len(README.splitlines()) <= 150
    assert len((ROOT / "docs" / "architecture.md").read_text("utf8").splitlines()) <= 120


def test_files_that_the_architecture_names_are_there():
    page = (ROOT / "docs" / "architecture.md").read_text("utf8")
    for path in re.findall(r"`((?:eap|tests|data)/[\w/.-]+)`", page):
        assert (ROOT / path).exists(), path


def test_every_experiment_and_figure_is_on_its_page():
    page = (ROOT / "docs" / "experiments.md").read_text("utf8")
    for step in STEPS:
        assert not step.runs_model or f"`{step.script}`" in page
    for figure in FIGURES:
        assert f"### {figure.label}" in page
        assert figure.caption in page


def test_files_and_scripts_that_the_readme_names_are_there():
    for path in re.findall(r"\]\((results/[^)]+|[a-z]+/[^)]+\.md)\)", README):
        assert (ROOT / path).exists(), path
    for script in re.findall(r"python ((?:\w[\w/.-]*)?\w+\.py)", README):
        assert (ROOT / script).exists(), script


def test_the_table_of_speed_is_that_of_the_measurements():
    page = (ROOT / "benchmarks" / "README.md").read_text("utf8")
    table = runpy.run_path(str(ROOT / "benchmarks" / "table.py"))
    (path,) = (ROOT / "benchmarks" / "results").glob("*-threads.json")
    assert table["in_readme"](page, json.loads(path.read_text("utf8"))) == page

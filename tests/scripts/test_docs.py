"""What the README and the notebook show works."""

from __future__ import annotations

import json
import re
import runpy
from functools import cache

import matplotlib.pyplot as plt
import pytest
from running import ROOT

import eap
from eap import Graph, load_model
from eap.studies.catalogue import STEPS
from eap.studies.command_names import EXPERIMENTS, figures
from eap.studies.paper_figures import FIGURES

README = (ROOT / "README.md").read_text("utf8")
THEIRS = ("run_attribution.py",)  # a script of MIB's
SCRIPTS = {**EXPERIMENTS, **figures()}
MANUAL = sorted((ROOT / "docs").glob("*.md")) + sorted((ROOT / "docs" / "methods").glob("*.md"))
DOCUMENTS = [
    *MANUAL,
    *sorted(ROOT.glob("*.md")),
    *(ROOT / folder / "README.md" for folder in ("benchmarks", "data", "tests")),
]


@cache
def loaded(*given, **options):
    return load_model(*given, **options)


def run(code: str, folder, monkeypatch) -> None:
    """Run code of a page; a model that several pages load is loaded once."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(eap, "load_model", loaded)
    exec(compile(code, "documentation", "exec"), {})


def test_the_code_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    run(code, tmp_path, monkeypatch)
    assert "faithfulness" in capsys.readouterr().out
    assert len([line for line in code.splitlines() if line.strip()]) == 6


def test_ratios_of_the_readme_are_those_that_were_measured():
    measured = (ROOT / "benchmarks" / "README.md").read_text("utf8")
    ratios = re.findall(r"\b\d+(?:\.\d+)?x", README)
    assert ratios
    for ratio in ratios:
        assert f" {ratio} " in measured, ratio


def test_commands_of_the_documents_exist():
    """Scripts, commands and their options, in the README and in the manual."""
    shared = (ROOT / "eap" / "studies" / "shell.py").read_text("utf8")
    for path in DOCUMENTS:
        text = path.read_text("utf8").replace("\\\n", " ")
        for kind, name, rest in re.findall(
            r"(?:^|`|    )(python|eap) ([\w/.-]+)((?: [^`\n|#]+)?)", text, re.MULTILINE
        ):
            if "/EAP-IG" in rest or name in THEIRS:
                continue
            if kind == "eap" and name.startswith("-"):
                continue
            tool = f"eap/commands/{name.replace('-', '_')}.py"
            script = name if kind == "python" else SCRIPTS.get(name, (tool,))[0]
            assert (ROOT / script).exists(), f"{path.name}: {kind} {name}"
            source = (ROOT / script).read_text("utf8") + shared
            for option in re.findall(r" (--[\w-]+)", rest):
                assert f'"{option}"' in source, f"{path.name}: {name} {option}"


def test_names_that_pages_use_exist():
    graphs = (ROOT / "docs" / "graphs.md").read_text("utf8")
    for name in re.findall(r"`(?:graph|circuit)\.(\w+)", graphs):
        assert hasattr(Graph, name) or name in Graph.__dataclass_fields__, name
    for path in DOCUMENTS:
        for name in re.findall(r"`eap\.([a-z_]+)`", path.read_text("utf8")):
            assert hasattr(eap, name), f"{path.name}: {name}"


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path, tmp_path, monkeypatch):
    notebook = json.loads(path.read_text("utf8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells), "outputs are made when the manual is built"
    lines = "\n".join("".join(cell["source"]) for cell in cells).splitlines()
    monkeypatch.setattr(plt, "show", lambda: None)
    run("\n".join(line for line in lines if not line.startswith("%")), tmp_path, monkeypatch)


PAGES = [path for path in MANUAL if "```python" in path.read_text("utf8")]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_code_of_the_manual_runs(path, tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", path.read_text("utf8"), re.DOTALL)
    run("\n".join(blocks), tmp_path, monkeypatch)


def anchors(path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the manual make them."""
    text = re.sub(r"```.*?```", "", path.read_text("utf8"), flags=re.DOTALL)
    found = set()
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        found.add(re.sub(r"[^\w\- ]", "", words).strip().replace(" ", "-"))
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    text = re.sub(r"```.*?```", "", path.read_text("utf8"), flags=re.DOTALL)
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    assert wrong == []


def test_every_page_is_in_the_manual():
    index = (ROOT / "docs" / "index.md").read_text("utf8")
    inside = (ROOT / "docs" / "methods" / "index.md").read_text("utf8")
    for path in MANUAL:
        name = path.relative_to(ROOT / "docs").with_suffix("").as_posix()
        lines = inside if name.startswith("methods/") and name != "methods/index" else index
        short = name.removeprefix("methods/") if lines is inside else name
        assert name == "index" or re.search(rf"^{short}$|<{short}>$", lines, re.MULTILINE), name


def test_concepts_are_explained_in_order_each_with_its_picture():
    page = (ROOT / "docs" / "concepts.md").read_text("utf8")
    parts = re.split(r"^## (.*)$", page, flags=re.MULTILINE)
    titles = ["The graph", "The score", "The circuit", "Faithfulness", "Ablation"]
    assert parts[1:11:2] == titles
    for text in parts[2:12:2]:
        (picture,) = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
        assert (ROOT / "docs" / picture).stat().st_size < 100_000


def test_the_reference_is_complete():
    made = runpy.run_path(str(ROOT / "docs" / "reference.py"))["page"]()
    page = (ROOT / "docs" / "reference.md").read_text("utf8")
    assert page == made, "python docs/reference.py writes it"
    for name in eap.__all__:
        assert f"`eap.{name}`" in page, name


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
    commands = {name: path for name, (path, _) in (EXPERIMENTS | figures()).items()}
    named = re.findall(r"`eap (\S+) --model toy`, or `python (\S+) --model toy`", page)
    assert len(named) == page.count(" draws `results/") > 0
    for name, script in named:
        assert commands[name] == script


def test_tables_of_the_manual_are_those_of_kept_results():
    made = runpy.run_path(str(ROOT / "docs" / "measured.py"))
    pages = [page.read_text("utf8") for page in (ROOT / "docs").glob("*.md")]
    found = [name for page in pages for name in re.findall(r"<!-- measured: (\w+) -->", page)]
    assert sorted(found) == sorted(made["TABLES"])
    for page in pages:
        assert made["filled"](page) == page


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

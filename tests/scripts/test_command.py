"""The command `eap`: every script by a name, and the tools."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from running import EXPERIMENTS, FIGURES, ROOT

import eap.commands
from eap.graph.graph import Graph, GraphConfig


def command(monkeypatch, *arguments) -> int:
    """Run `eap ...` in this process; its exit status."""
    monkeypatch.setattr(sys, "argv", ["eap", *map(str, arguments)])
    monkeypatch.setattr(sys, "path", list(sys.path))
    try:
        eap.commands.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture
def graphs(tmp_path):
    """Files of two graphs with other scores."""
    config = GraphConfig(n_layers=2, n_heads=2, d_model=8, n_kv_heads=2)
    paths = []
    for name, sign in (("first", 1), ("second", -1)):
        graph = Graph.from_config(config)
        scores = sign * torch.arange(graph.scores.numel()).reshape(graph.scores.shape) % 7 + 0.1
        graph = replace(graph, scores=scores.where(graph.edge_exists, 0.0))
        graph.save(tmp_path / f"{name}.json")
        paths.append(tmp_path / f"{name}.json")
    return paths


def test_every_script_has_a_command():
    scripts = {
        script for script, _ in {**eap.commands.EXPERIMENTS, **eap.commands.figures()}.values()
    }
    assert set(EXPERIMENTS) <= scripts
    assert set(FIGURES) <= scripts
    assert [
        script for script in scripts if not (eap.commands.scripts_folder() / script).is_file()
    ] == []


def test_help_lists_all_and_loads_no_torch():
    code = (
        "import sys; sys.argv = ['eap', '--help']; import eap.commands; eap.commands.main();"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False", done.stderr
    for name in (*eap.commands.EXPERIMENTS, *eap.commands.TOOLS, "figure-3", "report"):
        assert f"  {name} " in done.stdout


def test_a_scripts_help_is_the_scripts(monkeypatch, capsys):
    assert command(monkeypatch, "pareto", "--help") == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: eap pareto ")
    assert "--n_random" in out


def test_unknown_commands_and_missing_files_are_one_line(monkeypatch, capfd, tmp_path):
    assert command(monkeypatch, "paretto") == 2
    assert command(monkeypatch, "view", tmp_path / "none.json") != 0
    assert command(monkeypatch, "pareto", "--modl", "toy") == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("error: ") for line in lines)


@pytest.fixture
def another(tmp_path):
    """A folder with another package called `eap`, as the EAP-IG library is."""
    (tmp_path / "other" / "eap").mkdir(parents=True)
    (tmp_path / "other" / "eap" / "__init__.py").write_text("raise ImportError('too old')\n")
    return tmp_path / "other"


def started(another, *command):
    environment = {**os.environ, "PYTHONPATH": f"{another}{os.pathsep}{ROOT}"}
    return subprocess.run(
        [sys.executable, *map(str, command)],
        check=False, capture_output=True, text=True, env=environment, cwd=another,
    )  # fmt: skip


def test_another_package_of_the_same_name_is_told_in_one_line(another):
    done = started(another, "-c", "import eap_circuits; eap_circuits.command()", "--help")
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert f"another package of that name, {another / 'eap'}" in done.stderr


@pytest.mark.parametrize("script", ["pareto/plot_pareto.py", "manual_overlap/ioi_overlap.py"])
def test_scripts_of_a_checkout_run_its_own_package_beside_another(another, script):
    done = started(another, ROOT / "results" / script, "--help")
    assert done.returncode == 0, done.stderr
    assert str(ROOT) in done.stdout


@pytest.mark.parametrize("script", [*EXPERIMENTS, *FIGURES, "mib.py"])
def test_every_script_looks_whose_package_it_is_before_it_imports_it(script):
    imports = [
        node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.parse((ROOT / script).read_bytes()).body
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    ours = [str(name) for name in imports if str(name).startswith(("eap", "manual_overlap"))]
    assert ours[0] == "eap_circuits"


def test_version(monkeypatch, capsys):
    assert command(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.split() == ["eap", eap.__version__]


def test_two_graphs_are_compared(monkeypatch, capsys, graphs):
    assert command(monkeypatch, "compare", *graphs, "--sizes", 10, 20) == 0
    out = capsys.readouterr().out
    assert "Pearson" in out
    assert [line.split()[0] for line in out.splitlines()[-2:]] == ["10", "20"]
    assert command(monkeypatch, "compare", graphs[0], graphs[0], "--sizes", 10) == 0
    assert "Pearson 1.000, Kendall 1.000" in capsys.readouterr().out


def test_a_circuit_is_viewed_where_one_is(monkeypatch, capsys, graphs, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, "view", graphs[0]) == 0
    assert command(monkeypatch, "view", *graphs, "--output", "both.html") == 0
    assert "wrote both.html" in capsys.readouterr().out
    assert (tmp_path / "first.html").stat().st_size > 1000


def test_attention_is_shown_on_a_few_pairs(monkeypatch, capfd, graphs, tmp_path):
    monkeypatch.chdir(tmp_path)
    model = eap.load_model("toy")
    graph = eap.Graph.from_model(model)
    scores = torch.ones_like(graph.scores).where(graph.edge_exists, 0.0)
    replace(graph, scores=scores).save("toy.json")
    options = ["--model", "toy", "--task", "ioi", "--sizes", 20]
    assert command(monkeypatch, "view", "toy.json", "--attention", 2, *options) == 0
    text = (tmp_path / "toy.html").read_text("utf8")
    content = json.loads(re.search(r'id="content">(.*?)</script>', text, re.DOTALL)[1])
    heads = [name for name in graph.sender_names if name.startswith("a")]
    assert list(content["patterns"]) == heads
    assert [len(examples) for examples in content["patterns"].values()] == [2] * len(heads)
    assert sum(content["patterns"]["a0.h0"][0]["weights"][-1]) in range(95, 106)
    assert command(monkeypatch, "view", graphs[0], "--attention", 1) == 2
    assert "--model and --task" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--task", "ioi"], "--task: no pairs are run; add --attention or --why"),
        (["--model", "toy"], "--model: no pairs are run"),
        (["--drop_unfit"], "--drop_unfit: no pairs are run"),
        (["--why", "a0.h0", "-o", "page.html"], "--output: with --why, tables are printed"),
        (["--why", "a0.h0", "--sizes", 5], "--sizes: with --why"),
        (["--why", ""], "no head"),
    ],
)
def test_options_that_would_change_nothing_are_refused(
    options, says, monkeypatch, capfd, graphs, tmp_path
):
    monkeypatch.chdir(tmp_path)
    more = ["--model", "toy", "--task", "ioi"] if options == ["--why", ""] else []
    assert command(monkeypatch, "view", graphs[0], *options, *more) == 2
    assert says in capfd.readouterr().err
    assert list(tmp_path.glob("*.html")) == []


def test_data_of_ones_own_is_checked(monkeypatch, capsys, tmp_path):
    path = tmp_path / "my.csv"
    rows = ['"The nurse said that","The man said that"," she"," he"'] * 12
    path.write_text("\n".join(["clean,corrupted,correct,incorrect", *rows]), "utf8")
    assert command(monkeypatch, "check-data", path, "--show", 1) == 0
    out = capsys.readouterr().out
    assert "my-task: 12 pairs" in out
    assert "correct:  she" in out


def test_prompts_are_shown_with_their_spans(monkeypatch, capsys, tmp_path):
    assert command(monkeypatch, "check-data", "--task", "ioi", "--spans", "roles", "--head", 3) == 0
    out = capsys.readouterr().out
    assert "[first name:" in out
    clean, corrupted = (
        next(line for line in out.splitlines() if line.strip().startswith(name))
        for name in ("clean", "corrupted")
    )
    for name in ("before", "and", "second name", "middle", "repeated name", "rest", "last"):
        assert f"[{name}:" in clean
        assert f"[{name}:" in corrupted
    path = tmp_path / "my.csv"
    path.write_text(
        "clean,corrupted,correct,incorrect,span:who,span:what\n"
        '"The nurse said that","The man said that"," she"," he","The nurse"," said that"\n', "utf8",
    )  # fmt: skip
    assert command(monkeypatch, "check-data", path, "--spans", "roles") == 0
    assert "[who:" in capsys.readouterr().out
    assert command(monkeypatch, "check-data", "--task", "ioi", "--spans", "tokens") != 0

"""The paper's workflow: killed and started again, repeated, and after every kind of change.

It runs in a copy of the repository, on a tiny random model with the toy model's tokenizer.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from scripts import ROOT, files_below
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from eap.runtime.shipped import data_folder

pytest.importorskip("snakemake", reason="the extra `paper` is not installed")

CONFIG = ("model=tiny", "head=24", "tasks=ioi", "exact=False")
EXPERIMENTS = {"pareto_ioi", "ig_test_ioi", "stability_ioi", "overlap", "cross_task"}
FROM_CURVES = {"figure_1", "figure_3", "figure_11", "metrics"}
FROM_CIRCUITS = {"figure_5", "appendix_i"}
EVERYTHING = (
    EXPERIMENTS
    | FROM_CURVES
    | FROM_CIRCUITS
    | {"figure_2", "figure_7", "figure_stability", "report"}
)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A copy of the repository, with a model directory in it."""
    folder = tmp_path_factory.mktemp("repository")
    for name in ("eap", "workflow", "data"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(
        ROOT / "results",
        folder / "results",
        ignore=lambda _, names: [n for n in names if "." in n and not n.endswith(".py")],
    )
    for path in (*ROOT.glob("*.py"), ROOT / "pyproject.toml"):
        shutil.copy(path, folder)
    tokenizer = AutoTokenizer.from_pretrained(data_folder() / "toy-model")
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=32, n_embd=16, n_layer=2, n_head=2,
        bos_token_id=0, eos_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder / "tiny", safe_serialization=True)
    tokenizer.save_pretrained(folder / "tiny")
    return folder


def start(repository, *options: str, config=CONFIG) -> subprocess.Popen[str]:
    """Start the workflow in a process group of its own."""
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *options, "--config", *config]
    return subprocess.Popen(
        command,
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(repository), "PWD": str(repository)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(repository, *options: str, config=CONFIG) -> str:
    process = start(repository, *options, config=config)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, out[-3000:]
    return out


def would_run(repository, config=CONFIG) -> set[str]:
    """The rules that `snakemake -n` lists."""
    out = run(repository, "-n", "--quiet", "host", config=config)
    if "Nothing to be done" in out:
        return set()
    table = out[out.index("Job stats:") :]
    return set(re.findall(r"^(\w+) +\d+$", table, re.MULTILINE)) - {"all", "total"}


@pytest.fixture(scope="module")
def finished(repository):
    """The workflow killed without warning at several moments, and then left to end."""
    stamps = repository / "results" / "tiny" / "steps"
    for enough in (0, 1, 4):  # jobs that have ended
        process = start(repository)
        while process.poll() is None and len(list(stamps.glob("*.json"))) < enough + 1:
            if enough == 0 and (repository / "graphs").exists():
                break
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)  # its jobs must end with it
        process.communicate()
    run(repository)
    return repository


def test_a_killed_run_goes_on_and_leaves_nothing_behind(finished):
    made = {path for path in files_below(finished) if path.startswith(("graphs/", "results/"))}
    assert not [path for path in made if path.endswith((".tmp", ".part.safetensors"))]
    stamps = {path.name for path in (finished / "results/tiny/steps").iterdir()}
    assert stamps == {f"{name}.json" for name in EVERYTHING}
    assert "results/tiny/report.html" in made


def test_a_second_run_does_nothing(finished):
    assert would_run(finished) == set()


def changed(path, change):
    """Change a file for the length of a test."""
    before, times = path.read_bytes(), path.stat()
    path.write_bytes(change(before))
    yield path
    path.write_bytes(before)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.fixture
def file(request, finished):
    name, change = request.param
    yield from changed(finished / name, change)


def as_json(name, value):
    def change(content: bytes) -> bytes:
        return json.dumps({**json.loads(content), name: value}).encode()

    return change


@pytest.mark.parametrize(
    ("file", "redone"),
    [
        (("tiny/tokenizer.json", lambda text: text + b"\n"), EVERYTHING),
        (("tiny/config.json", as_json("layer_norm_epsilon", 1e-4)), EVERYTHING),
        (("tiny/model.safetensors", lambda data: data[:-2] + b"\0\0"), EVERYTHING),
        (("data/ioi/toy.csv", lambda text: text[: text.rindex(b"\n", 0, -1) + 1]), EVERYTHING),
        (("data/ioi/gpt2.csv", lambda text: text + b"\n"), set()),
        (("data/sva/toy.csv", lambda text: text + b"\n"), set()),
        (("eap/metrics.py", lambda text: text + b"\nUNUSED = 1\n"), EVERYTHING),
        (("eap/metrics.py", lambda text: text + b"\n# a remark\n"), set()),
        (("results/ig_test/plot_ig_test.py", lambda text: text + b"\n"), {"figure_7", "report"}),
        (
            ("results/pareto/tiny/csv/ioi.csv", lambda text: text + b"\n"),
            {"pareto_ioi", "overlap", "cross_task", "figure_2", "report"}
            | FROM_CURVES
            | FROM_CIRCUITS,
        ),
    ],
    indirect=["file"],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_changed_redoes_what_depends_on_it(finished, file, redone):
    stamps = finished / "results" / "tiny" / "steps"
    kept = {path: path.read_bytes() for path in stamps.iterdir()}
    assert would_run(finished) == redone
    for path, content in kept.items():  # a stamp of changed results is deleted
        if not path.exists():
            path.write_bytes(content)


def test_weights_in_another_format_are_other_weights(finished):
    extra = finished / "tiny" / "pytorch_model.bin"
    extra.write_bytes(b"weights")
    try:
        assert would_run(finished) == EVERYTHING
    finally:
        extra.unlink()


def test_other_settings_redo_the_experiments(finished):
    config = [text.replace("head=24", "head=12") for text in CONFIG]
    assert would_run(finished, config) == EVERYTHING


def test_a_deleted_table_is_remade_with_what_needs_it(finished):
    table = finished / "results/ig_test/tiny/csv/ioi_logit_diff_ig_test.csv"
    before = table.read_bytes()
    table.unlink()
    out = run(finished)
    ran = set(re.findall(r"^Job \d+: python (\S+)", out, re.MULTILINE))
    assert ran == {
        "test_ig_iterations.py",
        "results/ig_test/plot_ig_test.py",
        "results/report.py",
    }
    assert table.read_bytes() == before
    assert "reusing" in out  # the graphs were still there
    assert would_run(finished) == set()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (("model=toy", "tasks=nothing"), "unknown task nothing"),
        (("model=toy", "heads=3"), "no setting heads"),
        (("model=no-such-model",), "cannot load model 'no-such-model'"),
    ],
)
def test_what_cannot_be_run_is_refused(repository, config, says):
    process = start(repository, "-n", config=config)
    out, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert says in out

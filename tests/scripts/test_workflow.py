"""The paper's workflow: killed and started again, repeated, and after every kind of change.

It runs in a copy of the repository, on a tiny random model with the toy model's tokenizer.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import forked
import pytest
import torch
from running import ROOT, call, files_below
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from eap.runtime.errors import UserError
from eap.runtime.shipped import data_folder

sys.path.insert(0, str(ROOT / "workflow"))
from inputs import OF_GRAPHS, Settings, planned

pytest.importorskip("snakemake", reason="the extra `paper` is not installed")

CONFIG = ("model=tiny", "head=8", "tasks=ioi", "exact=False")
EXPERIMENTS = {
    "pareto_ioi",
    "ig_test_ioi",
    "positions_ioi",
    "stability_ioi",
    "parts_ioi",
    "overlap",
    "cross_task",
}
FROM_CURVES = {"figure_1", "figure_3", "figure_11", "metrics"}
FROM_CIRCUITS = {"figure_5", "appendix_i", "claims"}
EVERYTHING = (
    EXPERIMENTS
    | FROM_CURVES
    | FROM_CIRCUITS
    | {"figure_2", "figure_7", "figure_positions", "figure_stability", "figure_parts", "report"}
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


def command(*options: str, config=CONFIG) -> list[str]:
    return ["-m", "snakemake", "--cores", "2", *options, "--config", *config]


def surroundings(repository) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(repository), "PWD": str(repository)}


def launch(repository) -> subprocess.Popen[bytes]:
    """Start the workflow, and its jobs, in processes of their own."""
    return subprocess.Popen(
        [sys.executable, *command()],
        cwd=repository,
        env=surroundings(repository),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def start(repository, *options: str, config=CONFIG) -> forked.Forked:
    """Start the workflow, and its jobs, in forks."""
    return forked.start(
        *command(*options, config=config),
        cwd=repository,
        environment=surroundings(repository),
        joined=True,
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
    """The workflow killed without warning when one job has ended, and then left to end."""
    stamps = repository / "results" / "tiny" / "steps"
    process = launch(repository)
    while process.poll() is None and not list(stamps.glob("*.json")):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)  # its jobs must end with it
    process.wait()
    run(repository)
    return repository


def test_a_killed_run_goes_on_and_leaves_nothing_behind(finished):
    made = {path for path in files_below(finished) if path.startswith(("graphs/", "results/"))}
    assert not [path for path in made if path.endswith((".tmp", ".part.safetensors"))]
    stamps = {path.name for path in (finished / "results/tiny/steps").iterdir()}
    assert stamps == {f"{name}.{kind}" for name in EVERYTHING for kind in ("json", "tsv")}
    took = (finished / "results/tiny/steps/pareto_ioi.tsv").read_text("utf8").splitlines()
    assert {"s", "max_rss", "cpu_time"} <= set(took[0].split("\t"))
    assert "results/tiny/report.html" in made


def test_a_second_run_does_nothing(finished):
    assert would_run(finished) == set()


@contextmanager
def changed(folder, changes):
    """Change files for a while, by their names."""
    before = {folder / name: (folder / name).read_bytes() for name in changes}
    times = {path: path.stat() for path in before}
    for name, change in changes.items():
        (folder / name).write_bytes(change(before[folder / name]))
    try:
        yield
    finally:
        for path, content in before.items():
            path.write_bytes(content)
            os.utime(path, ns=(times[path].st_atime_ns, times[path].st_mtime_ns))


def longer(content: bytes) -> bytes:
    return content + b"\n"


@pytest.mark.parametrize(
    ("changes", "redone"),
    [
        (
            {
                "data/ioi/gpt2.csv": longer,
                "data/sva/toy.csv": longer,
                "eap/metrics/metric.py": lambda text: text + b"\n# a remark\n",
            },
            set(),
        ),
        ({"tiny/tokenizer.json": longer}, EVERYTHING),
        ({"eap/metrics/metric.py": lambda text: text + b"\nUNUSED = 1\n"}, EVERYTHING),
        ({"results/ig_test/plot_ig_test.py": longer}, {"figure_7", "report"}),
        (
            {"results/pareto/tiny/csv/ioi.csv": longer},
            {"pareto_ioi", "overlap", "cross_task", "figure_2", "report"}
            | FROM_CURVES
            | FROM_CIRCUITS,
        ),
    ],
    ids=["nothing", "model", "code", "figure", "table"],
)
def test_what_changed_redoes_what_depends_on_it(finished, changes, redone):
    stamps = finished / "results" / "tiny" / "steps"
    kept = {path: path.read_bytes() for path in stamps.iterdir()}
    with changed(finished, changes):
        assert would_run(finished) == redone
    for path, content in kept.items():  # a stamp of changed results is deleted
        if not path.exists():
            path.write_bytes(content)


def settings_in(folder, *options: str):
    config = dict(text.split("=") for text in (*CONFIG, *options))
    return Settings.from_config({**config, "output": str(folder)}, str(folder))


def test_every_file_of_the_model_and_the_tasks_data_are_read(finished):
    """As the tokenizer is, whose change is seen above."""
    extra = finished / "tiny" / "pytorch_model.bin"
    extra.write_bytes(b"weights in another format")
    try:
        experiments = [job for job in planned(settings_in(finished)) if job.name in EXPERIMENTS]
    finally:
        extra.unlink()
    assert {job.name for job in experiments} == EXPERIMENTS
    for job in experiments:
        read = {Path(path).name for path in job.sources}
        model = {"tokenizer.json", "config.json", "model.safetensors", "pytorch_model.bin"}
        assert model | {"toy.csv"} <= read
        assert all("ioi" in path for path in job.sources if path.endswith(".csv"))


def test_other_settings_are_other_commands(finished):
    jobs = [planned(settings_in(finished, *options)) for options in ((), ("head=12",))]
    for job, other in zip(*jobs, strict=True):
        assert (job.command != other.command) == (job.name in EXPERIMENTS)


def test_a_deleted_table_is_remade_with_what_needs_it(finished):
    table = finished / "results/ig_test/tiny/csv/ioi_logit_diff_ig_test.csv"
    before = table.read_bytes()
    table.unlink()
    out = run(finished)
    ran = set(re.findall(r"^Job \d+: python (\S+)", out, re.MULTILINE))
    assert ran == {
        "test_ig_iterations.py",
        "results/ig_test/plot_ig_test.py",
        "results/claims/claims.py",
        "results/report.py",
    }
    assert table.read_bytes() == before
    assert "reusing" in out  # the graphs were still there
    assert would_run(finished) == set()


REFUSED = [
    ({"tasks": "nothing"}, "unknown task nothing"),
    ({"heads": 3}, "no setting heads"),
    ({"options": {"paretto": "--n_random 3"}}, "options: give a value for one or more of pareto"),
    ({"only": "ioi"}, "only: give a value for one or more of pareto"),
    ({"only": {"exact": "nothing"}}, "unknown task nothing"),
]


@pytest.mark.parametrize(("config", "says"), REFUSED)
def test_settings_that_cannot_be_are_refused(config, says, tmp_path):
    with pytest.raises(UserError, match=says):
        Settings.from_config({"model": "toy", **config}, str(tmp_path))


def test_options_by_which_a_step_remakes_anothers_graphs_are_refused(tmp_path):
    def plan(**options):
        config = {"model": "toy", "tasks": "ioi sva", "options": options}
        return planned(Settings.from_config(config, str(tmp_path)))

    for options in ({"pareto": "--ig_steps 10"}, {"overlap": "--head=3"}):
        with pytest.raises(UserError, match="overlap reads the graphs of pareto, so options"):
            plan(**options)
    with pytest.raises(UserError, match="overlap has --ig_steps 9, pareto has --ig_steps 10"):
        plan(pareto="--ig_steps 10", overlap="--ig_steps 9")
    plan(pareto="--n_random 3 --sizes 10 20", exact="--ig_steps 3")
    same = "--ig_rule midpoint --ig_steps 10"
    jobs = plan(
        pareto="--sizes 20 " + same, overlap="--ig_steps=10 --ig_rule=midpoint", cross_task=same
    )
    assert "midpoint" in " ".join(next(job for job in jobs if job.name == "overlap").command)


def test_options_of_graphs_are_options_of_the_experiments(capsys):
    assert call("pareto.py", "--help") == 0
    known = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    assert set(OF_GRAPHS) <= known


def test_what_cannot_be_run_is_refused(repository):
    process = start(repository, "-n", config=("model=no-such-model",))
    out, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "cannot load model 'no-such-model'" in out


def test_a_run_that_is_stopped_says_how_to_go_on(finished):
    """Last: what failed is to be done again."""
    made = finished / "results" / "claims" / "tiny"
    before = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    failing = {"results/claims/claims.py": lambda _: b"raise SystemExit(3)\n"}
    with changed(finished, failing):
        process = start(finished, "claims")
        out, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "finished jobs are kept, and the same command continues" in out
    assert before
    assert before == {path: path.read_bytes() for path in before}
    assert "claims" in would_run(finished)

"""Several processes give the numbers of one, write files from one, and fail as a whole."""

from __future__ import annotations

import json
import os
import signal
import socket
import time

import forked
import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from running import ROOT, call, files_below, start_together, torchrun

import eap
from eap.runtime import distributed
from eap.runtime.processes import ProcessError

TOY = ("--model", "toy", "--device", "cpu", "--batch_size", 2)
RUNS = {
    "pareto.py": (*TOY, "--head", 7, "--end", 61, "--n_random", 1),
    "get_real_values.py": (*TOY, "--head", 3, "--end", 41),
    "all_cross_task_faithfulness.py": (*TOY, "--head", 5, "--tasks", "ioi", "greater-than"),
    "test_ig_iterations.py": (*TOY, "--head", 5, "--end", 41, "--steps", 2, 3),
}


NOTES = ("-metadata.json", "model.json")
"""Files that say what others are: no line is said of them."""


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """What one process writes, a folder for each script."""
    folder = tmp_path_factory.mktemp("one")
    for script, options in RUNS.items():
        assert call(script, *options, "--output", folder / script) == 0
    return folder


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """What 2 and what 3 processes write and say, by their number: all scripts in one start."""
    ended = {}
    for n, scripts in ((2, tuple(RUNS)), (3, ("pareto.py", "get_real_values.py"))):
        folder = tmp_path_factory.mktemp("several")
        commands = [
            [script, *map(str, RUNS[script]), "--output", str(folder / script)]
            for script in scripts
        ]
        process = start_together(
            n, "tests/running_in_processes.py", json.dumps(commands), cwd=folder
        )
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
        ended[n] = folder, out
    return ended


@pytest.mark.parametrize("n", [2, 3])
def test_files_of_several_processes_are_written_and_said_once(n, several):
    folder, out = several[n]
    written = [line for line in out.splitlines() if line.startswith("wrote ")]
    tables_and_graphs = {name for name in files_below(folder) if not name.endswith(NOTES)}
    assert len(written) == len(set(written)) == len(tables_and_graphs)


@pytest.mark.parametrize(
    ("script", "n"),
    [*((script, 2) for script in RUNS), ("pareto.py", 3), ("get_real_values.py", 3)],
)
def test_several_processes_equal_one(script, n, one, several):
    of_one, of_several = one / script, several[n][0] / script
    assert files_below(of_several) == files_below(of_one)
    for name in files_below(of_one):
        if name.endswith(NOTES):
            continue
        if name.endswith(".csv"):
            pd.testing.assert_frame_equal(
                pd.read_csv(of_several / name), pd.read_csv(of_one / name), rtol=1e-4, atol=1e-5
            )
        else:
            found, expected = eap.Graph.load(of_several / name), eap.Graph.load(of_one / name)
            assert found.in_graph.equal(expected.in_graph)
            torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-6)
            if expected.standard_errors is not None:
                torch.testing.assert_close(
                    found.standard_errors, expected.standard_errors, rtol=1e-3, atol=1e-6
                )


def test_a_bootstrap_is_the_same_to_the_byte(tmp_path):
    """Weights go with the examples: neither processes nor batches change what is selected."""
    for n in (1, 2, 3):
        folder = tmp_path / str(n)
        folder.mkdir()
        process = start_together(n, "tests/bootstrap_in_processes.py", folder, 3 * n, cwd=tmp_path)
        _, err = process.communicate(timeout=200)
        assert process.returncode == 0, err
    expected = np.load(tmp_path / "1" / "0.npz")
    for n in (2, 3):
        for rank in range(n):
            found = np.load(tmp_path / str(n) / f"{rank}.npz")
            for name in ("frequencies", "nulls", "jaccard", "votes", "of_nodes"):
                assert found[name].tobytes() == expected[name].tobytes(), (n, rank, name)
            assert found["again"].tobytes() == found["learned"].tobytes()
            for name in ("scores", "spans", "gram", "learned"):  # sums in another order
                np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)


def test_a_number_of_processes_without_a_place_to_meet_is_one_line(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ProcessError, match="WORLD_SIZE is 2, and RANK is not set"):
        distributed.start()


def test_bad_input_is_said_once(tmp_path):
    """Started as a person does, with all imports."""
    process = torchrun(2, "pareto.py", *TOY, "--task", "nothing", cwd=tmp_path)
    _, err = process.communicate(timeout=200)
    assert process.returncode != 0
    assert err.count("unknown task 'nothing'") == 1


def workers(process: forked.Forked) -> list[int]:
    """Process ids of the script's own processes, by rank; a fork's is that of who asked for it."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        rank = child.environ().get("RANK")
        if rank is not None:
            found.append((int(rank), child.pid))
    return [pid for _, pid in sorted(found)]


EXACT = ("get_real_values.py", *TOY, "--head", 4, "--sizes", 30, "--output")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Exact values by one process that nobody kills."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert call(*EXACT, folder) == 0
    return folder


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_run_and_exact_patching_goes_on(rank, undisturbed, tmp_path):
    command = (*EXACT, tmp_path)
    process = start_together(2, *command, "--save_every", 0, cwd=tmp_path)
    folder = tmp_path / "graphs" / "toy" / "real_test"
    while len(list(folder.glob("*of2.safetensors"))) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.kill(workers(process)[rank], signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    said = [line for line in err.splitlines() if line.startswith("error")]
    assert len(said) <= 1
    assert "SIGKILL" in err or said
    assert not any(name.endswith("_real.json") for name in files_below(tmp_path))
    if rank:
        return  # what is left is the same, whichever was killed

    process = start_together(2, *command, cwd=tmp_path)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert "resuming" in out
    for metric in ("logit_diff", "kl"):
        name = f"graphs/toy/real_test/ioi_{metric}_real.json"
        found, expected = eap.Graph.load(tmp_path / name), eap.Graph.load(undisturbed / name)
        torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-6)


# ---- deciding, meeting, waiting ------------------------------------------------------------------


def start_by_hand(code: str, rank: int, n: int, port: int) -> forked.Forked:
    """A process that believes to be one of `n`, without torchrun."""
    place = {"RANK": rank, "WORLD_SIZE": n, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment = {**os.environ, **{name: str(value) for name, value in place.items()}}
    return forked.start("-c", code, cwd=ROOT, environment=environment)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def outputs(code: str, n: int = 2) -> list[tuple[int, str, str]]:
    """Status, output and errors of `n` processes that meet and run `code`."""
    port = free_port()
    started = [start_by_hand(BEGIN + code, rank, n, port) for rank in range(n)]
    ended = [process.communicate(timeout=100) for process in started]
    return [
        (process.returncode, out, err) for process, (out, err) in zip(started, ended, strict=True)
    ]


BEGIN = """
import sys, time, signal
from datetime import timedelta
import torch
from eap.runtime.errors import UserError
from eap.runtime import distributed
from eap.studies import shell
"""


def test_the_first_decides_what_is_there_and_an_error_of_its_is_that_of_all():
    code = """
def main():
    distributed.start()
    mine = distributed.rank()
    print(distributed.decided_by_first(lambda: {"rank": mine, "there": [mine == 0]}, "reuse"))
    def fail():
        raise UserError(f"what process {mine} found")
    distributed.decided_by_first(fail, "fail")
shell.run(main)
"""
    ended = outputs(code)
    for status, out, _ in ended:
        assert out == "{'rank': 0, 'there': [True]}\n"
        assert status == 2
    errors = "".join(err for _, _, err in ended)
    assert errors.count("error") == 1
    assert "what process 0 found" in errors


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ('distributed.sum_over_processes(x, "EAP")', 'distributed.sum_over_processes(x, "EAP-IG")'),
        ("distributed.sum_over_processes(x)", "distributed.sum_over_processes(x[:1])"),
        ("distributed.sum_over_processes(x)", "distributed.largest(1)"),
        ("distributed.wait_for_all()", 'distributed.decided_by_first(lambda: 1, "reuse")'),
    ],
)
def test_processes_that_do_different_things_stop(first, second):
    code = f"""
def main():
    x = torch.ones(3)
    if distributed.is_first():
        {first}
    else:
        {second}
    print("done")
shell.run(main)
"""
    ended = outputs(code)
    for status, out, _ in ended:
        assert status == 1
        assert out == ""
    errors = "".join(err for _, _, err in ended)
    assert errors.count("error") == 1
    assert "the processes are at different steps" in errors
    assert "Traceback" not in errors


def test_who_did_not_come_is_named():
    code = BEGIN + (
        "def main(): pass\n"
        "start = distributed.start\n"
        "distributed.start = lambda: start(timedelta(seconds=3))\n"
        "shell.run(main)\n"
    )
    first, second = (start_by_hand(code, *place, free_port()) for place in ((0, 3), (1, 2)))
    (_, without_others), (_, without_first) = (
        process.communicate(timeout=100) for process in (first, second)
    )
    assert first.returncode == second.returncode == 1
    assert "process 1, 2 of 3 did not come" in without_others
    assert len(without_others.strip().splitlines()) == 1
    assert "no process keeps the meeting place" in without_first
    assert "Traceback" not in without_first


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_waits_to_meet_ends_on_sigterm(rank):
    """A master that nobody is, and others that do not come."""
    code = BEGIN + "print('waiting', flush=True)\nshell.run(lambda: None)\n"
    process = start_by_hand(code, rank, 2, free_port())
    assert process.stdout.readline() == "waiting\n"
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == -signal.SIGTERM


def test_a_process_that_waits_for_the_others_work_ends_on_sigterm(tmp_path):
    code = BEGIN + (
        "def main():\n"
        "    if distributed.is_first():\n"
        "        print('here', flush=True)\n"
        "        distributed.sum_over_processes(torch.ones(3))\n"
        "    else:\n"
        "        time.sleep(60)\n"
        "shell.run(main)\n"
    )
    port = free_port()
    first, second = (start_by_hand(code, rank, 2, port) for rank in range(2))
    try:
        assert first.stdout.readline() == "here\n"
        time.sleep(0.5)
        first.send_signal(signal.SIGTERM)
        first.communicate(timeout=10)
        assert first.returncode == 143
    finally:
        second.kill()
        second.communicate()


def test_graphs_that_appear_between_two_processes_are_not_mixed_in(tmp_path):
    """The first process finds no graph; before the second looks, another run has written it."""
    command = ("pareto.py", *TOY, "--head", 5, "--end", 41, "--n_random", 0)
    done = tmp_path / "done"
    assert call(*command, "--output", done) == 0
    late = tmp_path / "late.py"
    late.write_text(
        f"""
import os, runpy, sys
from pathlib import Path
from eap.studies import scoring

reusable = scoring.reusable

def look_late(path, *rest, **options):
    if os.environ["RANK"] == "1" and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        copy = path.with_name("copy.tmp")
        copy.write_bytes((Path({str(done)!r}) / "graphs/toy" / path.name).read_bytes())
        copy.replace(path)
    return reusable(path, *rest, **options)

scoring.reusable = look_late
sys.argv[0] = "pareto.py"
runpy.run_path({str(ROOT / "pareto.py")!r}, run_name="__main__")
"""
    )
    process = start_together(2, late, *command[1:], "--output", tmp_path / "out", cwd=tmp_path)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    for suffix in ("vanilla", "task", "kl"):
        found, expected = (
            eap.Graph.load(folder / f"graphs/toy/ioi_{suffix}.json")
            for folder in (tmp_path / "out", done)
        )
        torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-6)

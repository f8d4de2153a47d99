"""Several processes give the numbers of one, write files from one, and fail as a whole."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from scripts import call, files_below, torchrun

import eap

TOY = ("--model", "toy", "--device", "cpu", "--batch_size", 2)
RUNS = {
    "pareto.py": (*TOY, "--head", 7, "--end", 61, "--n_random", 1),
    "get_real_values.py": (*TOY, "--head", 3, "--end", 41),
    "all_cross_task_faithfulness.py": (*TOY, "--head", 5, "--tasks", "ioi", "sva"),
    "test_ig_iterations.py": (*TOY, "--head", 5, "--end", 41, "--steps", 2, 3),
}


@pytest.mark.parametrize(
    ("script", "n"),
    [*((script, 2) for script in RUNS), ("pareto.py", 3), ("get_real_values.py", 3)],
)
def test_several_processes_equal_one(script, n, tmp_path):
    one, several = tmp_path / "one", tmp_path / "several"
    process = torchrun(n, script, *RUNS[script], "--output", several, cwd=tmp_path)
    assert call(script, *RUNS[script], "--output", one) == 0
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    # Written and said once.
    written = [line for line in out.splitlines() if line.startswith("wrote ")]
    assert len(written) == len(set(written)) == len(files_below(one))
    assert files_below(several) == files_below(one)
    for name in files_below(one):
        if name.endswith(".csv"):
            pd.testing.assert_frame_equal(
                pd.read_csv(several / name), pd.read_csv(one / name), rtol=1e-4, atol=1e-5
            )
        else:
            found, expected = eap.Graph.load(several / name), eap.Graph.load(one / name)
            assert found.in_graph.equal(expected.in_graph)
            torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-6)
            if expected.standard_errors is not None:
                torch.testing.assert_close(
                    found.standard_errors, expected.standard_errors, rtol=1e-3, atol=1e-6
                )


@pytest.mark.parametrize("n", [2, 3])
def test_a_bootstrap_is_the_same_to_the_byte(n, tmp_path):
    """Weights go with the examples: neither processes nor batches change what is selected."""
    folders = {1: tmp_path / "one", n: tmp_path / "several"}
    for count, folder in folders.items():
        folder.mkdir()
        process = torchrun(
            count, "tests/bootstrap_in_processes.py", folder, 3 * count, cwd=tmp_path
        )
        _, err = process.communicate(timeout=200)
        assert process.returncode == 0, err
    expected = np.load(folders[1] / "0.npz")
    for rank in range(n):
        found = np.load(folders[n] / f"{rank}.npz")
        for name in ("frequencies", "nulls", "jaccard"):
            assert found[name].tobytes() == expected[name].tobytes(), (rank, name)
        for name in ("scores", "gram"):  # sums in another order
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)


def test_bad_input_is_said_once(tmp_path):
    process = torchrun(2, "pareto.py", *TOY, "--task", "nothing", cwd=tmp_path)
    _, err = process.communicate(timeout=200)
    assert process.returncode != 0
    assert err.count("unknown task 'nothing'") == 1


def workers(process: subprocess.Popen[str]) -> list[int]:
    """Process ids of the script's own processes, by rank."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        rank = child.environ().get("RANK")
        if rank is not None:
            found.append((int(rank), child.pid))
    return [pid for _, pid in sorted(found)]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_run_and_exact_patching_goes_on(rank, tmp_path):
    options = (*TOY, "--head", 8, "--end", 41, "--save_every", 0)
    command = ("get_real_values.py", *options, "--output", tmp_path)
    process = torchrun(2, *command, cwd=tmp_path)
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

    process = torchrun(2, *command, cwd=tmp_path)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert "going on" in out
    one = tmp_path / "one"
    assert call(*command[:-1], one) == 0
    for metric in ("logit_diff", "kl"):
        name = f"graphs/toy/real_test/ioi_{metric}_real.json"
        found, expected = eap.Graph.load(tmp_path / name), eap.Graph.load(one / name)
        torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-6)

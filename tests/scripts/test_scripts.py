"""The experiment scripts from the shell: what they write, what they reuse, how they refuse."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time

import pandas as pd
import pytest
import torch
from running import EXPERIMENTS, FIGURES, call, files_below, launch, start

import eap

PARETO_COLUMNS = [
    "baseline", "corrupted_baseline", "edges",
    "edges_EAP", "loss_EAP", "edges_EAP-IG", "loss_EAP-IG", "edges_EAP-IG-KL", "loss_EAP-IG-KL",
]  # fmt: skip
PARETO = ("--model", "toy", "--head", 6, "--end", 301, "--n_random", 1, "--device", "cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of pareto.py on the toy model."""
    output = tmp_path_factory.mktemp("pareto")
    assert call("pareto.py", *PARETO, "--output", output) == 0
    return output


def read_csv(output, name="pareto/toy/csv/ioi.csv"):
    return pd.read_csv(output / "results" / name)


def test_pareto_writes_the_published_columns_and_three_graphs(run):
    frame = read_csv(run)
    assert list(frame) == PARETO_COLUMNS
    assert list(frame["edges"]) == [30, 40, 50, 60, 70, 80, 90, 100, 200, 300]
    assert frame["baseline"].nunique() == frame["corrupted_baseline"].nunique() == 1
    assert files_below(run) == {
        *(f"graphs/toy/ioi_{suffix}.json" for suffix in ("vanilla", "task", "kl")),
        *(f"results/pareto/toy/csv/{name}.csv" for name in ("ioi", "ioi_bands")),
        *(f"results/pareto/toy/csv/{name}.csv-metadata.json" for name in ("ioi", "ioi_bands")),
        "results/toy/model.json",
    }


def test_the_numbers_in_the_table_are_those_of_the_package(run):
    frame = read_csv(run)
    model = eap.load_model("toy", device="cpu")
    dataset = eap.load_dataset("ioi", model.tokenizer, head=6)
    clean, corrupted = eap.evaluate_baselines(model, dataset)
    assert frame["baseline"][0] == pytest.approx(float(clean["logit_diff"].mean()), rel=1e-5)
    assert frame["corrupted_baseline"][0] == pytest.approx(
        float(corrupted["logit_diff"].mean()), rel=1e-5
    )
    for method, suffix, metric in (
        ("EAP", "vanilla", "logit_diff"),
        ("EAP-IG", "task", "logit_diff"),
        ("EAP-IG", "kl", "kl"),
    ):
        graph = eap.Graph.load(run / "graphs" / "toy" / f"ioi_{suffix}.json")
        scores = eap.attribute(model, dataset, method=method, metric=metric).scores
        torch.testing.assert_close(graph.scores, scores, rtol=1e-4, atol=1e-6)
    circuit = graph.greedy(200).prune()
    row = frame[frame["edges"] == 200].iloc[0]
    assert row["edges_EAP-IG-KL"] == circuit.count_edges()
    value = float(eap.evaluate(model, circuit, dataset)["logit_diff"].mean())
    assert row["loss_EAP-IG-KL"] == pytest.approx(value, rel=1e-5)


def test_a_graph_says_where_it_comes_from(run):
    provenance = json.loads((run / "graphs/toy/ioi_task.json").read_text("utf8"))["provenance"]
    assert provenance["model"]["name"] == "toy"
    assert len(provenance["model"]["weights_sha256"]) == 64
    assert provenance["task"] == "ioi"
    assert (provenance["metric"], provenance["method"]) == ("logit_diff", "EAP-IG")
    assert provenance["settings"] == {"steps": 5, "rule": "paper"}
    assert provenance["data"]["head"] == 6
    assert provenance["data"]["prepend_bos"] is True
    assert {"eap", "torch", "transformer_lens", "transformers"} <= set(provenance["versions"])
    assert provenance["command"].startswith("pareto.py --model toy")


def test_finished_graphs_are_reused_and_others_made_anew(run, capfd):
    written = (run / "graphs/toy/ioi_task.json").stat().st_mtime_ns
    assert call("pareto.py", *PARETO, "--output", run) == 0
    out = capfd.readouterr().out
    assert out.count("reusing ") == 3
    assert (run / "graphs/toy/ioi_task.json").stat().st_mtime_ns == written
    assert call("pareto.py", *PARETO, "--ig_steps", 3, "--output", run) == 0
    out = capfd.readouterr().out
    assert "the saved graph has another settings.steps" in out
    assert out.count("reusing ") == 1  # EAP's
    assert call("pareto.py", *PARETO, "--overwrite", "--output", run) == 0
    assert "reusing" not in capfd.readouterr().out


def test_two_runs_are_identical(run, tmp_path):
    assert call("pareto.py", *PARETO, "--output", tmp_path) == 0
    name = "results/pareto/toy/csv/ioi.csv"
    assert (tmp_path / name).read_bytes() == (run / name).read_bytes()


def test_a_csv_of_ones_own_is_a_task(tmp_path):
    path = tmp_path / "mine.csv"
    prompt = "Then, {} and {} walked to the park. {} gave a book to"
    clean = prompt.format("Mary", "John", "John")
    rows = [
        f'"{clean}","{prompt.format("Mary", "John", third)}", Mary, John'
        for third in ("Paul", "Peter", "Mark", "James")
    ]
    path.write_text("\n".join(["clean,corrupted,correct,incorrect", *rows]) + "\n", "utf8")
    options = ("--task", "mine", "--data", path, "--end", 101, "--output", tmp_path / "out")
    assert call("pareto.py", *options) == 0
    assert list(read_csv(tmp_path / "out", "pareto/toy/csv/mine.csv")) == PARETO_COLUMNS


def test_a_script_runs_from_any_directory(tmp_path):
    process = launch(
        "pareto.py", "--head", 4, "--end", 41, "--n_random", 0, "--output", "here", cwd=tmp_path
    )
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "normalised faithfulness" in out
    assert "wrote here/results/pareto/toy/csv/ioi.csv" in out
    assert (tmp_path / "here/results/pareto/toy/csv/ioi.csv").exists()


def test_pareto_big_has_sizes_up_to_a_share_of_all_edges(tmp_path):
    options = ("--head", 6, "--n_steps", 4, "--end_proportion", 0.2, "--eval_batch_size", 3)
    assert call("pareto_big.py", *options, "--output", tmp_path) == 0
    frame = read_csv(tmp_path)
    assert list(frame) == [*PARETO_COLUMNS[:3], "total_edges", *PARETO_COLUMNS[3:]]
    total = frame["total_edges"][0]
    assert list(frame["edges"]) == [int(0.2 * total) * step // 4 for step in (1, 2, 3, 4)]


@pytest.mark.parametrize("script", [*EXPERIMENTS, *FIGURES])
def test_every_script_explains_itself(script, capsys):
    assert call(script, "--help") == 0
    text = capsys.readouterr().out
    assert "--model" in text
    assert len(text.splitlines()) > 8


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--task", "nothing"), "unknown task 'nothing'; known are ioi, greater-than"),
        (("--metric", "nothing"), "unknown metric 'nothing'; known are logit_diff"),
        (("--model", "./nothing"), "no model directory at nothing"),
        (("--model", "no-owner/no-model"), "cannot load model 'no-owner/no-model'"),
        (("--batch_size", 0), "--batch_size: '0' is not a whole number from 1 to"),
        (("--head", -3), "--head"),
        (("--ig_rule", "simpson"), "--ig_rule"),
        (("--device", "cuda:77"), "this machine has cpu"),
        (("--dtype", "int3"), "dtype 'int3' is not supported; use one of float"),
        (("--memory", "0.0001"), "too small"),
        (("--memory", "much"), "not a number of gigabytes"),
        (("--data", "nothing.csv"), "no data at nothing.csv"),
        (("--metric", "accuracy"), "has no gradient"),
        (("--end", 30), "no size"),
        (("--n_random", -1), "--n_random"),
        (("--wrong",), "unrecognized arguments: --wrong"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_clear_line_and_writes_nothing(arguments, says, tmp_path, capfd):
    assert call("pareto.py", "--head", 4, "--output", tmp_path, *arguments) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 1
    assert says in lines[0]
    assert files_below(tmp_path) == set()


def test_an_output_that_cannot_be_written_is_named(tmp_path, capfd):
    (tmp_path / "taken").write_text("a file")
    assert call("pareto.py", "--head", 4, "--end", 41, "--output", tmp_path / "taken") == 2
    assert "taken" in capfd.readouterr().err
    assert (tmp_path / "taken").read_text() == "a file"


def test_a_broken_graph_is_named_and_left_alone(tmp_path, capfd):
    path = tmp_path / "graphs/toy/ioi_vanilla.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"cfg":')
    assert call("pareto.py", "--head", 4, "--end", 41, "--output", tmp_path) == 2
    assert "ioi_vanilla.json is not a graph" in capfd.readouterr().err
    assert path.read_text() == '{"cfg":'


@pytest.mark.parametrize("script", EXPERIMENTS[3:5])
def test_unknown_tasks_are_refused_before_any_work(script, tmp_path, capfd):
    assert call(script, "--tasks", "ioi", "nothing", "--output", tmp_path) == 2
    assert "unknown task 'nothing'" in capfd.readouterr().err
    assert files_below(tmp_path) == set()


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_whole_files_only(signal_number, tmp_path):
    process = start("pareto.py", "--batch_size", 1, "--output", tmp_path, cwd=tmp_path)
    while "pairs" not in process.stdout.readline():
        assert process.poll() is None
    time.sleep(1.5)
    err = ""
    for _ in range(12):  # like a person: once more if nothing happens
        process.send_signal(signal_number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            _, err = process.communicate(timeout=10)
            break
    assert process.returncode in (130, 143)
    assert "Traceback" not in err
    for name in files_below(tmp_path):
        assert name.endswith((".json", ".csv"))
        assert not name.rsplit("/", 1)[-1].startswith(".")

"""get_real_values.py: what it says, what it writes, and that it can be stopped at any moment."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import signal
import time

import pandas as pd
import pytest
import torch
from reference import twins
from reference.twins import dataset_of
from running import call, files_below, start

import eap
from eap import patching
from eap.runtime.checkpoint import Checkpoint
from eap.studies import exact

METRICS = ("logit_diff", "prob_diff", "kl", "js")
OPTIONS = ("--model", "toy", "--task", "ioi", "--head", 4, "--sizes", 30, 100, "--device", "cpu")

SAID: list[str] = []
"""What the finished run said."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run."""
    output = tmp_path_factory.mktemp("real")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert call("get_real_values.py", *OPTIONS, "--output", output) == 0
    SAID.append(said.getvalue())
    return output


def test_all_files_are_written_and_nothing_else(run):
    graphs = [f"{metric}_real" for metric in METRICS]
    graphs += ["logit_diff_vanilla", "logit_diff_ig", "kl_ig"]
    assert files_below(run) == {
        *(f"graphs/toy/real_test/ioi_{name}.json" for name in graphs),
        *(f"results/real/toy/csv/{name}.csv" for name in ("ioi", "ioi_bands")),
        *(f"results/real/toy/csv/{name}.csv-metadata.json" for name in ("ioi", "ioi_bands")),
        "results/toy/model.json",
    }


def test_curves_of_exact_and_estimated_scores_stand_side_by_side(run):
    frame = pd.read_csv(run / "results/real/toy/csv/ioi.csv")
    names = ("real", "real-KL", "EAP-IG", "EAP-IG-KL", "EAP")
    pairs = [column for name in names for column in (f"edges_{name}", f"loss_{name}")]
    assert list(frame) == ["baseline", "corrupted_baseline", "edges", *pairs]


def test_scores_are_exact_and_say_so(run):
    graph = eap.Graph.load(run / "graphs/toy/real_test/ioi_kl_real.json")
    assert graph.is_exact.equal(graph.edge_exists)
    assert graph.provenance["method"] == "exact"
    model = eap.load_model("toy", device="cpu")
    dataset = eap.load_dataset("ioi", model.tokenizer, head=4)
    clean, _ = eap.evaluate_baselines(model, dataset, metrics=["logit_diff"])
    exact = eap.Graph.load(run / "graphs/toy/real_test/ioi_logit_diff_real.json")
    for name in ("input->a0.h0<q>", "m3->logits", "a1.h3->a3.h2<k>"):
        without = exact.in_graph.clone()
        without[exact.index(name)] = False
        patched = eap.evaluate(model, exact.with_edges(without), dataset)["logit_diff"]
        value = float((patched - clean["logit_diff"]).mean())
        assert exact.score(name) == pytest.approx(value, abs=2e-5)


def test_the_cost_is_said_first_and_finished_values_are_reused(run, capfd):
    assert call("get_real_values.py", *OPTIONS, "--output", run) == 0
    out = capfd.readouterr().out
    assert out.count("reusing ") == 7
    assert "about" not in out
    (out,) = SAID
    assert "edges x 4 pairs" in out
    assert "about" in out
    assert "MiB" in out


def test_verified_edges_are_exact_the_others_estimates(run, tmp_path, capfd):
    options = (*OPTIONS, "--verify", 50, "--sample", 30, "--output", tmp_path)
    assert call("get_real_values.py", *options) == 0
    out = capfd.readouterr().out
    assert "the 50 edges that an estimate ranks highest" in out
    assert "sampled: 30 of the" in out
    assert "with 95% confidence at most" in out
    graph = eap.Graph.load(tmp_path / "graphs/toy/real_test/ioi_logit_diff_verified.json")
    estimate = eap.Graph.load(tmp_path / "graphs/toy/real_test/ioi_logit_diff_ig.json")
    exact = eap.Graph.load(run / "graphs/toy/real_test/ioi_logit_diff_real.json")
    known = graph.is_exact
    assert int(known.sum()) == 80
    # Of the 50, a third at least are each estimate's own highest.
    assert known[estimate.top_n(16).in_graph].all()
    torch.testing.assert_close(graph.scores[known], exact.scores[known], rtol=1e-4, atol=2e-6)
    others = graph.edge_exists & ~known
    sums = [float(own.scores[others].abs().sum()) for own in (graph, estimate, exact)]
    scaled = sums[0] / sums[1] * estimate.scores[others]
    torch.testing.assert_close(graph.scores[others], scaled, rtol=1e-4, atol=1e-9)
    assert 0.3 < sums[0] / sums[2] < 3  # the sample stands for them
    # What is verified for KL are the edges that KL's own estimate ranks highest.
    of_kl = eap.Graph.load(tmp_path / "graphs/toy/real_test/ioi_kl_verified.json")
    estimate_of_kl = eap.Graph.load(tmp_path / "graphs/toy/real_test/ioi_kl_ig.json")
    assert of_kl.is_exact[estimate_of_kl.top_n(16).in_graph].all()
    assert out.count("the 50 edges that an estimate ranks highest") == 2
    # It is a whole study: curves, ..
    frame = pd.read_csv(tmp_path / "results/real/toy/csv/ioi.csv")
    assert {"loss_real", "loss_real-KL", "loss_EAP"} <= set(frame)
    # .. finished values are reused, and rankings compared over all edges.
    assert call("get_real_values.py", *options) == 0
    again = capfd.readouterr().out
    assert again.count("reusing ") == 5
    assert "exact values:" not in again
    assert call("results/real_rank/compare_real.py", "--tasks", "ioi", "--output", tmp_path) == 0
    agreed = json.loads((tmp_path / "results/real_rank/toy/correlations.json").read_text("utf8"))
    whole = eap.compare.agreement(estimate, exact)
    assert agreed["ioi_ig"] == pytest.approx(whole.pearson, abs=0.1)
    assert agreed["ioi_ig_kendall"] == pytest.approx(whole.kendall, abs=0.2)


def test_verified_values_of_another_choice_of_edges_are_not_reused(tmp_path, capfd):
    """The choice depends on the estimates by --metric, and so does the graph of KL."""
    options = ("--head", 4, "--verify", 6, "--sample", 4, "--sizes", 30, "--output", tmp_path)

    def run_by(metric, *more):
        script = ("get_real_values.py", "--task", "ioi", *options, "--metric", metric, *more)
        assert call(*script) == 0
        out = capfd.readouterr().out
        folder = tmp_path / "graphs/toy/real_test"
        of_kl, own = (
            eap.Graph.load(folder / f"ioi_{name}_verified.json") for name in ("kl", metric)
        )
        assert of_kl.is_exact.equal(own.is_exact)
        return out[out.index("\nkl\n") :].split("wrote")[0]

    first = run_by("logit_diff")
    run_by("prob_diff")
    assert run_by("logit_diff") == first


def test_a_sample_without_verify_is_refused(capfd):
    for script in ("get_real_values.py", "positions.py"):
        assert call(script, "--task", "ioi", "--sample", 5) == 2
        assert "add --verify" in capfd.readouterr().err


def test_other_methods_stand_beside_the_exact_values(run, tmp_path):
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    methods = ("--methods", "EAP", "EAP-IG", "RelP", "AtP*-GradDrop")
    assert call("get_real_values.py", *OPTIONS, *methods, "--output", tmp_path) == 0
    frame = pd.read_csv(tmp_path / "results/real/toy/csv/ioi.csv")
    assert [name for name in frame if name.startswith("loss_")] == [
        f"loss_{name}" for name in ("real", "real-KL", "EAP", "EAP-IG", "RelP", "AtP*-GradDrop")
    ]
    options = ("--tasks", "ioi", "--output", tmp_path)
    compare, chosen = "results/real_rank/compare_real.py", ("--methods", "RelP", "AtP*-GradDrop")
    assert call(compare, *options, *chosen) == 0
    folder = tmp_path / "results/real_rank/toy"
    agreed = json.loads((folder / "correlations.json").read_text("utf8"))
    real, estimate = (
        eap.Graph.load(tmp_path / f"graphs/toy/real_test/ioi_logit_diff_{name}.json")
        for name in ("real", "AtP-GradDrop")
    )
    assert estimate.provenance["method"] == "AtP*-GradDrop"
    expected = eap.compare.agreement(estimate, real).pearson
    assert agreed["ioi_AtP-GradDrop"] == pytest.approx(expected)
    assert "ioi_real_RelP" in pd.read_csv(folder / "csv/edge-overlap.csv")
    for script in ("plot_overlap", "plot_kendall", "node_edge_overlap_plot"):
        assert call(f"results/real_rank/{script}.py", *options) == 0
    assert call(compare, *options, "--methods", "IFR") == 2  # nobody scored by it


def test_exact_values_of_fewer_pairs_have_curves_on_all(run, tmp_path):
    options = (*OPTIONS, "--exact_head", 2, "--verify", 20, "--sample", 5, "--output", tmp_path)
    assert call("get_real_values.py", *options) == 0
    verified = eap.Graph.load(tmp_path / "graphs/toy/real_test/ioi_kl_verified.json")
    assert verified.provenance["data"]["pairs"] == 2
    # Exact values of all edges from an earlier run, on other pairs, are not in the way.
    stale = "graphs/toy/real_test/ioi_logit_diff_real.json"
    shutil.copy(run / stale, tmp_path / stale)
    assert call("results/real_rank/compare_real.py", "--tasks", "ioi", "--output", tmp_path) == 0
    frame, of_all = (
        pd.read_csv(folder / "results/real/toy/csv/ioi.csv") for folder in (tmp_path, run)
    )
    assert frame["baseline"].equals(of_all["baseline"])


# ---- stopping ------------------------------------------------------------------------------------


def test_killed_ten_times_it_ends_with_the_numbers_of_an_undisturbed_run(tmp_path):
    """`kill -9` at random moments, in child processes of this one."""
    model, dataset = twins.load("llama"), dataset_of(twins.RAGGED * 6)
    options = {"metrics": METRICS, "batch_size": 4}
    expected = eap.patch_edges(model, dataset, **options)
    begun = time.monotonic()
    eap.patch_edges(model, dataset, **options)
    whole = time.monotonic() - begun
    path = tmp_path / "run.part.safetensors"
    source = random.Random(0)
    for _ in range(10):
        written = path.stat().st_mtime_ns if path.exists() else 0
        child = os.fork()
        if child == 0:
            checkpoint = Checkpoint(path, {"run": "this"}, seconds=0.0)
            eap.patch_edges(model, dataset, checkpoint=checkpoint, **options)
            os._exit(0)
        while not path.exists() or path.stat().st_mtime_ns == written:
            time.sleep(0.001)
        time.sleep(source.uniform(0.0, 0.04) * whole)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "it was done before it was killed"
    found = eap.patch_edges(model, dataset, checkpoint=Checkpoint(path, {"run": "this"}), **options)
    for name, graph in expected.items():
        assert found[name].scores.equal(graph.scores)
        assert found[name].standard_errors.equal(graph.standard_errors)


def progress(output) -> dict[str, int]:
    """Names of the checkpoints in a folder, and when they were written."""
    folder = output / "graphs/toy/real_test"
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("ioi-*.part.safetensors")}


def start_and_wait_for_progress(*command, cwd, output):
    """A run that has written some progress, which it does all the time."""
    before, process = progress(output), start(*command, "--save_every", 0, cwd=cwd)
    while progress(output) in (before, {}):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return process


def test_the_script_goes_on_after_a_kill_and_after_ctrl_c(run, tmp_path):
    command = ("get_real_values.py", *OPTIONS, "--output", tmp_path)
    for signal_number in (signal.SIGKILL, signal.SIGINT):
        process = start_and_wait_for_progress(*command, cwd=tmp_path, output=tmp_path)
        process.send_signal(signal_number)
        process.communicate(timeout=60)
        assert process.returncode in (-signal.SIGKILL, 130, 0)  # 0: it was done before
    unfinished = bool(progress(tmp_path))
    process = start(*command, cwd=tmp_path)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert ("resuming" in out) == unfinished
    assert files_below(tmp_path) == files_below(run)
    for metric in METRICS:
        name = f"graphs/toy/real_test/ioi_{metric}_real.json"
        found, expected = (eap.Graph.load(folder / name) for folder in (tmp_path, run))
        assert found.scores.equal(expected.scores)


@pytest.mark.parametrize(
    ("metric", "says"), [("logit_diff_sum", "exact values are of"), ("nothing", "unknown metric")]
)
def test_metrics_without_exact_values_are_refused_first(metric, says, tmp_path, capfd):
    options = ("--metric", metric, "--output", tmp_path)
    assert call("get_real_values.py", *OPTIONS, *options) == 2
    assert says in capfd.readouterr().err
    assert files_below(tmp_path) == set()


def test_the_metric_may_be_one_without_a_gradient_at_the_clean_input(run, tmp_path):
    shutil.copytree(run / "graphs", tmp_path / "graphs")  # exact values are of all metrics anyway
    options = ("--metric", "kl", "--output", tmp_path)
    assert call("get_real_values.py", *OPTIONS, *options) == 0
    frame = pd.read_csv(tmp_path / "results/real/toy/csv/ioi.csv")
    assert "loss_EAP-IG" in frame
    assert "loss_EAP" not in frame


def test_two_runs_in_one_folder_keep_their_own_progress(run, tmp_path, capfd):
    command = ("get_real_values.py", *OPTIONS, "--output", tmp_path)
    first = start_and_wait_for_progress(*command, cwd=tmp_path, output=tmp_path)
    first.kill()
    first.communicate()
    (kept,) = progress(tmp_path)
    saved = (tmp_path / "graphs/toy/real_test" / kept).read_bytes()
    # Another run, of other pairs, is not disturbed by it, does not delete it, and names it.
    assert call(*command, "--head", 3) == 0
    assert f"{kept} is the progress of another run" in capfd.readouterr().out
    assert set(progress(tmp_path)) == {kept}
    assert (tmp_path / "graphs/toy/real_test" / kept).read_bytes() == saved
    assert call(*command) == 0
    assert "resuming where an earlier run was stopped" in capfd.readouterr().out
    assert not progress(tmp_path)
    name = "graphs/toy/real_test/ioi_kl_real.json"
    found, expected = (eap.Graph.load(folder / name) for folder in (tmp_path, run))
    assert found.scores.equal(expected.scores)


def test_values_that_are_not_finite_are_not_saved(tmp_path, capfd, monkeypatch):
    patched = patching.run_plan

    def with_nan(*arguments, **options):
        graphs = patched(*arguments, **options)
        graphs["kl"].scores[0, 0] = torch.nan
        return graphs

    monkeypatch.setattr(exact, "run_plan", with_nan)
    assert call("get_real_values.py", *OPTIONS, "--output", tmp_path) == 2
    assert "ioi_kl_real.json: some scores are infinite or NaN" in capfd.readouterr().err
    assert not any("_real" in name for name in files_below(tmp_path))

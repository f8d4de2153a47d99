"""The study of positions: the table that its script writes, and the figure of it."""

import json

import pandas as pd
import pytest
import torch
from running import call, files_below

from eap.graph import Graph


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("positions")
    options = ("--model", "toy", "--device", "cpu", "--head", 12, "--output", folder)
    options = (*options, "--verify", 20, "--sample", 10)
    assert call("positions.py", *options, "--task", "greater-than") == 0
    return folder


def test_circuits_with_and_without_spans_are_measured(output):
    path = output / "results/positions/toy/csv/greater-than.csv"
    table = pd.read_csv(path)
    assert set(table["circuits"]) == {"pairs", "edges", "verified"}
    assert (table["n_pairs"] >= table["n_edges"]).all()
    assert table["share_pairs"].between(0, 1).all()
    largest = table[table["share"] == table["share"].max()]
    assert largest["normalised"].between(0.95, 1.05).all()
    origin = json.loads(path.with_name("greater-than.csv-metadata.json").read_text("utf8"))
    assert "start year" in json.dumps(origin)
    graph = Graph.load(output / "graphs/toy/greater-than_spans.safetensors")
    assert graph.span_names[2] == "start year"
    assert graph.provenance["spans"] == list(graph.span_names)


def test_the_best_pairs_are_exact_and_a_sample_of_the_others(output):
    folder = output / "graphs/toy"
    path = folder / "real_test/greater-than_prob_diff_spans_verified.safetensors"
    exact, estimate = Graph.load(path), Graph.load(folder / "greater-than_spans.safetensors")
    assert int(exact.is_exact.sum()) == 30
    assert (estimate.top_n(20).in_graph <= exact.is_exact).all()
    rest = exact.edge_exists & ~exact.is_exact
    ratio = exact.scores[rest].abs().sum() / estimate.scores[rest].abs().sum()
    torch.testing.assert_close(exact.scores[rest], ratio * estimate.scores[rest])
    assert exact.provenance["settings"]["verify"] == 20


def test_the_figure_is_drawn(output):
    script = "results/positions/plot_positions.py"
    assert call(script, "--model", "toy", "--output", output) == 0
    assert {name for name in files_below(output) if name.endswith((".png", ".pdf"))} == {
        f"results/positions/toy/{kind}/{name}.{kind}"
        for kind in ("png", "pdf")
        for name in ("pairs", "shares")
    }


def test_one_pair_has_no_standard_error(tmp_path, recwarn):
    options = ("--model", "toy", "--device", "cpu", "--head", 1, "--output", tmp_path)
    assert call("positions.py", *options, "--task", "greater-than", "--ig_steps", 1) == 0
    assert not [one for one in recwarn if "degrees of freedom" in str(one.message)]
    table = pd.read_csv(tmp_path / "results/positions/toy/csv/greater-than.csv")
    assert table[["stderr", "stderr_share"]].isna().all(axis=None)
    assert table[["loss", "normalised"]].notna().all(axis=None)
    script = "results/positions/plot_positions.py"
    assert call(script, "--model", "toy", "--output", tmp_path) == 0

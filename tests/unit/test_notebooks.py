"""What results are in a notebook: sets of names, one line as text, a small table as HTML."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from eap import Areas, Faithfulness, Graph, GraphConfig, UserError
from eap.analysis.rankings import Curve
from eap.analysis.verdicts import Verdict, Verdicts
from eap.runtime import progress
from eap.runtime.notebooks import html_table
from eap.statistics.intervals import Interval

SMALL = GraphConfig(n_layers=2, n_heads=2, d_model=8, n_kv_heads=2)
EVIL = "<script>alert('x')</script>"


@pytest.fixture
def graph():
    """Random scores."""
    whole = Graph.from_config(SMALL)
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(whole.scores.shape, generator=generator) * whole.edge_exists
    return replace(whole, scores=scores, higher_is_better=True)


def test_a_circuit_is_a_set_of_names(graph):
    circuit = graph.top_n(5)
    assert len(circuit) == circuit.count_edges() == 5
    assert list(circuit) == circuit.edge_names()
    assert all(name in circuit for name in circuit)
    assert not graph.empty()


def test_circuits_are_equal_where_they_keep_the_same_edges(graph):
    circuit = graph.top_n(5)
    same = replace(circuit, scores=circuit.scores * 2)
    assert circuit == same
    assert hash(circuit) == hash(same)
    assert circuit != graph.top_n(6)
    assert circuit != circuit.edge_names()
    assert Graph.from_config(SMALL) != Graph.from_config(replace(SMALL, n_layers=3))
    assert circuit.at_all_spans(["a"]) != circuit.at_all_spans(["b"])
    assert len({circuit, same, graph}) == 2


@pytest.mark.parametrize("suffix", [".json", ".pt", ".safetensors"])
def test_labels_and_groups_are_saved_with_the_graph(graph, tmp_path, suffix):
    labelled = graph.with_labels({"a1.h0": "induction", "m0": EVIL}, groups={"a1.h0": "copying"})
    path = tmp_path / f"graph{suffix}"
    labelled.save(path)
    again = Graph.load(path)
    assert again.labels == labelled.labels == {"a1.h0": "induction", "m0": EVIL}
    assert again.groups == {"a1.h0": "copying"}
    assert labelled.top_n(3).labels == labelled.labels
    assert labelled.with_labels({"m0": ""}).labels == {"a1.h0": "induction"}
    graph.save(path)
    assert Graph.load(path).labels == {}


def test_labels_that_fit_no_node_are_refused(graph, tmp_path):
    for labels, message in (
        ({"a9.h9": "x"}, "no node 'a9.h9'"),
        ({"m0": "x" * 61}, "at most 60"),
        ({"m0": 3}, "not a string"),
        (["m0"], "texts by node"),
        (tmp_path / "none.html", "cannot read labels"),
    ):
        with pytest.raises(UserError, match=message):
            graph.with_labels(labels)


def results(graph):
    ones = torch.ones(4)
    faithfulness = Faithfulness(ones * 2, ones * 0, torch.rand(3, 4), (5, 10, 20), {"metric": EVIL})
    interval = Interval(0.5, 0.4, 0.6)
    few = np.ones((2, 4))
    curve = Curve("helpful", (0.1, 1.0), (4, 40), (2, 40), few, few, few[0], few[0] * 0)
    areas = Areas(EVIL, 40, interval, interval, interval, curve, curve)
    verdict = Verdict("sufficiency", 0.5, 0.01, EVIL, "share")
    verdicts = Verdicts(graph, (verdict,), pd.DataFrame())
    return faithfulness, areas, verdicts


def test_html_is_small_and_escaped(graph):
    for result in (graph, *results(graph)):
        html = result._repr_html_()
        assert html.startswith("<table>")
        assert EVIL not in html
        assert len(html) < 3000
    assert "&lt;b&gt;" in html_table("t", ["<b>"], [["<b>"]])


def test_a_huge_graphs_table_has_few_rows():
    large = Graph.from_config(GraphConfig(n_layers=30, n_heads=32, d_model=8, n_kv_heads=32))
    assert large._repr_html_().count("<tr>") == 12
    assert len(repr(large)) < 200


def test_text_is_one_line(graph):
    for result in (graph, *results(graph)):
        assert "\n" not in repr(result)
        assert len(repr(result)) < 300


def test_nothing_to_normalise_by_is_still_shown():
    ones = torch.ones(4)
    same = Faithfulness(ones, ones, torch.rand(1, 4), (5,), {"metric": "logit_diff"})
    assert "1 clean, 1 ablated" in same._repr_html_()


class ZMQInteractiveShell:
    """As IPython's in a notebook."""


def test_a_notebook_has_a_bar_with_rate_and_time_left(monkeypatch, capsys):
    module = type(sys)("IPython")
    module.get_ipython = ZMQInteractiveShell
    monkeypatch.setitem(sys.modules, "IPython", module)
    monkeypatch.setattr(progress, "find_spec", lambda name: None)  # no widgets
    list(progress.progress_bar(range(3), "batches", quiet=False))
    shown = capsys.readouterr().err
    assert "batches: 100%" in shown
    assert "it/s" in shown

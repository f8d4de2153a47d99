"""Circuits as sets, and graphs for other programs."""

from __future__ import annotations

from dataclasses import replace

import networkx as nx
import pandas as pd
import pytest
import torch
from hypothesis import given
from models.graphs import SMALL, graphs

from eap import Graph, GraphConfig, UserError


def circuit_of(config, *edges):
    return Graph.from_config(config).empty().add(*edges)


def test_circuits_are_sets_of_edges():
    a = circuit_of(SMALL, "input->m0", "m0->logits", "m0->m1")
    b = circuit_of(SMALL, "m0->m1", "m1->logits")
    scored = replace(a, scores=torch.ones_like(a.scores))
    assert (a & b).edge_names() == ["m0->m1"]
    assert set((a | b).edge_names()) == {*a.edge_names(), *b.edge_names()}
    assert (scored - b).edge_names() == ["input->m0", "m0->logits"]
    assert (scored - b).score("m0->m1") == 1.0
    assert set(a.remove("m0->m1", "m1->logits").edge_names()) == {"input->m0", "m0->logits"}
    assert a.count_edges() == 3  # as it was
    for change in (a.add, a.remove):
        with pytest.raises(UserError, match="no edge 'm1->m0'"):
            change("m1->m0")


def test_circuits_of_different_graphs_do_not_mix():
    a = Graph.from_config(SMALL)
    others = (Graph.from_config(replace(SMALL, n_layers=3)), {"m0->m1"}, None)
    for other, message in zip(
        others, ("different graphs", "not with set", "not with NoneType"), strict=True
    ):
        for mix in (a.__and__, a.__or__, a.__sub__):
            with pytest.raises(UserError, match=message):
                mix(other)
    # What d_model is does not tell edges apart.
    assert (a & Graph.from_config(replace(SMALL, d_model=0))).count_edges() == a.n_edges


@given(graphs())
def test_the_table_has_every_edge(graph):
    frame = graph.to_frame()
    assert frame["edge"].is_unique
    assert len(frame) == graph.n_edges
    assert "standard_error" not in frame
    for row, edge in zip(frame.to_dict("records"), graph.edges(in_graph_only=False), strict=True):
        assert (row["edge"], row["sender"], row["receiver"]) == edge[:3]
        assert (row["score"], row["in_graph"]) == (edge.score, edge.in_graph)
        assert row["sender_layer"] <= row["receiver_layer"]
        assert f"<{row['input']}>" in row["receiver"] or row["input"] == ""
    assert list(graph.to_frame(in_graph_only=True)["edge"]) == graph.edge_names()


def test_the_table_says_what_is_known():
    graph = Graph.from_config(SMALL)
    errors, exact = torch.full_like(graph.scores, 0.5), graph.edge_exists
    frame = replace(graph, standard_errors=errors, is_exact=exact).to_frame()
    ends = frame.set_index("edge").loc["input->logits"]
    assert (ends["sender_layer"], ends["receiver_layer"]) == (-1, 2)
    assert (ends["standard_error"], ends["exact"]) == (0.5, True)
    assert frame.set_index("edge").loc["m0->a1.h1<k>", "input"] == "k"
    assert isinstance(frame, pd.DataFrame)


@given(graphs())
def test_the_network_has_the_circuits_nodes_and_edges(graph):
    network = graph.to_networkx()
    # What sends nothing is there only as the end of an edge that goes no further.
    ends = {node for node, degree in network.out_degree() if degree == 0 and node != "logits"}
    assert set(network) - ends == graph.nodes_in_graph()
    assert set(graph.prune().to_networkx()) == graph.prune().nodes_in_graph()
    assert {edge for *_, edge in network.edges(data="edge")} == set(graph.edge_names())
    for *_, edge in network.edges(data=True):
        assert edge["score"] == graph.score(edge["edge"])
    assert nx.is_directed_acyclic_graph(network)


def test_an_edge_into_a_shared_key_reaches_every_head_of_the_circuit_that_reads_it():
    config = GraphConfig(n_layers=1, n_heads=4, d_model=8, n_kv_heads=2)
    edges = ("input->a0.kv1<k>", "input->a0.h0<q>", "a0.h0->logits", "a0.h3->logits")
    circuit = replace(circuit_of(config, *edges), node_scores=torch.arange(6.0))
    network = circuit.to_networkx()
    # Head 2 reads the key, too, and sends nothing.
    assert set(network["input"]) == {"a0.h0", "a0.h3"}
    dead_end = circuit_of(config, "input->a0.kv1<k>").to_networkx()
    assert set(dead_end["input"]) == {"a0.h2", "a0.h3"}
    assert network.nodes["a0.h3"] == {"kind": "head", "layer": 0, "score": 4.0}
    assert network.nodes["logits"] == {"kind": "logits", "layer": 1}
    assert set(network["input"]["a0.h3"]) == {"k"}


def test_edges_without_scores_have_no_width_in_dot(tmp_path):
    graph = Graph.from_config(SMALL)
    graph = replace(graph, scores=torch.full_like(graph.scores, torch.nan))
    graph.full().to_dot(tmp_path / "n.dot")
    text = (tmp_path / "n.dot").read_text("utf8")
    assert "headlabel" in text
    assert "nan" not in text
    assert "penwidth" not in text


def test_labels_and_groups_are_those_of_the_network(tmp_path):
    circuit = circuit_of(SMALL, "input->m0", "m0->logits")
    circuit = circuit.with_labels({"m0": "copies", "m1": "unseen"}, groups={"input": "ends"})
    circuit.to_graphml(tmp_path / "c.graphml")
    for network in (circuit.to_networkx(), nx.read_graphml(tmp_path / "c.graphml")):
        assert dict(network.nodes(data="label")) == {"input": None, "m0": "copies", "logits": None}
        assert dict(network.nodes(data="group")) == {"input": "ends", "m0": None, "logits": None}


def test_odd_names_of_spans_are_escaped_in_dot(tmp_path):
    for name, written in (('a "b"', r"a \"b\""), ("a\\", r"a\\"), ("a\nb", r"a\nb")):
        circuit = Graph.from_config(SMALL, [name]).empty().add(f"input->logits @ {name}")
        circuit.to_dot(tmp_path / "c.dot")
        lines = (tmp_path / "c.dot").read_text("utf8").splitlines()
        assert f'  "input @ {written}";' in lines
        assert f'  "input @ {written}" -> "logits @ {written}" [headlabel=' in lines[-2]
        circuit.to_graphml(tmp_path / "c.graphml")
        assert f"input @ {name}" in nx.read_graphml(tmp_path / "c.graphml")


@pytest.mark.parametrize("character", ["\0", "\x1b", "\ud800", "\uffff"])
def test_characters_that_xml_does_not_allow_are_refused_in_graphml(tmp_path, character):
    circuit = circuit_of(SMALL, "input->logits")
    for odd in (
        Graph.from_config(SMALL, [f"a{character}"]),
        circuit.with_labels({"input": character}),
        circuit.with_labels(groups={"input": character}),
    ):
        with pytest.raises(UserError, match="GraphML has no place") as error:
            odd.to_graphml(tmp_path / "c.graphml")
        assert str(error.value).isprintable()
    assert not [*tmp_path.iterdir()]


def test_graphml_and_dot_are_written(tmp_path):
    edges = ("input->a0.h1<q>", "input->a0.h1<k>", "a0.h1->logits")
    circuit = circuit_of(SMALL, *edges)
    circuit.to_graphml(tmp_path / "circuit.graphml")
    read = nx.read_graphml(tmp_path / "circuit.graphml", force_multigraph=True)
    assert {edge for *_, edge in read.edges(data="edge")} == set(edges)
    circuit.to_dot(tmp_path / "deeper" / "circuit.dot")
    dot = (tmp_path / "deeper" / "circuit.dot").read_text()
    assert dot.count("->") == 3
    assert '"input" -> "a0.h1" [headlabel="q"' in dot
    circuit.empty().to_dot(tmp_path / "empty.dot")
    assert (tmp_path / "empty.dot").read_text().rstrip().endswith("}")

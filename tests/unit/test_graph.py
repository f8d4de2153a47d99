"""Graphs: names and counts, selections and pruning against literal twins."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models.graphs import CONFIGS, GPT2, GPT2_XL, PYTHIA, SMALL, SMOLLM2, graphs
from reference import twins
from reference.named import named_edges, receivers_of_node
from reference.split_run import Shape, existing_edges, receiver_names, sender_names

from eap import Graph, GraphConfig, UserError
from eap.graph.contents import receiver_of

# ---- names, order, counts ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "n_edges"),
    [
        (GPT2, 32_491),
        (GPT2_XL, 2_235_025),
        (SMOLLM2, 70_651),
        (replace(SMOLLM2, expanded_kv=True), 123_211),
        # Without the edges from heads to the MLP of their layer.
        (PYTHIA, 32_491 - 12 * 12),
    ],
)
def test_models_have_the_published_numbers_of_edges(config, n_edges):
    graph = Graph.from_config(config)
    assert graph.n_edges == n_edges
    assert graph.count_edges() == n_edges
    assert graph.empty().count_edges() == 0


def test_senders_and_receivers_are_named_in_order():
    graph = Graph.from_config(SMALL)
    assert graph.sender_names == ("input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1")
    assert " ".join(graph.receiver_names) == (
        "a0.h0<q> a0.h1<q> a0.h0<k> a0.h1<k> a0.h0<v> a0.h1<v> m0 "
        "a1.h0<q> a1.h1<q> a1.h0<k> a1.h1<k> a1.h0<v> a1.h1<v> m1 logits"
    )


def test_shared_key_value_heads_have_names_of_their_own():
    grouped = GraphConfig(n_layers=1, n_heads=4, d_model=8, n_kv_heads=2)
    names = Graph.from_config(grouped).receiver_names
    assert " ".join(names[4:8]) == "a0.kv0<k> a0.kv1<k> a0.kv0<v> a0.kv1<v>"
    expanded = Graph.from_config(replace(grouped, expanded_kv=True)).receiver_names
    assert expanded[4:8] == ("a0.h0<k>", "a0.h1<k>", "a0.h2<k>", "a0.h3<k>")


@given(CONFIGS)
def test_shape_names_and_edges_are_those_of_the_oracle(config):
    graph = Graph.from_config(config)
    shape = Shape(config.n_layers, config.n_heads, config.n_kv_receivers, config.parallel_attn_mlp)
    assert (graph.n_forward, graph.n_backward) == (shape.n_forward, shape.n_backward)
    assert list(graph.sender_names) == sender_names(shape)
    assert list(graph.receiver_names) == receiver_names(shape)
    assert torch.equal(graph.edge_exists, existing_edges(shape))
    assert torch.equal(graph.in_graph, graph.edge_exists)


@pytest.mark.parametrize(("family", "expanded"), twins.FORMS)
def test_a_loaded_model_has_the_shape_of_the_oracle(family, expanded):
    graph = Graph.from_model(twins.load(family), expanded_kv=expanded)
    assert torch.equal(graph.edge_exists, twins.edges_of(family, expanded=expanded))


@given(graphs())
def test_edges_are_found_by_name(graph):
    names = graph.edge_names()
    assert len(names) == graph.count_edges() == len(set(names))
    for edge in list(graph.edges(in_graph_only=False))[::7]:
        u, v = graph.index(edge.name)
        assert (edge.sender, edge.receiver) == (graph.sender_names[u], graph.receiver_names[v])
        assert graph.score(edge.name) == edge.score == float(graph.scores[u, v])
        assert (edge.name in graph) == edge.in_graph == (edge.name in names)
    assert [edge.name for edge in graph.edges()] == names


@pytest.mark.parametrize(
    "name", ["m1->a0.h0<q>", "a0.h0->a0.h1<q>", "input", "input->", "x->y", "logits->m0", ""]
)
def test_what_is_no_edge_is_refused_by_name(name):
    graph = Graph.from_config(SMALL)
    for ask in (graph.index, graph.score, graph.__contains__):
        with pytest.raises(UserError, match="no edge"):
            ask(name)


@given(graphs())
def test_nodes_in_graph_are_those_that_send_and_the_logits(graph):
    edges = named_edges(graph.in_graph, graph)
    expected = {sender for sender, _ in edges} | {"logits" for _, end in edges if end == "logits"}
    assert graph.nodes_in_graph() == expected
    assert graph.count_nodes() == len(expected)


@settings(max_examples=200)
@given(graphs())
def test_every_node_of_a_pruned_circuit_has_a_way_in_and_out(graph):
    circuit = graph.prune()
    edges = named_edges(circuit.in_graph, circuit)
    reaches = {node: set() for node in circuit.nodes_in_graph()}
    for sender, receiver in edges:
        for node in reaches:
            if receiver in receivers_of_node(circuit, node):
                reaches[sender].add(node)

    def behind(start):
        found, todo = set(), [start]
        while todo:
            node = todo.pop()
            found.add(node)
            todo += reaches[node] - found
        return found

    for node in reaches:
        assert node in behind("input")
        assert "logits" in behind(node)
    # Every edge has its ends there, and nothing on a way from the input to the logits was lost.
    for sender, receiver in edges:
        assert sender in reaches
        assert any(receiver in receivers_of_node(circuit, node) for node in reaches)
    assert torch.equal(circuit.prune().in_graph, circuit.in_graph)


@given(CONFIGS, st.integers(0, 10_000), st.floats(0.05, 0.6))
def test_shared_keys_and_values_count_the_nodes_of_one_key_and_value_a_head(config, seed, density):
    whole = Graph.from_config(replace(config, expanded_kv=False))
    random = torch.rand(whole.scores.shape, generator=torch.Generator().manual_seed(seed))
    shared = whole.with_edges((random < density) & whole.edge_exists)
    one_each = Graph.from_config(replace(config, expanded_kv=True))
    in_graph = torch.zeros_like(one_each.in_graph)
    # The columns of a head's q, k and v (an MLP's is there three times) are those it shares.
    own, theirs = (receiver_of(g.config)[1:] for g in (one_each, shared))
    in_graph[:, own] = shared.in_graph[:, theirs]
    in_graph[:, -1] = shared.in_graph[:, -1]
    one_each = one_each.with_edges(in_graph)
    assert shared.nodes_in_graph() == one_each.nodes_in_graph()
    pruned, one_each = shared.prune(), one_each.prune()
    assert pruned.nodes_in_graph() == one_each.nodes_in_graph()
    # An edge into a shared key is drawn once for each head that sends: the other graph's edges.
    assert pruned.to_networkx().number_of_edges() == one_each.count_edges()
    assert set(pruned.to_networkx().edges(keys=True)) == set(
        one_each.to_networkx().edges(keys=True)
    )


def test_graphs_are_frozen_and_selections_make_new_ones():
    graph = Graph.from_config(SMALL)
    with pytest.raises(FrozenInstanceError):
        graph.scores = torch.zeros(1)
    scores = torch.randn(graph.scores.shape) * graph.edge_exists
    graph = replace(graph, scores=scores.clone())
    for select in (
        lambda: graph.top_n(3),
        lambda: graph.greedy(3),
        lambda: graph.threshold(0.5),
        lambda: graph.empty(),
        lambda: graph.empty().prune(),
    ):
        selected = select()
        assert selected is not graph
        assert selected.count_edges() < graph.count_edges() == graph.n_edges
        assert torch.equal(graph.scores, scores)
        selected.in_graph[:] = True  # theirs alone
        assert graph.empty().count_edges() == 0


def test_writing_into_a_tensor_of_a_graph_changes_no_other_graph():
    graph = Graph.from_config(SMALL)
    circuit = torch.zeros_like(graph.edge_exists)
    chosen = graph.with_edges(circuit)
    circuit[:] = True
    graph.edge_exists[:] = False
    graph.full().in_graph[:] = False
    graph.in_graph[:] = False
    assert chosen.count_edges() == 0
    assert Graph.from_config(SMALL).count_edges() == graph.n_edges == int(graph.edge_exists.sum())


@given(CONFIGS)
def test_the_number_of_edges_is_known_without_a_table(config):
    assert config.n_edges == int(Graph.from_config(config).edge_exists.sum())


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_layers": 0}, {"n_heads": -1}, {"n_heads": 2.0}, {"n_layers": True}, {"n_layers": "2"},
        {"d_model": -1}, {"n_kv_heads": 0}, {"n_heads": 3}, {"expanded_kv": 1},
        {"parallel_attn_mlp": "no"}, {"n_layers": float("inf")}, {"n_heads": None},
    ],
    ids=str,
)  # fmt: skip
def test_a_shape_that_no_model_has_is_refused(wrong):
    with pytest.raises(UserError, match=r"graph is|cannot share"):
        replace(SMALL, **wrong)


@pytest.mark.usefixtures("unchecked_shapes")
def test_tensors_of_another_shape_are_refused():
    graph = Graph.from_config(SMALL)
    for name in ("scores", "in_graph", "standard_errors", "is_exact", "node_scores"):
        with pytest.raises(UserError, match=rf"{name} is \[3\]"):
            replace(graph, **{name: torch.zeros(3)})


@pytest.mark.usefixtures("unchecked_shapes")
def test_a_circuit_of_another_shape_or_with_pairs_that_are_no_edges_is_refused():
    graph = Graph.from_config(SMALL)
    with pytest.raises(UserError, match="only where edge_exists is"):
        graph.with_edges(torch.ones_like(graph.edge_exists))
    with pytest.raises(UserError, match=r"\[7, 15\]"):
        graph.with_edges(graph.edge_exists[:3])
    for other in (graph.edge_exists.float(), graph.edge_exists.numpy(), ["m0->m1"]):
        with pytest.raises(UserError, match="boolean tensor"):
            graph.with_edges(other)

"""Graphs: names and counts, selections and pruning against literal twins."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models.graphs import CONFIGS, GPT2, GPT2_XL, PYTHIA, SMALL, SMOLLM2, graphs
from reference import twins
from reference.split_run import Shape, existing_edges, receiver_names, sender_names

from eap import Graph, GraphConfig, UserError


def receivers_of_node(graph, node):
    """Every receiver that a node reads, by the definition of the names."""
    config = graph.config
    if node.startswith("m") or node == "logits":
        return {node}
    if node == "input":
        return set()
    layer, head = (int(part[1:]) for part in node.split("."))
    kv_head = head // (config.n_heads // config.n_kv_receivers)
    kv = "h" if config.n_kv_receivers == config.n_heads else "kv"
    return {f"a{layer}.h{head}<q>", f"a{layer}.{kv}{kv_head}<k>", f"a{layer}.{kv}{kv_head}<v>"}


def named_edges(table, graph):
    return [(graph.sender_names[u], graph.receiver_names[v]) for u, v in table.nonzero().tolist()]


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
def test_nodes_in_graph_are_those_with_an_edge(graph):
    expected = set()
    for sender, receiver in named_edges(graph.in_graph, graph):
        expected.add(sender)
        expected |= {
            node
            for node in (*graph.sender_names, "logits")
            if receiver in receivers_of_node(graph, node)
        }
    assert graph.nodes_in_graph() == expected
    assert graph.count_nodes() == len(expected)


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


# ---- selections against literal twins ------------------------------------------------------------


BY = st.sampled_from(["magnitude", "helpful", "harmful"])


def rank(graph, by):
    """What each edge (sender, receiver) is ranked by."""
    # Helpful: corrupting the edge lowers a metric of which high values are better.
    worse = -graph.scores if graph.higher_is_better else graph.scores
    scores = {"magnitude": graph.scores.abs(), "helpful": worse, "harmful": -worse}[by]
    return {(u, v): float(scores[u, v]) for u, v in graph.edge_exists.nonzero().tolist()}


@given(graphs(), st.floats(0, 1), BY)
def test_top_n_takes_the_highest_scores(graph, share, by):
    n = int(share * graph.n_edges)
    scores = rank(graph, by)
    best = sorted(scores, key=lambda edge: (-scores[edge], edge))[:n]
    selected = graph.top_n(n, by=by)
    assert selected.in_graph.nonzero().tolist() == sorted(map(list, best))


@given(graphs(), st.floats(0, 2), BY)
def test_threshold_takes_all_scores_at_least_that_large(graph, minimum, by):
    scores = rank(graph, by)
    # The threshold is compared as the scores are: in float32.
    minimum = float(torch.tensor(minimum))
    expected = sorted(list(edge) for edge, score in scores.items() if score >= minimum)
    selected = graph.threshold(minimum, by=by)
    assert selected.in_graph.nonzero().tolist() == expected


def greedy_twin(graph, n, by):
    """n times: of the edges whose receiver belongs to a node in the circuit, add the best."""
    scores, nodes, chosen = rank(graph, by), {"logits"}, []
    for _ in range(n):
        readable = set().union(*(receivers_of_node(graph, node) for node in nodes))
        candidates = [
            (u, v)
            for u, v in scores
            if (u, v) not in chosen and graph.receiver_names[v] in readable
        ]
        best = min(candidates, key=lambda edge: (-scores[edge], edge[1], edge[0]))
        chosen.append(best)
        nodes.add(graph.sender_names[best[0]])
    return chosen


@given(graphs(), st.integers(0, 60), BY)
def test_greedy_adds_the_best_edge_into_the_circuit_each_time(graph, n, by):
    n = min(n, graph.n_edges)
    selected = graph.greedy(n, by=by)
    assert selected.count_edges() == n
    expected = sorted(list(edge) for edge in greedy_twin(graph, n, by))
    assert selected.in_graph.nonzero().tolist() == expected


@given(graphs(), st.lists(st.integers(0, 60), max_size=5), BY)
def test_one_greedy_search_serves_many_sizes(graph, sizes, by):
    sizes = [min(n, graph.n_edges) for n in sizes]
    found = list(graph.greedy_circuits(sizes, by=by))
    assert len(found) == len(sizes)
    for n, circuit in zip(sizes, found, strict=True):
        assert circuit.in_graph.equal(graph.greedy(n, by=by).in_graph)


@given(graphs())
def test_greedy_can_take_every_edge(graph):
    assert torch.equal(graph.greedy(graph.n_edges).in_graph, graph.edge_exists)
    assert torch.equal(graph.top_n(graph.n_edges).in_graph, graph.edge_exists)


def test_greedy_never_takes_an_edge_that_does_not_lead_to_the_logits():
    graph = Graph.from_config(SMALL)
    scores = torch.zeros(graph.scores.shape)
    scores[graph.index("input->a0.h0<q>")] = 9.0  # best of all, but its head is not in the circuit
    scores[graph.index("a1.h1->logits")] = 1.0
    scores[graph.index("a0.h1->a1.h1<v>")] = -2.0
    scores[graph.index("input->a0.h1<k>")] = 0.5
    graph = replace(graph, scores=scores)
    assert set(graph.greedy(3).edge_names()) == {
        "a1.h1->logits",
        "a0.h1->a1.h1<v>",
        "input->a0.h1<k>",
    }
    # The negative one is harmful where low values are better: worse than nothing at all.
    low = replace(graph, higher_is_better=False)
    assert "a0.h1->a1.h1<v>" not in low.greedy(3, by="helpful")
    assert set(replace(graph, higher_is_better=True).greedy(2, by="harmful").edge_names()) == {
        "a1.h1->logits",
        "input->a1.h1<q>",  # a zero: the earliest into the head
    }


def prune_twin(graph):
    """Keep the edges on some path: forward from the input, backward from the logits."""
    edges = named_edges(graph.in_graph, graph)
    nodes = [*graph.sender_names, "logits"]
    reads = {node: receivers_of_node(graph, node) for node in nodes}
    reached, reaching = {"input"}, {"logits"}
    for _ in nodes:
        reached |= {
            node
            for node in nodes
            for sender, receiver in edges
            if sender in reached and receiver in reads[node]
        }
        reaching |= {
            sender for node in reaching for sender, receiver in edges if receiver in reads[node]
        }
    alive = reached & reaching
    return {
        f"{sender}->{receiver}"
        for sender, receiver in edges
        if sender in alive and any(receiver in reads[node] for node in alive)
    }


@given(graphs())
def test_pruning_keeps_what_lies_on_a_path_from_the_input_to_the_logits(graph):
    assert set(graph.prune().edge_names()) == prune_twin(graph)


@given(graphs(), st.integers(1, 25))
def test_pruning_keeps_what_lies_on_a_path_in_small_greedy_circuits(graph, n):
    circuit = graph.greedy(min(n, graph.n_edges))
    assert set(circuit.prune().edge_names()) == prune_twin(circuit)


@given(graphs())
def test_pruning_twice_changes_nothing_more(graph):
    once = graph.prune()
    assert torch.equal(once.prune().in_graph, once.in_graph)
    assert not (once.in_graph & ~graph.in_graph).any()
    assert torch.equal(once.scores, graph.scores)


def test_pruning_removes_chains_that_begin_or_end_nowhere():
    graph = Graph.from_config(SMALL)

    def circuit(*edges):
        in_graph = torch.zeros_like(graph.edge_exists)
        for edge in edges:
            in_graph[graph.index(edge)] = True
        return graph.with_edges(in_graph)

    path = ("input->a0.h0<k>", "a0.h0->m0", "m0->a1.h1<v>", "a1.h1->logits")
    assert set(circuit(*path).prune().edge_names()) == set(path)
    for missing in range(len(path)):
        broken = [edge for index, edge in enumerate(path) if index != missing]
        assert circuit(*broken).prune().count_edges() == 0
    dangling = ("input->a0.h1<q>", "a0.h1->a1.h0<q>", "m0->m1")
    assert set(circuit(*path, *dangling).prune().edge_names()) == set(path)


def test_ranking_is_refused_where_its_direction_is_unknown():
    graph = Graph.from_config(SMALL)
    for select in (graph.top_n, graph.greedy, graph.threshold):
        for by in ("helpful", "harmful"):
            with pytest.raises(UserError, match="higher_is_better"):
                select(1, by=by)
        with pytest.raises(UserError, match="'magnitude', 'helpful', 'harmful'"):
            select(1, by="signed")
        assert select(1).config == SMALL


@pytest.mark.parametrize("n", [-1, 10_000, 2.5, True, "3", None, math.nan])
def test_a_selection_of_more_edges_than_there_are_is_refused(n):
    graph = Graph.from_config(SMALL)
    for select in (graph.top_n, graph.greedy):
        with pytest.raises(UserError, match="cannot select"):
            select(n)


def test_a_threshold_may_come_from_the_scores():
    graph = Graph.from_config(SMALL)
    graph = replace(graph, scores=torch.rand(graph.scores.shape) * graph.edge_exists)
    middle = graph.scores[graph.edge_exists].median()
    assert graph.threshold(middle).count_edges() == graph.threshold(float(middle)).count_edges() > 1


@pytest.mark.parametrize("minimum", [math.nan, "0.1", None, True])
def test_a_threshold_is_a_number(minimum):
    with pytest.raises(UserError, match="a threshold is a number"):
        Graph.from_config(SMALL).threshold(minimum)


def test_a_selection_by_unknown_scores_is_refused():
    graph = Graph.from_config(SMALL)
    scores = torch.zeros(graph.scores.shape)
    scores[0, 0] = math.nan
    for select in (
        lambda g: g.top_n(1),
        lambda g: g.greedy(1),
        lambda g: g.threshold(0.0),
    ):
        with pytest.raises(UserError, match="NaN"):
            select(replace(graph, scores=scores))


@given(graphs(), st.integers(0, 9), BY)
def test_nodes_are_kept_by_their_scores_with_all_edges_among_them(graph, n, by):
    generator = torch.Generator().manual_seed(n)
    scores = torch.randn(graph.n_forward, generator=generator).round()
    scores[torch.rand(scores.shape, generator=generator) < 0.2] = math.nan
    graph = replace(graph, node_scores=scores)
    worse = -scores if graph.higher_is_better else scores
    ranks = {"magnitude": scores.abs(), "helpful": worse, "harmful": -worse}[by].tolist()
    scored = [i for i in range(1, graph.n_forward) if not math.isnan(ranks[i])]
    if n > len(scored):
        with pytest.raises(UserError, match=f"cannot select {n} scored nodes"):
            graph.top_n_nodes(n, by=by)
        return
    best = sorted(scored, key=lambda i: (-ranks[i], i))[:n]
    unscored = [i for i in range(graph.n_forward) if math.isnan(ranks[i])]
    kept = {graph.sender_names[i] for i in (0, *best, *unscored)} | {"logits"}
    readable = set().union(*(receivers_of_node(graph, node) for node in kept))
    expected = {
        edge.name
        for edge in graph.edges(in_graph_only=False)
        if edge.sender in kept and edge.receiver in readable
    }
    circuit = graph.top_n_nodes(n, by=by)
    assert set(circuit.edge_names()) == expected
    assert circuit.provenance["level"] == "node"


def test_a_selection_of_nodes_needs_their_scores():
    with pytest.raises(UserError, match="level='node'"):
        Graph.from_config(SMALL).top_n_nodes(1)

"""Selections of edges against literal twins."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models.graphs import SMALL, graphs
from reference.named import named_edges, receivers_of_node

from eap import Graph, UserError

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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_of_half_precision_are_ranked_as_they_are(dtype):
    scores = torch.randn(SMALL.n_forward, SMALL.n_backward, dtype=dtype)
    half = replace(Graph.from_config(SMALL), scores=scores)
    full = replace(half, scores=scores.float())
    assert half.greedy(20) == full.greedy(20)
    assert half.top_n(20) == full.top_n(20)


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


def test_sizes_of_greedy_circuits_are_refused_at_the_call():
    graph = replace(Graph.from_config(SMALL), scores=torch.ones(SMALL.n_forward, SMALL.n_backward))
    with pytest.raises(UserError, match="cannot select"):
        graph.greedy_circuits([5, -1])
    with pytest.raises(UserError, match="sizes is 5; it must be a list of whole numbers"):
        graph.greedy_circuits(5)


@pytest.mark.parametrize("minimum", [math.nan, math.inf, -math.inf, "0.1", None, True])
def test_a_threshold_is_a_finite_number(minimum):
    with pytest.raises(UserError, match=r"minimum is .*; it must be a number"):
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


@pytest.mark.parametrize("by", ["magnitude", "helpful", "harmful"])
def test_infinite_scores_rank_first_or_last_among_edges_and_nodes_that_exist(by):
    graph = replace(Graph.from_config(SMALL), higher_is_better=True)
    scores = torch.full(graph.scores.shape, math.inf).masked_fill(~graph.edge_exists, 0)
    nodes = torch.full((graph.n_forward,), math.inf)
    nodes[:2] = math.nan
    graph = replace(graph, scores=scores, node_scores=nodes)
    for n in (5, graph.n_edges):
        for circuit in (graph.top_n(n, by=by), graph.greedy(n, by=by)):
            assert circuit.count_edges() == n
            assert not (circuit.in_graph & ~graph.edge_exists).any()
    kept = graph.top_n_nodes(2, by=by).nodes_in_graph()
    assert kept == {"input", "a0.h0", "a0.h1", "m0", "logits"}


def test_a_selection_of_nodes_needs_their_scores():
    with pytest.raises(UserError, match="level='node'"):
        Graph.from_config(SMALL).top_n_nodes(1)

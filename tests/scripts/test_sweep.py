"""Sizes of a faithfulness curve, and the random circuits beside it."""

from __future__ import annotations

from itertools import chain, pairwise

import pytest

from eap.graph.graph import Graph, GraphConfig
from eap.runtime.errors import UserError
from eap.studies.sweep import greedy_by_random_scores, pareto_sizes

CONFIG = GraphConfig(n_layers=3, n_heads=3, d_model=8, n_kv_heads=3)


def test_sizes_that_are_given_are_taken_in_order():
    assert pareto_sizes(1001, 500, [300, 40, 300]) == [40, 300]
    assert pareto_sizes(301, 500) == [30, 40, 50, 60, 70, 80, 90, 100, 200, 300]
    with pytest.raises(UserError, match="--sizes 501: the graph has 500 edges"):
        pareto_sizes(1001, 500, [30, 501])


def test_greedy_by_random_scores_are_as_small_as_their_size_allows():
    graph = Graph.from_config(CONFIG)
    sizes = [5, 20, 60, graph.n_edges]
    drawn = greedy_by_random_scores(graph, sizes, 3, seed=0)
    assert [len(of_size) for of_size in drawn] == [3] * len(sizes)
    for n, of_size in zip(sizes, drawn, strict=True):
        for circuit in of_size:
            assert circuit.prune().in_graph.equal(circuit.in_graph)
            # The smallest pruned greedy selection of at least n edges, by trying all.
            all_of_them = circuit.greedy_circuits(range(graph.n_edges + 1))
            counts = [each.prune().count_edges() for each in all_of_them]
            assert circuit.count_edges() == min(count for count in counts if count >= n)
    for of_one_order in zip(*drawn, strict=True):
        for small, large in pairwise(of_one_order):
            assert not (small.in_graph & ~large.in_graph).any()
    again = greedy_by_random_scores(graph, sizes, 3, seed=0)
    for circuit, same in zip(chain(*drawn), chain(*again), strict=True):
        assert circuit.in_graph.equal(same.in_graph)
    assert not drawn[0][0].in_graph.equal(drawn[0][1].in_graph)

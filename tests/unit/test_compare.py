"""Overlaps, hypergeometric p-values and rank agreement, against hand-computed cases."""

from dataclasses import replace
from itertools import combinations
from math import comb

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from eap.analysis import compare
from eap.graph.graph import Graph, GraphConfig
from eap.runtime.errors import UserError

ONE_LAYER = GraphConfig(n_layers=1, n_heads=1, d_model=4, n_kv_heads=1)
"""Senders input, a0.h0, m0; receivers q, k, v, m0, logits: 8 edges."""


def circuit(*edges: str, config: GraphConfig = ONE_LAYER) -> Graph:
    graph = Graph.from_config(config)
    in_graph = torch.zeros_like(graph.in_graph)
    for edge in edges:
        in_graph[graph.index(edge)] = True
    return graph.with_edges(in_graph)


def scored(*scores: float) -> Graph:
    graph = Graph.from_config(ONE_LAYER)
    values = torch.zeros(graph.scores.shape)
    values[graph.edge_exists] = torch.tensor(scores, dtype=torch.float32)
    return replace(graph, scores=values)


def test_edge_overlap_by_hand():
    first = circuit("input->a0.h0<v>", "a0.h0->logits", "input->logits")
    second = circuit("input->a0.h0<v>", "a0.h0->logits", "a0.h0->m0", "m0->logits")
    overlap = compare.edge_overlap(first, second)
    assert overlap == compare.Overlap(n_shared=2, n_first=3, n_second=4, n_all=8)
    assert overlap.iou == 2 / 5
    assert overlap.precision == 2 / 3
    assert overlap.recall == 2 / 4
    without_mlps = compare.edge_overlap(first, second, include_mlps=False)
    assert without_mlps == compare.Overlap(n_shared=2, n_first=3, n_second=2, n_all=5)


def test_nodes_have_neither_the_input_nor_the_logits():
    first = circuit("input->a0.h0<v>", "a0.h0->logits", "input->logits")
    second = circuit("input->m0", "m0->logits")
    assert compare.nodes(first).tolist() == [True, False]
    overlap = compare.node_overlap(first, second)
    assert overlap == compare.Overlap(n_shared=0, n_first=1, n_second=1, n_all=2)
    assert overlap.iou == 0
    assert compare.node_overlap(first, second, include_mlps=False).n_all == 1


def test_a_circuit_overlaps_itself_fully_and_nothing_is_nan():
    own = circuit("input->m0", "m0->logits")
    for overlap in (compare.edge_overlap(own, own), compare.node_overlap(own, own)):
        assert (overlap.iou, overlap.precision, overlap.recall) == (1, 1, 1)
    nothing = compare.edge_overlap(circuit(), circuit())
    assert np.isnan(nothing.iou)
    assert np.isnan(nothing.precision)
    assert nothing.p_value == 1


@pytest.mark.parametrize(("first", "second"), [(3, 2), (2, 4), (1, 1), (4, 4), (0, 3)])
def test_p_value_is_that_of_an_enumeration(first, second):
    population = 6
    fixed = set(range(first))
    draws = [len(fixed & set(drawn)) for drawn in combinations(range(population), second)]
    assert len(draws) == comb(population, second)
    for shared in range(min(first, second) + 1):
        if max(0, first + second - population) > shared:
            continue
        expected = sum(x >= shared for x in draws) / len(draws)
        overlap = compare.Overlap(shared, first, second, population)
        assert overlap.p_value == pytest.approx(expected)


def test_shares_are_directional():
    a = circuit("input->a0.h0<v>", "a0.h0->logits")
    b = circuit("input->a0.h0<v>", "a0.h0->logits", "input->m0", "m0->logits")
    overlap = compare.edge_overlap(a, b)
    # All of a belongs to b; half of b belongs to a.
    assert (overlap.iou, overlap.precision, overlap.recall) == (0.5, 1, 0.5)
    # Two chosen edges of eight, both among the four: C(4, 2) / C(8, 2).
    assert overlap.p_value == pytest.approx(6 / 28)
    assert compare.node_overlap(b, a).precision == 0.5


def test_average_overlap_by_hand():
    exact = scored(8, -7, 6, 5, 4, 3, 2, 1)
    estimate = scored(7, -8, 1, 5, 4, 3, 2, 6)
    # Tops: {0} and {1}; {0, 1} twice; {0, 1, 2} and {1, 0, 7}; {0, 1, 2, 3} and {1, 0, 7, 3}.
    agreement = np.array([0, 1, 2 / 3, 3 / 4])
    expected = np.cumsum(agreement) / np.arange(1, 5)
    assert compare.average_overlap(exact, estimate, 4) == pytest.approx(expected)
    assert compare.average_overlap(exact, exact, 8).tolist() == [1] * 8
    with pytest.raises(UserError, match="max_depth is 9; it must be a whole number from 1 to 8"):
        compare.average_overlap(exact, exact, 9)


@given(st.lists(st.floats(-1, 1, width=32), min_size=16, max_size=16), st.integers(1, 8))
def test_average_overlap_is_that_of_the_definition(values, depth):
    first, second = scored(*values[:8]), scored(*values[8:])
    orders = [
        sorted(range(8), key=lambda i, own=own: -abs(own[i])) for own in (values[:8], values[8:])
    ]
    agreements = [len(set(orders[0][:d]) & set(orders[1][:d])) / d for d in range(1, depth + 1)]
    found = compare.average_overlap(first, second, depth)[-1]
    assert found == pytest.approx(sum(agreements) / depth)


def test_agreement_of_scores_by_hand():
    exact = scored(1, 2, 3, 4, 5, 6, 7, 8)
    doubled = compare.agreement(scored(-2, 4, 6, -8, 10, 12, 14, 16), exact)
    assert doubled.pearson == pytest.approx(1)
    assert doubled.kendall == pytest.approx(1)
    assert compare.agreement(scored(8, 7, 6, 5, 4, 3, 2, 1), exact).kendall == pytest.approx(-1)
    # One exchanged pair of 28: (27 - 1) / 28.
    exchanged = compare.agreement(scored(2, 1, 3, 4, 5, 6, 7, 8), exact)
    assert exchanged.kendall == pytest.approx(26 / 28)
    # Signs count in the difference, and only there.
    assert compare.agreement(scored(-1, 2, 3, 4, 5, 6, 7, 4), exact).mean_difference == 6 / 8
    assert np.isnan(compare.agreement(scored(*[1] * 8), exact).pearson)


def test_only_exact_and_known_scores_are_compared():
    exact, estimate = scored(1, 2, 3, 4, 5, 6, 7, 8), scored(2, 2, 3, 4, 5, 6, 7, float("nan"))
    known = torch.zeros_like(exact.in_graph)
    known[exact.index("input->a0.h0<q>")] = True
    known[exact.index("m0->logits")] = True
    assert len(compare.paired_scores(exact, estimate)[0]) == 7
    assert compare.agreement(estimate, replace(exact, is_exact=known)).mean_difference == 1
    nothing = scored(*[float("nan")] * 8)
    with pytest.raises(UserError, match="no edge with a score in both"):
        compare.paired_scores(exact, nothing)


def test_two_shapes_cannot_be_compared():
    larger = Graph.from_config(replace(ONE_LAYER, n_heads=2, n_kv_heads=2))
    with pytest.raises(UserError, match="different shapes"):
        compare.edge_overlap(scored(*range(8)), larger)


@given(st.integers(0, 2**32 - 1), st.integers(3, 12))
def test_a_weighted_agreement_is_that_of_repeated_edges(seed, n):
    """An edge with weight 3 counts as three of its kind (whose ties among each other do not)."""
    generator = np.random.default_rng(seed)
    a, b = generator.integers(0, 6, n).astype(float), generator.integers(0, 6, n).astype(float)
    weights = generator.integers(1, 4, n).astype(float)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return
    repeated = [np.repeat(values, weights.astype(int)) for values in (a, b)]
    assert compare.weighted_kendall(a, b, np.ones(n)) == pytest.approx(
        stats.kendalltau(a, b)[0], abs=1e-12
    )
    # tau-b leaves out tied pairs, so those of an edge with itself change nothing.
    assert compare.weighted_kendall(a, b, weights) == pytest.approx(
        stats.kendalltau(*repeated)[0], abs=1e-12
    )


def test_agreement_over_a_sample_has_weights():
    graph = Graph.from_config(GraphConfig(n_layers=2, n_heads=2, d_model=4, n_kv_heads=2))
    generator = torch.Generator().manual_seed(0)
    estimate, exact = (
        replace(graph, scores=torch.randn(graph.scores.shape, generator=generator))
        for _ in range(2)
    )
    ones = torch.ones(graph.scores.shape, dtype=torch.float64)
    plain = compare.agreement(estimate, exact)
    weighted = compare.agreement(estimate, exact, weights=ones * 3)
    assert compare.agreement(estimate, exact, weights=ones.bfloat16() * 3) == weighted
    assert weighted.pearson == pytest.approx(plain.pearson)
    assert weighted.kendall == pytest.approx(plain.kendall)
    assert weighted.mean_difference == pytest.approx(plain.mean_difference)
    with pytest.raises(UserError, match=r"weights is \[3, 3\]; these graphs have \[7, 15\]"):
        compare.agreement(estimate, exact, weights=torch.ones(3, 3))

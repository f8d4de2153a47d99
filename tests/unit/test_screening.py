"""What a sample of unverified edges says of the rest."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import eap
from eap.analysis.screening import (
    choose_edges,
    merge,
    report,
    total_error,
    upper_share,
    weights_of,
)
from eap.graph.numbering import GraphConfig
from eap.runtime.errors import UserError


@pytest.mark.parametrize(("n_all", "n"), [(400, 380), (400, 200), (400, 20)])
def test_the_error_of_a_total_is_that_of_samples_without_replacement(n_all, n):
    """Against many samples of one population."""
    generator = np.random.default_rng(0)
    population = generator.exponential(size=n_all)
    samples = [generator.choice(population, n, replace=False) for _ in range(3000)]
    totals = [sample.mean() * n_all for sample in samples]
    reckoned = np.mean([total_error(sample, n_all) for sample in samples])
    assert reckoned == pytest.approx(np.std(totals), rel=0.06)


def test_a_sample_of_all_leaves_no_error_and_one_value_tells_none():
    assert total_error(np.array([1.0, 2.0]), 2) == 0.0
    assert math.isnan(total_error(np.array([1.0]), 10))


def test_the_largest_share_that_a_sample_leaves_possible():
    """None found of 59 leaves 5% possible, with 95% confidence (0.95^59 = 0.0485)."""
    assert upper_share(0, 59) == pytest.approx(1 - 0.05 ** (1 / 59))
    assert upper_share(7, 7) == 1.0


# ---- which edges are patched ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def estimates():
    """Two estimates of one graph, the second with ties."""
    graph = eap.Graph.from_config(GraphConfig(n_layers=2, n_heads=2, d_model=4, n_kv_heads=2))
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(graph.scores.shape, generator=generator)
    second = (torch.randn(graph.scores.shape, generator=generator) * 2).round()
    return [replace(graph, scores=scores * graph.edge_exists) for scores in (first, second)]


@pytest.mark.parametrize("top", [1, 7, 20, 10_000])
def test_the_best_by_either_estimate_are_chosen(estimates, top):
    """Against a loop over the edges."""
    chosen = choose_edges(estimates, top=top, sample=5, seed=1)
    names = estimates[0].edge_names()
    best: dict[str, int] = {}
    for graph in estimates:
        ordered = sorted(names, key=lambda name: -abs(graph.score(name)))
        for rank, name in enumerate(ordered):
            best[name] = min(rank, best.get(name, rank))
    expected = set(sorted(names, key=lambda name: best[name])[:top])
    assert {name for name in names if chosen.top[estimates[0].index(name)]} == expected
    assert int(chosen.sample.sum()) == min(5, max(0, len(names) - top))
    assert not (chosen.sample & chosen.top).any()
    assert not (chosen.all & ~estimates[0].edge_exists).any()


def test_weights_stand_for_every_edge(estimates):
    n_edges = estimates[0].n_edges
    chosen = choose_edges(estimates, top=20, sample=5, seed=1)
    weights = chosen.weights(n_edges)
    assert float(weights.sum()) == pytest.approx(n_edges)
    assert (weights[chosen.top] == 1).all()
    assert (weights[chosen.sample] == (n_edges - 20) / 5).all()


def test_exact_values_of_another_scale_rank_above_what_they_rank_above(estimates):
    """Exact values of KL are squares, so to speak; the best of them stay the best."""
    estimate = estimates[0]
    chosen = choose_edges([estimate], top=12, sample=8, seed=1)
    squares = replace(estimate, scores=1e-3 * estimate.scores**2, is_exact=chosen.all)
    found = merge(estimate, squares, chosen)
    assert found.scores[chosen.all].equal(squares.scores[chosen.all])
    assert (found.top_n(12).in_graph & chosen.top).sum() >= 11
    rest = estimate.edge_exists & ~chosen.all
    ratio = found.scores[rest] / estimate.scores[rest]
    assert ratio.min() == pytest.approx(float(ratio.max()))
    assert merge(estimate, squares).scores[rest].abs().max() < squares.scores[chosen.top].max()


def test_estimates_of_no_graph_or_of_two_shapes_choose_no_edges(estimates):
    other = eap.Graph.from_config(replace(estimates[0].config, n_layers=3))
    for graphs, message in (([], "no estimates"), ([estimates[0], other], "different shapes")):
        with pytest.raises(UserError, match=message):
            choose_edges(graphs, top=1, sample=1, seed=0)


def test_a_report_says_what_was_and_was_not_looked_at(estimates):
    estimate, exact = estimates
    for top, sample, says, not_said in (
        (0, 9, "sampled: 9 of the 46 others", "median"),
        (9, 0, "no sample of the 37 others", "nothing can"),
        (46, 9, "nothing can have been missed", "sampled"),
        (9, 9, "above the median verified value", "nothing can"),
    ):
        text = report(estimate, exact, choose_edges([estimate], top=top, sample=sample, seed=0))
        assert says in text
        assert not_said not in text
        assert "nan" not in text


def test_a_graph_of_another_choice_is_refused(estimates):
    settings = {"verify": 20, "sample": 5, "seed": 1}
    chosen = choose_edges(estimates, top=20, sample=5, seed=1)
    exact = replace(estimates[0], is_exact=chosen.all, provenance={"settings": settings})
    assert weights_of(exact, estimates).equal(chosen.weights(exact.n_edges))
    with pytest.raises(UserError, match="these estimates choose"):
        weights_of(exact, estimates[:1])
    with pytest.raises(UserError, match="does not say how"):
        weights_of(replace(exact, provenance={}), estimates)
    assert weights_of(replace(exact, is_exact=exact.edge_exists), estimates) is None

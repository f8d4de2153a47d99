"""Certified edges stay in the circuit of every data set within their radius."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import eap
from eap.analysis import certificates
from eap.analysis.certificates import Votes, certify, draw_subsets, tally
from eap.data.collections import known_circuits
from eap.engine.score_blocks import KeepEdges
from eap.graph.graph import GraphConfig
from eap.runtime.errors import UserError

QUIET = {"steps": 2, "quiet": True}


# ---- the promise, against all data sets within the radius ----------------------------------------


def members_of_all_subsets(scores, find):
    """Which edges are in the circuit of every subset of some examples; subset s holds bit i of s.

    Args:
        scores: of every example, [example, n_forward, n_backward].
        find: a circuit from mean scores.
    """
    members = torch.zeros(2 ** len(scores), *scores.shape[1:], dtype=torch.bool)
    for subset in range(1, len(members)):
        rows = [i for i in range(len(scores)) if subset >> i & 1]
        members[subset] = find(scores[rows].mean(0)).in_graph
    return members.double()


def chances_of_all_data_sets(members, p_delete):
    """The chance that an edge is in a random subset's circuit, for every data set of the examples.

    chance(D) is the sum over subsets S of D of their probability times membership: one example at
    a time, a data set with it is a mixture of one that lost it and one that kept it.
    """
    chances, n = members, int(np.log2(len(members)))
    for bit in range(n):
        pairs = chances.view(-1, 2, 2**bit, *chances.shape[1:])
        without, kept = pairs[:, 0], pairs[:, 1]
        mixed = p_delete * without + (1 - p_delete) * kept
        chances = torch.stack([without, mixed], 1).view(chances.shape)
    return chances


def assert_no_certificate_breaks(votes, chances, n, n_all):
    """Over all data sets: n examples were certified, the others may come in or take their place."""
    here = 2**n - 1
    radius = torch.from_numpy(votes.radius)
    is_in, is_out = torch.from_numpy(votes.is_in), torch.from_numpy(votes.is_out)
    n_checked = 0
    for other in range(2**n_all):
        lost, added = (here & ~other).bit_count(), (other & ~here).bit_count()
        within = radius >= max(lost, added)  # a replaced example is one change
        assert (chances[other] > 0.5)[within & is_in].all()
        assert (chances[other] < 0.5)[within & is_out].all()
        n_checked += int((within & (is_in | is_out)).sum())
    return n_checked


SELECTIONS = [("greedy", 5), ("top_n", 5), ("threshold", 0.2)]


@pytest.mark.parametrize(
    ("name", "selection", "size"),
    [("induction", "greedy", 5), ("majority", "top_n", 5), ("induction", "threshold", 0.2)],
)
def test_no_certificate_of_a_known_model_breaks(name, selection, size):
    """All subsets of 10 examples, all data sets within the radius of the first 8."""
    known, n, n_all, p_delete = known_circuits.load(name), 8, 10, 0.8
    universe = known.dataset.head(n_all)
    graph = eap.attribute(known.model, universe, **QUIET)
    names = replace(graph, in_graph=graph.edge_exists).edge_names()
    kept = torch.zeros(n_all, len(names), dtype=torch.float64)
    keep = KeepEdges(graph.config, names, kept)
    eap.attribute(known.model, universe, observers=[keep], **QUIET)
    scores = torch.zeros(n_all, graph.n_forward, graph.n_backward, dtype=torch.float64)
    scores[:, graph.edge_exists] = kept

    def find(mean):
        return getattr(replace(graph, scores=mean), selection)(size).prune()

    chances = chances_of_all_data_sets(members_of_all_subsets(scores, find), p_delete)
    found = certify(
        known.model, universe.head(n), size, selection=selection, p_delete=p_delete,
        n_subsets=500, alpha=0.001, simultaneous=True, **QUIET,
    )  # fmt: skip
    chance = chances[2**n - 1].numpy()
    exists = graph.edge_exists.numpy()
    assert ((found.edges.low <= chance) & (chance <= found.edges.high))[exists].all()
    assert assert_no_certificate_breaks(found.edges, chances, n, n_all) > 100
    assert found.edges.radius.max() >= 1
    assert known.circuit.in_graph[torch.from_numpy(found.edges.is_in)].all()


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    p_delete=st.sampled_from([0.5, 0.7, 0.9, 0.97]),
    noise=st.sampled_from([0.1, 1.0, 10.0]),
    selection=st.sampled_from(SELECTIONS),
)
def test_no_certificate_of_random_scores_breaks(seed, p_delete, noise, selection):
    """The exact chances in place of their bounds: the theorem itself, with nothing to estimate."""
    n, n_all = 5, 8
    graph = eap.Graph.from_config(GraphConfig(n_layers=1, n_heads=2, n_kv_heads=2, d_model=4))
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(n_all, *graph.scores.shape, generator=generator, dtype=torch.float64)
    scores = (scores * noise + scores[0]) * graph.edge_exists

    def find(mean):
        return getattr(replace(graph, scores=mean), selection[0])(selection[1]).prune()

    chances = chances_of_all_data_sets(members_of_all_subsets(scores, find), p_delete)
    exact = chances[2**n - 1].numpy()
    assert_no_certificate_breaks(Votes(exact, exact, exact, p_delete), chances, n, n_all)


# ---- votes ---------------------------------------------------------------------------------------


def test_bounds_are_those_of_clopper_and_pearson():
    votes = Votes.of(np.array([0, 3, 10]), 10, 0.9, 0.05)
    # Tables: 3 of 10 has [.0667, .6525], 0 of 10 [0, .3085].
    np.testing.assert_allclose(votes.low, [0, 0.0667, 0.6915], atol=1e-4)
    np.testing.assert_allclose(votes.high, [0.3085, 0.6525, 1], atol=1e-4)
    assert votes.words() == ["out", "abstains", "in"]


@given(st.floats(0, 1), st.floats(0.01, 0.99))
def test_a_radius_is_the_largest_that_the_bound_allows(low, p_delete):
    votes = Votes(np.array(low), np.array(low), np.array(1.0), p_delete)
    expected = max([r for r in range(200) if p_delete**r > 1.5 - low], default=-1)
    assert int(votes.radius) == min(expected, 199)
    mirrored = Votes(np.array(1 - low), np.array(0.0), np.array(1 - low), p_delete)
    if abs(low - 0.5) > 1e-9:
        assert int(mirrored.radius) == int(
            Votes(np.array(1 - (1 - low)), np.array(1 - (1 - low)), np.array(1.0), p_delete).radius
        )


def test_subsets_go_with_the_example_wherever_it_stands():
    examples = known_circuits.load("xor").dataset.examples
    masks = draw_subsets(examples, 4000, 0.7, 3)
    order = torch.randperm(len(examples)).tolist()
    again = draw_subsets([examples[i] for i in order], 4000, 0.7, 3)
    copies = [examples[i] for i in order].count  # equal examples may swap their draws
    unique = [k for k, i in enumerate(order) if copies(examples[i]) == 1]
    assert torch.equal(again[unique], masks[[order[k] for k in unique]])
    assert float(masks.double().mean()) == pytest.approx(0.3, abs=0.01)


# ---- the verb ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def known():
    return known_circuits.load("majority")


@pytest.fixture(scope="module")
def found(known):
    return certify(known.model, known.dataset, 5, selection="top_n", n_subsets=300, **QUIET)


def test_a_known_circuit_is_certified(known, found):
    assert torch.equal(found.circuit.in_graph, known.circuit.in_graph)
    assert torch.equal(found.plain.in_graph, known.circuit.in_graph)
    assert found.faithfulness.normalised == pytest.approx([1, 1], abs=1e-5)
    frame = found.to_frame()
    assert set(frame[frame["level"] == "edge"]["name"]) == set(known.circuit.edge_names())
    assert set(frame[frame["level"] == "node"]["name"]) == {"a0.h0", "m0", "a1.h0"}
    assert (frame["radius"] >= 3).all()  # empty subsets cost .9^32 = .034 of each share
    assert len(found.to_frame(out=True)) == found.graph.n_edges + found.graph.n_forward - 1
    summary = found.summary().set_index("level")
    assert summary.loc["edge", ["in", "abstains"]].tolist() == [5, 0]
    assert found.provenance["certificate"]["p_delete"] == 0.9
    assert "5 edges certified in, 0 abstain; faithfulness 1.000" in str(found)


def test_order_batches_and_memory_change_nothing(known, found, monkeypatch):
    options = QUIET | {"selection": "top_n", "n_subsets": 300}
    small = certify(known.model, known.dataset, 5, batch_size=5, **options)
    # Little memory: sums of 31 subsets at a time, over ten passes.
    monkeypatch.setattr(certificates, "sums_that_fit", lambda n_numbers, budget: 31)
    passes = certify(known.model, known.dataset, 5, **options)
    for again in (small, passes):
        np.testing.assert_array_equal(again.edges.share, found.edges.share)
        np.testing.assert_array_equal(again.nodes.share, found.nodes.share)
    turned = replace(known.dataset, examples=known.dataset.examples[::-1])
    other = certify(known.model, turned, 5, **options)
    np.testing.assert_allclose(other.edges.share, found.edges.share, atol=1e-12)


def test_too_few_examples_are_refused(known):
    """With p_delete .9, 6 examples leave most subsets empty: every edge would be certified out."""
    with pytest.raises(UserError, match=r"53% of the subsets empty.*use at least 7 examples"):
        certify(known.model, known.dataset.head(6), 5, n_subsets=20, **QUIET)
    assert certify(known.model, known.dataset.head(7), 5, n_subsets=20, **QUIET)


def test_shares_are_those_of_circuits_found_one_by_one(known):
    """The slow way: a data set for every subset."""
    dataset, n_subsets = known.dataset.head(6), 12
    found = certify(known.model, dataset, 4, n_subsets=n_subsets, p_delete=0.5, seed=2, **QUIET)
    masks = draw_subsets(dataset.examples, n_subsets, 0.5, 2)
    expected = torch.zeros_like(found.graph.scores)
    for mask in masks.T:
        if mask.any():
            rows = mask.nonzero().flatten().tolist()
            subset = replace(dataset, examples=tuple(dataset.examples[row] for row in rows))
            expected += eap.attribute(known.model, subset, **QUIET).greedy(4).prune().in_graph
    np.testing.assert_allclose(found.edges.share, expected / n_subsets)


def test_tallies_pass_over_empty_subsets():
    graph = eap.Graph.from_config(GraphConfig(n_layers=1, n_heads=1, n_kv_heads=1, d_model=4))
    totals = torch.ones(2, graph.n_forward, graph.n_backward, dtype=torch.float64)
    members = torch.tensor([[True, False, True], [False, False, True]])
    edges, _ = tally(totals, members, members.sum(0), lambda _: graph)
    assert int(edges.max()) == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"selection": "best"}, "unknown selection 'best'"),
        ({"n_subsets": 0}, "n_subsets is 0"),
        ({"p_delete": 1.0}, "p_delete is 1.0"),
        ({"p_delete": float("nan")}, "p_delete is nan"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"seed": -1}, "seed is -1"),
        ({"level": "node"}, "leave out level and spans"),
        ({"method": "exact"}, "no per-example scores"),
        ({"by": "best"}, "it must be 'magnitude' or 'helpful'"),
        ({"size": 10**6}, "cannot select"),
        ({"size": float("nan"), "selection": "threshold"}, "minimum is nan"),
    ],
)
def test_what_means_nothing_is_refused(known, options, says):
    size = options.pop("size", 5)
    with pytest.raises(UserError, match=says):
        certify(known.model, known.dataset, size, **options)

"""Verbs on top of edges at spans: resamples, overlaps, screening, soft circuits, rankings."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models.tiny import random_examples
from reference import twins
from reference.span_data import DATA, NAMES, ONE_SPAN, PAIRS
from reference.twins import assert_close

import eap
from eap.analysis.compare import agreement, edge_overlap, node_overlap, nodes
from eap.analysis.stability import bootstrap
from eap.data.dataset import Dataset

# ---- resamples -----------------------------------------------------------------------------------


def resampled(data: Dataset, **more):
    settings = {"method": "EAP", "n_resamples": 12, "null": False, "sizes": [20], "batch_size": 4}
    return bootstrap(twins.load("llama"), data, **settings | more)


def test_resampled_scores_at_spans_are_weighted_means_of_the_examples():
    found, model = resampled(DATA, spans=True), twins.load("llama")
    singles = torch.stack(
        [
            eap.attribute(
                model, replace(DATA, examples=(pair,)), method="EAP", spans=True
            ).scores
            for pair in PAIRS
        ]
    ).double()
    weights = found.resamples.weights.double()
    expected = torch.einsum("er,esfb->rsfb", weights, singles) / weights.sum(0)[:, None, None, None]
    assert_close(found.resamples.scores, expected, 1e-5)


@pytest.mark.parametrize("selection", ["top_n", "greedy"])
def test_the_stability_at_one_span_is_the_plain_one(selection):
    plain, spans = (
        resampled(ONE_SPAN, spans=each, selection=selection, null=True) for each in (False, True)
    )
    assert plain.to_frame().equals(spans.to_frame())
    (own,), (other,) = plain.sizes, spans.sizes
    assert torch.equal(own.frequency, other.frequency[0])
    assert torch.equal(own.consensus.in_graph, other.consensus.in_graph[0])


def test_the_stability_at_spans_is_of_pairs():
    found = resampled(DATA, spans=True, sizes=None)
    total = found.graph.n_edges
    assert [own.size for own in found.sizes] == [int(s * total) for s in (0.01, 0.02, 0.05, 0.1)]
    own = found.sizes[-1]
    assert own.frequency.shape == found.graph.scores.shape
    assert 0 < own.edge_chance < own.edge_jaccard < 1
    assert found.graph.span_names == own.consensus.span_names == NAMES
    same = replace(DATA, examples=PAIRS[1:2] * 4)
    assert resampled(same, spans=True).sizes[0].edge_jaccard == 1


# ---- overlaps ------------------------------------------------------------------------------------


def test_nodes_at_spans_are_counted_one_by_one():
    whole = eap.attribute(twins.load("gpt2"), DATA, method="EAP", spans=True)
    first = whole.empty().add("a0.h1->logits @ a", "m0->logits @ b", "input->m0 @ b")
    second = whole.empty().add("a0.h1->logits @ b", "m0->logits @ b", "m0->m1 @ b")
    overlap = node_overlap(first, second)
    n_nodes = len(NAMES) * (whole.n_forward - 1)
    found = (overlap.n_shared, overlap.n_first, overlap.n_second, overlap.n_all)
    assert found == (1, 2, 2, n_nodes)
    assert overlap.iou == pytest.approx(1 / 3)
    heads = node_overlap(first, second, include_mlps=False)
    n_heads = whole.config.n_layers * whole.config.n_heads
    assert (heads.n_shared, heads.n_first, heads.n_all) == (0, 1, len(NAMES) * n_heads)
    plain = first.over_spans(), second.over_spans()
    assert node_overlap(*plain).n_shared == 2  # at any span
    for span, name in enumerate(NAMES):
        assert torch.equal(nodes(first)[span], nodes(first.at_span(name)))
    assert edge_overlap(first, second, include_mlps=False).n_shared == 0
    assert agreement(whole, whole).pearson == pytest.approx(1)


def test_one_example_has_no_spread_at_spans():
    one = Dataset("x", random_examples([5], [2], seed=1)).with_spans("auto")
    found = resampled(one, spans=True)
    assert found.graph.standard_errors is None
    assert found.sizes[0].edge_jaccard == 1

"""Verbs on top of edges at spans: resamples, overlaps, screening, soft circuits, rankings."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models.tiny import MAIN_FAMILIES, random_examples
from reference import oracle, twins
from reference.span_data import DATA, NAMES, ONE_SPAN, PAIRS
from reference.split_run import existing_edges, shape_of
from reference.twins import FORMS, assert_close

import eap
from eap.analysis.compare import agreement, edge_overlap, node_overlap, nodes
from eap.analysis.screening import choose_edges, merge, report
from eap.analysis.stability import bootstrap
from eap.data.dataset import Dataset
from eap.engine.patch_plan import make_plan
from eap.errors import UserError
from eap.runtime.resources import Resources

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


# ---- exact values --------------------------------------------------------------------------------


def exact(family, data=DATA, dtype=torch.float64, **more):
    settings = {"method": "exact", "metric": "logit_diff", "batch_size": 2, "spans": True, **more}
    model = twins.load(family, dtype)
    with twins.precision(family, dtype):
        return eap.attribute(model, data, **settings)


def node_twin(pair, model, expanded):
    """One run for every node and span, in which all its edges are corrupted there."""
    exists = existing_edges(shape_of(model, expanded=expanded))
    metric = oracle.metric_of("logit_diff", pair.correct, pair.incorrect)
    clean, n = oracle.last_logits(model, pair.clean), len(pair.clean)
    circuits = exists.repeat(len(NAMES), len(exists), n, 1, 1)
    for span, (start, end) in enumerate(zip(pair.spans, (*pair.spans[1:], n), strict=True)):
        for sender in range(len(exists)):
            circuits[span, sender, start:end, sender] = False
    runs = oracle.run_with_edges(
        model, pair.clean, pair.corrupted, circuits.flatten(0, 1), expanded=expanded
    )
    values = [metric(run, clean) - metric(clean, clean) for run in runs]
    return torch.stack(values).view(len(NAMES), len(exists))


@pytest.mark.parametrize(("family", "expanded"), FORMS)
def test_exact_values_of_nodes_equal_one_run_per_node_and_span(family, expanded):
    model = twins.hf_model(family)
    with oracle.Float64():
        expected = torch.stack([node_twin(pair, model, expanded) for pair in PAIRS])
    for batch_size in (1, 4):
        graph = exact(family, level="node", batch_size=batch_size, expanded_kv=expanded)
        assert_close(graph.node_scores, expected.mean(0), 1e-9)
        assert_close(graph.node_errors, expected.std(0) / len(PAIRS) ** 0.5, 1e-8)
    assert graph.top_n_nodes(9).prune().count_edges()


@pytest.mark.parametrize("ablation", ["resample", "zero"])
def test_exact_values_of_nodes_at_one_span_are_the_plain_ones_bit_for_bit(ablation):
    for family in MAIN_FAMILIES:
        plain, spans = (
            exact(family, ONE_SPAN, level="node", ablation=ablation, spans=each).node_scores
            for each in (False, True)
        )
        assert torch.equal(plain, spans[0])


def test_spans_before_the_first_difference_are_not_run(monkeypatch):
    data = Dataset(
        "x",
        tuple(
            replace(pair, spans=(0, 2, 4))
            for pair in random_examples([6] * 4, [4] * 4, seed=2)
        ),
        span_names=("one", "two", "three"),
    )
    units = make_plan(
        twins.load("gpt2"), data, ["logit_diff"], None, Resources(batch_size=2), spans=True
    ).units
    assert {unit.span for unit in units} == {2}
    graph = exact("gpt2", data)
    assert (graph.scores[:2] == 0).all()
    assert (graph.standard_errors[:2] == 0).all()
    assert graph.scores[2].any()
    assert graph.is_exact.equal(graph.edge_exists)


# ---- screening -----------------------------------------------------------------------------------


def test_chosen_pairs_have_their_exact_values_and_the_others_the_estimates():
    estimate = eap.attribute(
        twins.load("llama", torch.float64), DATA, method="EAP", spans=True, batch_size=4
    )
    chosen = choose_edges([estimate], top=30, sample=20, seed=0)
    assert (int(chosen.top.sum()), int(chosen.sample.sum())) == (30, 20)
    assert torch.equal(chosen.top, estimate.top_n(30).in_graph)
    model, all_exact = twins.load("llama", torch.float64), exact("llama")
    with twins.precision("llama", torch.float64):
        some = eap.patch_edges(model, DATA, edges=chosen.all, spans=True, batch_size=2)["logit_diff"]
    assert_close(some.scores[chosen.all], all_exact.scores[chosen.all], 1e-12)
    assert_close(some.standard_errors[chosen.all], all_exact.standard_errors[chosen.all], 1e-9)
    assert some.scores[some.edge_exists & ~chosen.all].isnan().all()
    merged = merge(estimate, some)
    assert torch.equal(merged.scores[chosen.all], some.scores[chosen.all])
    assert torch.equal(merged.scores[~chosen.all], estimate.scores[~chosen.all])
    assert torch.equal(merged.is_exact, chosen.all)
    assert chosen.weights(estimate.n_edges).sum() == pytest.approx(estimate.n_edges)
    said = report(estimate, merged, chosen)
    assert "the 30 edges at spans that an estimate ranks highest" in said
    other = replace(estimate, span_names=("e", "f", "g", "h"))
    with pytest.raises(UserError, match="different spans"):
        choose_edges([estimate, other], top=1, sample=1, seed=0)


def test_the_same_edges_at_all_spans_or_others_at_each():
    model = twins.load("gpt2", torch.float64)
    whole = exact("gpt2")
    plain = whole.over_spans().top_n(9).in_graph
    found = eap.patch_edges(model, DATA, edges=plain, spans=True)["logit_diff"]
    assert torch.equal(found.is_exact, plain.expand(len(NAMES), -1, -1))
    assert_close(found.scores[found.is_exact], whole.scores[found.is_exact], 1e-12)
    with pytest.raises(UserError, match="boolean tensor"):
        eap.patch_edges(model, DATA, edges=plain[:2], spans=True)

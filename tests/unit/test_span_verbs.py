"""Verbs on top of edges at spans: resamples, overlaps, screening, soft circuits, rankings."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models.tiny import MAIN_FAMILIES, bridge_of, random_examples, tiny_hf
from reference import oracle, twins
from reference.soft_twins import random_masks, soft_gradient, twin_gradient
from reference.span_data import DATA, NAMES, ONE_SPAN, PAIRS
from reference.split_run import existing_edges, shape_of
from reference.twins import FORMS, assert_close
from transformer_lens.tools.analysis.attribution_patching import (
    EdgeAttributionConfig,
    attribution_patch,
)

import eap
from eap.analysis.compare import agreement, edge_overlap, node_overlap, nodes
from eap.analysis.screening import choose_edges, merge, report
from eap.analysis.stability import bootstrap
from eap.data.dataset import Dataset
from eap.engine.mask_training import make_masks
from eap.engine.patch_plan import make_plan
from eap.engine.prepared import Work, demand_of_gradients
from eap.metrics.metric import METRICS
from eap.runtime.errors import UserError
from eap.runtime.resources import Resources
from eap.soft.circuits import evaluate_soft

# ---- resamples -----------------------------------------------------------------------------------


def resampled(data: Dataset, **more):
    settings = {"method": "EAP", "n_resamples": 12, "null": False, "sizes": [20], "batch_size": 4}
    return bootstrap(twins.load("llama"), data, **settings | more)


def test_resampled_scores_at_spans_are_weighted_means_of_the_examples():
    found, model = resampled(DATA, spans=True), twins.load("llama")
    singles = torch.stack(
        [
            eap.attribute(model, replace(DATA, examples=(pair,)), method="EAP", spans=True).scores
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
    with oracle.float64():
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
        tuple(replace(pair, spans=(0, 2, 4)) for pair in random_examples([6] * 4, [4] * 4, seed=2)),
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
    model, all_exact = twins.load("llama", torch.float64), exact("llama")
    with twins.precision("llama", torch.float64):
        estimate = eap.attribute(model, DATA, method="EAP", spans=True, batch_size=4)
    chosen = choose_edges([estimate], top=30, sample=20, seed=0)
    assert (int(chosen.top.sum()), int(chosen.sample.sum())) == (30, 20)
    assert torch.equal(chosen.top, estimate.top_n(30).in_graph)
    with twins.precision("llama", torch.float64):
        some = eap.patch_edges(model, DATA, edges=chosen.all, spans=True, batch_size=2)[
            "logit_diff"
        ]
    assert_close(some.scores[chosen.all], all_exact.scores[chosen.all], 1e-12)
    assert_close(some.standard_errors[chosen.all], all_exact.standard_errors[chosen.all], 1e-9)
    assert some.scores[some.edge_exists & ~chosen.all].isnan().all()
    merged = merge(estimate, some, chosen)
    assert torch.equal(merged.scores[chosen.all], some.scores[chosen.all])
    others = estimate.edge_exists & ~chosen.all
    sums = [graph.scores[chosen.sample].abs().sum() for graph in (some, estimate)]
    assert_close(merged.scores[others], sums[0] / sums[1] * estimate.scores[others], 1e-12)
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


# ---- soft circuits -------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "expanded"), FORMS)
def test_soft_circuits_at_spans_and_their_gradients_equal_the_twin(family, expanded):
    masks = random_masks(family, expanded=expanded, n_spans=len(NAMES))
    arguments = {"expanded": expanded, "examples": PAIRS}
    value, gradient = soft_gradient(family, torch.float64, masks, "logit_diff", **arguments)
    expected, expected_gradient = twin_gradient(family, masks, "logit_diff", **arguments)
    assert_close(value, expected, 1e-9, at_least=1.0)
    assert_close(gradient, expected_gradient, 1e-9)


@pytest.mark.parametrize("family", MAIN_FAMILIES)
def test_shares_of_zeros_and_ones_are_circuits_at_spans(family):
    model = twins.load(family, torch.float64)
    whole = eap.Graph.from_config(model.config, NAMES)
    some = torch.rand(whole.scores.shape, generator=torch.Generator().manual_seed(3)) < 0.6
    graphs = [whole, whole.empty(), whole.with_edges(whole.edge_exists & some)]
    masks = torch.stack([graph.in_graph for graph in graphs]).double()
    with twins.precision(family, torch.float64):
        for ablation in ("resample", "zero"):
            soft = evaluate_soft(model, masks, DATA, ablation=ablation, spans=True)["logit_diff"]
            hard = eap.evaluate(model, graphs, DATA, ablation=ablation)["logit_diff"]
            assert_close(soft, hard, 1e-9, at_least=0.1)
        alone = evaluate_soft(model, masks[2], DATA, batch_size=1, spans=True)["logit_diff"]
        soft = evaluate_soft(model, masks, DATA, spans=True)["logit_diff"]
        assert_close(alone, soft[2], 1e-9)


@pytest.mark.usefixtures("unchecked_shapes")
def test_shares_of_other_spans_are_refused():
    model = twins.load("gpt2")
    plain = torch.ones(twins.edges_of("gpt2").shape)
    for masks in (plain, plain.expand(3, -1, -1)):
        with pytest.raises(UserError, match=r"a tensor \[4, "):
            evaluate_soft(model, masks, DATA, spans=True)


# ---- learned rankings ----------------------------------------------------------------------------


def learned(family, data=DATA, *, spans=True, level="edge", **recipe):
    settings = {"optimizer": "sgd", "learning_rate": 0.7, "k": "log", "steps": 3, "pairs": 3}
    model = twins.load(family, torch.float64)
    with twins.precision(family, torch.float64):
        return eap.learn_ranking(
            model, data, recipe=eap.Recipe(**settings | recipe), level=level, spans=spans
        )


@pytest.mark.parametrize("level", ["edge", "node"])
@pytest.mark.parametrize("family", MAIN_FAMILIES)
def test_three_steps_of_learning_at_spans_equal_the_twin(family, level):
    recipe = eap.Recipe(optimizer="sgd", learning_rate=0.7, k="log", steps=3, pairs=3, seed=5)
    model = twins.load(family, torch.float64)
    exists = twins.edges_of(family).expand(len(NAMES), -1, -1)
    ranked = exists if level == "edge" else torch.ones(exists.shape[:2], dtype=torch.bool)
    if level == "node":
        ranked[:, 0] = False
    n = int(ranked.sum())
    work = Work.plan(
        model, DATA, [METRICS["logit_diff"]], eap.ablation.get_ablation(None), model.config,
        Resources(batch_size=3), demand_of_gradients("a soft circuit", model.config),
    )  # fmt: skip
    scores = torch.zeros(n, dtype=torch.float64)
    for step in range(3):
        batch, k = recipe.draw(step, n, [len(rows) for rows in work.rows_of])
        masks, slopes = make_masks(scores, k, 0.5)
        full = torch.ones(ranked.shape, dtype=torch.float64).masked_scatter(ranked, masks)
        full = full if level == "edge" else full[..., None].expand(exists.shape).contiguous()
        examples = [PAIRS[row] for row in work.rows_of[batch]]
        _, gradient = twin_gradient(family, full, "logit_diff", examples=examples)
        gradient = gradient * exists
        g = gradient[ranked] if level == "edge" else gradient.sum(-1)[ranked]
        scores = scores + 0.7 * slopes / 0.5 * (g - (g * slopes).sum() / slopes.sum())
    graph = learned(family, level=level, seed=5)
    assert graph.span_names == NAMES
    found = graph.scores if level == "edge" else graph.node_scores
    assert_close(found[ranked].abs(), scores - scores.min(), 1e-8)
    if level == "edge":
        assert graph.greedy(20).prune().count_edges() <= 20
    else:
        assert found[:, 0].isnan().all()
        assert graph.top_n_nodes(n).count_edges() == graph.n_edges


def test_learning_at_one_span_is_learning_without():
    for level in ("edge", "node"):
        plain, spans = (
            learned("gpt2", ONE_SPAN, spans=each, level=level, optimizer="adam")
            for each in (False, True)
        )
        assert torch.equal(plain.scores.nan_to_num(), spans.scores[0].nan_to_num())
        if level == "node":
            assert torch.equal(plain.node_scores[1:], spans.node_scores[0, 1:])


def test_prices_of_pairs_keep_them_out():
    model = twins.load("gpt2")
    graph = eap.Graph.from_config(model.config, NAMES)
    prices = torch.zeros(graph.scores.shape)
    prices[1] = 100.0
    recipe = eap.Recipe(steps=20, pairs=2)
    ranking = eap.learn_ranking(model, DATA, recipe=recipe, prices=prices, spans=True)
    best = ranking.top_n(graph.n_edges // 2).in_graph
    assert not best[1].any()
    with pytest.raises(UserError, match=r"in a tensor \[4, "):
        eap.learn_ranking(model, DATA, recipe=recipe, prices=prices[0], spans=True)


# ---- TransformerLens -----------------------------------------------------------------------------


def named(writer, reader) -> str:
    """An edge of TransformerLens by our name."""
    kinds = {"q_input": "<q>", "k_input": "<k>", "v_input": "<v>"}
    ends = []
    for node in (writer, reader):
        if node.kind in ("embed", "logits"):
            ends.append("input" if node.kind == "embed" else "logits")
        elif node.head is None:
            ends.append(f"m{node.layer}")
        else:
            ends.append(f"a{node.layer}.h{node.head}{kinds.get(node.kind, '')}")
    return f"{'->'.join(ends)} @ {reader.position}"


def test_scores_at_tokens_equal_the_position_edges_of_transformer_lens():
    (pair,) = random_examples([6], [1], seed=3, n_answers=[(1, 1)])
    graph = eap.attribute(
        twins.load("gpt2"), Dataset("x", (pair,)).with_spans("tokens"), method="EAP", spans=True
    )
    bridge = bridge_of(tiny_hf("gpt2"))
    bridge.requires_grad_(True)
    # Theirs takes the gradient on the corrupted run and patches towards the clean one.
    theirs = attribution_patch(
        bridge, torch.tensor([pair.corrupted]), torch.tensor([pair.clean]),
        lambda logits: logits[0, -1, pair.correct[0]] - logits[0, -1, pair.incorrect[0]],
        EdgeAttributionConfig(granularity="edge"),
    )  # fmt: skip
    scores = {named(*edge): score for edge, score in theirs.edge_scores.items()}
    assert len(scores) == graph.n_edges
    expected = torch.tensor(list(scores.values()))
    assert_close(torch.tensor([graph.score(name) for name in scores]), expected, 1e-4)

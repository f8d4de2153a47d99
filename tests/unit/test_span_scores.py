"""Edges at spans of the prompt: scores, exact values and circuits equal their slow twins."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models.tiny import FAMILIES, MAIN_FAMILIES
from reference import oracle, twins
from reference.oracle import metric_of
from reference.span_data import DATA, NAMES, ONE_SPAN, PAIRS
from reference.split_run import existing_edges, shape_of
from reference.twins import FORMS, assert_close

import eap
from eap.analysis.certificates import certify
from eap.analysis.clusters import gram_matrix
from eap.analysis.stability import Resamples, bootstrap
from eap.data.dataset import Dataset
from eap.graph import Graph
from eap.runtime.errors import UserError

LINEAR = [name for name, method in eap.methods.METHODS.items() if method.linear]


def score(family, dtype=torch.float64, data=DATA, method="EAP", **more):
    settings = {"metric": "logit_diff", "batch_size": 4, **twins.steps_of(method, 2), **more}
    if method == "IFR":
        del settings["metric"]
    model = twins.load(family, dtype)
    with twins.precision(family, dtype):
        return eap.attribute(model, data, method=method, **settings)


# ---- scores --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "expanded"), FORMS)
def test_scores_equal_one_residual_stream_per_receiver_and_position(family, expanded):
    model, expected = twins.hf_model(family), []
    with oracle.float64():
        for pair in PAIRS:
            metric = metric_of("logit_diff", pair.correct, pair.incorrect)
            scores = oracle.attribution_scores(
                model, pair.clean, pair.corrupted, [metric], [0.5, 1.0], [0.5, 0.5],
                expanded=expanded, spans=pair.spans,
            )  # fmt: skip
            expected.append(scores[0].nan_to_num(0.0))
    expected = torch.stack(expected)
    for batch_size in (1, 4, 6):
        graph = score(
            family, method="EAP-IG", batch_size=batch_size, expanded_kv=expanded, spans=True
        )
        assert_close(graph.scores, expected.mean(0), 1e-9)
        assert_close(graph.standard_errors, expected.std(0) / len(PAIRS) ** 0.5, 1e-8)


@pytest.mark.parametrize(
    ("family", "method"),
    [
        *((family, "EAP-IG") for family in FAMILIES),
        *((family, method) for family in MAIN_FAMILIES for method in [*LINEAR, "IFR"]),
    ],
)
def test_spans_sum_to_the_plain_score(family, method):
    whole, spans = (score(family, method=method, spans=each) for each in (False, True))
    assert_close(spans.over_spans().scores, whole.scores, 1e-12)


@pytest.mark.parametrize("ablation", ["zero", "mean"])
@pytest.mark.parametrize("family", MAIN_FAMILIES)
def test_spans_sum_to_the_plain_score_under_every_ablation(family, ablation):
    if ablation == "mean":
        with twins.precision(family, torch.float64):
            ablation = eap.Mean.over_dataset(twins.load(family, torch.float64), DATA)
    whole, spans = (score(family, ablation=ablation, spans=each) for each in (False, True))
    assert_close(spans.over_spans().scores, whole.scores, 1e-12)


@pytest.mark.parametrize("method", [*LINEAR, "IFR", "AtP*-GradDrop"])
def test_one_span_is_the_plain_score_bit_for_bit(method):
    for family in MAIN_FAMILIES:
        whole, spans = (
            score(family, torch.float32, ONE_SPAN, method, spans=each) for each in (False, True)
        )
        assert torch.equal(spans.scores[0], whole.scores)
        assert torch.equal(spans.standard_errors[0], whole.standard_errors)


@pytest.mark.parametrize("family", MAIN_FAMILIES)
def test_scores_of_nodes_are_sums_over_their_edges(family):
    edges, nodes = (score(family, level=level, spans=True) for level in ("edge", "node"))
    assert_close(nodes.node_scores, edges.scores.sum(-1), 1e-12)
    whole = score(family, level="node")
    assert_close(nodes.over_spans().node_scores, whole.node_scores, 1e-12)


def test_dropped_layers_score_every_span_by_itself():
    whole, spans = (score("gpt2", method="AtP*-GradDrop", spans=each) for each in (False, True))
    assert (spans.scores >= 0).all()
    assert (spans.over_spans().scores >= whole.scores - 1e-12).all()
    whole, spans = (
        score("gpt2", data=ONE_SPAN, method="AtP*-GradDrop", level="node", spans=each)
        for each in (False, True)
    )
    assert torch.equal(spans.node_scores[0], whole.node_scores)


def test_a_bootstrap_rides_along():
    plain, spans = (
        Resamples(twins.load("llama", torch.float64).config, PAIRS, n_resamples=5, n_spans=n)
        for n in (None, len(NAMES))
    )
    score("llama", observers=[plain])
    score("llama", observers=[spans], spans=True)
    assert_close(spans.scores.sum(1), plain.scores, 1e-9)


@given(st.permutations(range(len(PAIRS))), st.integers(1, 7))
def test_order_and_batches_change_nothing_and_names_are_names(order, batch_size):
    names = ("one", "two", "three", "four")
    other = Dataset("x", tuple(PAIRS[row] for row in order), span_names=names)
    again = score("gpt2", data=other, batch_size=batch_size, spans=True)
    graph = score("gpt2", spans=True)
    assert_close(again.scores, graph.scores, 1e-12)
    assert again.score("m0->logits @ four") == pytest.approx(graph.score("m0->logits @ d"))


def test_what_has_no_spans_is_refused_in_one_line():
    plain, model = Dataset("x", PAIRS), twins.load("gpt2", torch.float64)
    whole = Graph.from_config(model.config, NAMES)
    unpaired = Dataset("x", tuple(replace(pair, corrupted=()) for pair in PAIRS))
    for call, message in (
        (lambda: score("gpt2", data=plain, spans=True), "this data set has no spans"),
        (lambda: score("gpt2", method="AtP*-QK", spans=True), "do not split into spans"),
        (lambda: score("gpt2", data=replace(DATA, span_names=("a", "b")), spans=True), "example 0"),
        (lambda: bootstrap(model, plain, spans=True), "this data set has no spans"),
        (lambda: certify(model, DATA, 5, spans=True), "leave out level and spans"),
        (lambda: gram_matrix(model, DATA, spans=True), "leave out spans"),
        (lambda: eap.second_circuit(model, DATA, whole), "over_spans"),
        (lambda: unpaired.with_spans("auto"), "corrupted prompt"),
    ):
        with pytest.raises(UserError, match=message) as error:
            call()
        assert len(str(error.value)) <= 400


# ---- exact values --------------------------------------------------------------------------------


def exact_twin(pair, model, expanded):
    """One run for every edge and span, in which that edge is corrupted there alone."""
    exists = existing_edges(shape_of(model, expanded=expanded))
    edges, n = exists.nonzero(), len(pair.clean)
    metric = metric_of("logit_diff", pair.correct, pair.incorrect)
    values = torch.zeros(len(NAMES), *exists.shape, dtype=torch.float64)
    clean = oracle.last_logits(model, pair.clean)
    for span, (start, end) in enumerate(zip(pair.spans, (*pair.spans[1:], n), strict=True)):
        circuits = exists.repeat(len(edges), n, 1, 1)
        for circuit, (u, v) in zip(circuits, edges.tolist(), strict=True):
            circuit[start:end, u, v] = False
        runs = oracle.run_with_edges(model, pair.clean, pair.corrupted, circuits, expanded=expanded)
        change = torch.stack([metric(run, clean) - metric(clean, clean) for run in runs])
        values[span, edges[:, 0], edges[:, 1]] = change
    return values


@pytest.mark.parametrize(("family", "expanded"), FORMS)
def test_exact_values_equal_one_run_per_edge_and_span(family, expanded):
    model = twins.hf_model(family)
    with oracle.float64():
        expected = torch.stack([exact_twin(pair, model, expanded) for pair in PAIRS[1:4]])
    data = replace(DATA, examples=PAIRS[1:4])
    graph = score(family, data=data, method="exact", spans=True, batch_size=2, expanded_kv=expanded)
    assert_close(graph.scores, expected.mean(0), 1e-9)
    assert graph.is_exact.all(0).equal(graph.at_span("a").edge_exists)


def test_exact_values_at_one_span_are_the_plain_ones_bit_for_bit():
    whole, spans = (
        score("llama", data=ONE_SPAN, method="exact", spans=each) for each in (False, True)
    )
    assert torch.equal(spans.scores[0], whole.scores)


# ---- circuits ------------------------------------------------------------------------------------


def circuits_of(family, expanded, density=0.6, n=3) -> list[Graph]:
    config = replace(twins.load(family).config, expanded_kv=expanded)
    whole, generator = Graph.from_config(config, NAMES), torch.Generator().manual_seed(0)
    kept = torch.rand(n, *whole.scores.shape, generator=generator) < density
    return [whole.with_edges(whole.in_graph & chosen) for chosen in kept]


def evaluate(family, circuits, **more):
    model = twins.load(family, torch.float64)
    with twins.precision(family, torch.float64):
        return eap.evaluate(model, circuits, DATA, **more)["logit_diff"]


@pytest.mark.parametrize(("family", "expanded"), FORMS)
def test_circuits_equal_the_oracle(family, expanded):
    circuits, model, expected = circuits_of(family, expanded), twins.hf_model(family), []
    kept = torch.stack([circuit.in_graph for circuit in circuits])
    with oracle.float64():
        for pair in PAIRS:
            lengths = [
                b - a for a, b in zip(pair.spans, (*pair.spans[1:], len(pair.clean)), strict=True)
            ]
            by_position = kept.repeat_interleave(torch.tensor(lengths), dim=1)
            runs = oracle.run_with_edges(
                model, pair.clean, pair.corrupted, by_position, expanded=expanded
            )
            metric = metric_of("logit_diff", pair.correct, pair.incorrect)
            expected.append(torch.stack([metric(run, run) for run in runs]))
    for batch_size in (1, 4, 6):
        values = evaluate(family, circuits, batch_size=batch_size)
        assert_close(values, torch.stack(expected, dim=1), 1e-9)
    pruned = evaluate(family, [circuit.prune() for circuit in circuits])
    if family not in ("gemma2", "gemma3"):  # every head counts where a norm follows attention
        assert_close(pruned, torch.stack(expected, dim=1), 1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edge_at_all_spans_is_the_plain_edge(family):
    plain = [circuit.at_span("a") for circuit in circuits_of(family, expanded=False)]
    spread = [circuit.at_all_spans(NAMES) for circuit in plain]
    assert torch.equal(spread[0].over_spans().in_graph, plain[0].in_graph)
    for ablation in ("resample", "zero"):
        values = (evaluate(family, each, ablation=ablation) for each in (spread, plain))
        assert_close(*values, 1e-12)


def test_circuits_of_other_spans_are_refused():
    circuit = replace(circuits_of("gpt2", expanded=False)[0], span_names=("a", "b", "c", "e"))
    with pytest.raises(UserError, match="must be the same"):
        evaluate("gpt2", circuit)

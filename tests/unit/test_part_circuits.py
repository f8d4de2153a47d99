"""Circuits that keep some parts of their senders."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models.tiny import random_examples
from reference import part_twins, twins
from reference.oracle import float64, last_logits, metric_of
from reference.twins import assert_close, dataset_of

import eap
from eap.parts.basis import PARTS, PartLayout, get_parts

EXAMPLES = random_examples([5, 3, 6], [2, 0, 3], seed=5)
DATA = dataset_of(EXAMPLES)
FAMILIES = ("gpt2", "neox", "llama", "gemma2")


def masks_of(model, parts, value):
    layout = PartLayout.of(model, get_parts(parts))
    sizes = [len(range(len(layout))[layout.of_sender(name)]) for name in layout.names]
    return {
        name: torch.full((n,), value) if isinstance(value, bool) else torch.rand(n) < value
        for name, n in zip(layout.names, sizes, strict=True)
    }


def ablations(model):
    return {"resample": "resample", "zero": "zero", "mean": eap.Mean.over_dataset(model, DATA)}


def circuit_of(model, n=40):
    return eap.attribute(model, DATA, method="EAP", metric="logit_diff").greedy(n)


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_all_parts_kept_are_the_sender_and_none_is_the_sender_ablated(family, parts):
    model = twins.load(family, torch.float64)
    with twins.precision(family, torch.float64):
        graph = circuit_of(model)
        all_kept = eap.PartCircuit(graph, parts, masks_of(model, parts, True))
        none_kept = eap.PartCircuit(graph, parts, masks_of(model, parts, False))
        # Nothing but a sum of parts, rounding apart.
        without_rest = eap.PartCircuit(
            graph, parts, {name: _without_rest(mask) for name, mask in all_kept.kept.items()}
        )
        senders = [graph.sender_names.index(name) for name in none_kept.kept]
        edges = graph.in_graph.clone()
        edges[senders] = False
        cut = graph.with_edges(edges)
        for name, ablation in ablations(model).items():
            values = eap.evaluate(
                model, [graph, all_kept, cut, none_kept, without_rest], DATA,
                ablation=ablation, batch_size=2,
            )["logit_diff"]  # fmt: skip
            assert torch.equal(values[0], values[1])
            assert_close(values[3], values[2], 1e-9, at_least=1.0)
            if name == "resample":
                assert_close(values[4], values[0], 1e-9, at_least=1.0)


def _without_rest(mask):
    mask = mask.clone()
    mask[-1] = False
    return mask


@pytest.mark.parametrize("rest", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_kept_parts_of_one_sender_are_those_of_hooks_on_the_library(family, rest):
    """The whole model, but for one layer's units: what is kept is clean, the others corrupted."""
    model, hf = twins.load(family, torch.float64), twins.hf_model(family)
    layer = model.config.n_layers - 1
    graph = eap.Graph.from_model(model)
    graph = graph.with_edges(graph.edge_exists)
    mask = torch.rand(model.blocks[layer].mlp.W_out.shape[1] + 1,
                      generator=torch.Generator().manual_seed(1)) < 0.5  # fmt: skip
    mask[-1] = rest
    with twins.precision(family, torch.float64):
        circuit = eap.PartCircuit(graph, "hidden units", {f"m{layer}": mask})
        found = eap.evaluate(model, circuit, DATA, batch_size=2)["logit_diff"]
    expected = []
    with float64():
        for one in EXAMPLES:
            runs = [
                part_twins.hidden_of(hf, tokens, layer) for tokens in (one.clean, one.corrupted)
            ]
            shares = torch.where(mask[:-1], runs[0], runs[1])
            logits = part_twins.logits_with_sent(hf, one.clean, layer, shares - runs[0])
            metric = metric_of("logit_diff", one.correct, one.incorrect)
            expected.append(metric(logits, last_logits(hf, one.clean)))
    assert_close(found, torch.stack(expected), 1e-9)


SPANS = ("first", "second", "third")
STARTS = ((0, 1, 3), (0, 2, 2), (0, 2, 5))
"""Where each example's spans begin; the second span of the second example is empty."""


def with_spans(data):
    """The same prompts, with spans."""
    examples = [
        replace(own, spans=starts) for own, starts in zip(data.examples, STARTS, strict=True)
    ]
    return replace(data, examples=examples, span_names=SPANS)


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_parts_kept_at_all_spans_are_kept_and_at_some_are_those_of_edges_there(family, parts):
    """Equal rows of masks are one mask; a row that keeps all is the sender at that span."""
    model, data = twins.load(family, torch.float64), with_spans(DATA)
    torch.manual_seed(0)
    with twins.precision(family, torch.float64):
        graph = circuit_of(model).at_all_spans(SPANS)
        some = masks_of(model, parts, 0.5)
        by_span = {name: mask.expand(3, -1) for name, mask in some.items()}
        one = {name: mask.clone() for name, mask in by_span.items()}
        for mask in one.values():
            mask[:] = torch.tensor([True, False, True])[:, None]
        edges = graph.in_graph.clone()
        edges[1, [graph.sender_names.index(name) for name in one]] = False
        circuits = [eap.PartCircuit(graph, parts, kept) for kept in (some, by_span, one)]
        for name, ablation in ablations(model).items():
            values = eap.evaluate(
                model, [*circuits, graph.with_edges(edges)], data, ablation=ablation, batch_size=2
            )["logit_diff"]
            assert_close(values[1], values[0], 1e-12, at_least=1.0)
            assert_close(values[2], values[3], 1e-9, at_least=1.0), name


@pytest.mark.parametrize("receivers", [None, ["m1", "logits"]])
@pytest.mark.parametrize("method", ["EAP", "CEAP", "EAP-IG-activations"])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_of_parts_at_spans_sum_to_parts_and_to_senders(family, method, receivers):
    model, data = twins.load(family, torch.float64), with_spans(DATA)
    with twins.precision(family, torch.float64):
        for parts in PARTS:
            options = {"parts": parts, "receivers": receivers, "method": method, "batch_size": 2}
            found = eap.part_scores(model, data, spans=True, **options)
            assert_close(found.scores.sum(0), eap.part_scores(model, data, **options).scores, 1e-9)
            if receivers is None:
                nodes = eap.attribute(
                    model, data, method=method, level="node", spans=True, batch_size=2
                )
                for name, sums in found.node_scores.items():
                    at = nodes.sender_names.index(name)
                    assert_close(sums, nodes.node_scores[:, at], 1e-9, at_least=1e-3)


def test_parts_at_spans_have_names_tables_and_masks():
    model, data = twins.load("llama", torch.float64), with_spans(DATA)
    scores = eap.part_scores(model, data, method="EAP", spans=True)
    assert scores.scores.shape == (3, len(scores.layout)) == scores.standard_errors.shape
    assert len(scores) == 3 * len(scores.layout)
    assert scores.name(len(scores.layout) + 2) == "m0.u2 @ second"
    frame = scores.to_frame()
    assert list(frame.columns) == ["sender", "part", "span", "score", "standard_error"]
    best = scores.top_n(1).iloc[0]
    number = scores.ranking()[0]
    assert scores.name(number) == f"{best.part} @ {best.span}"
    assert float(scores.scores.flatten()[number]) == pytest.approx(best.score)
    kept = scores.keep(5)
    assert {mask.shape for mask in kept.values()} == {(3, 25)}
    assert sum(int(mask.sum()) for mask in kept.values()) == 5
    whole = eap.Graph.from_model(model)
    whole = whole.with_edges(whole.edge_exists)
    with pytest.raises(eap.UserError, match="a mask of 25 truth values"):
        eap.evaluate(model, eap.PartCircuit(whole, "hidden units", kept), data)
    circuit = eap.PartCircuit(whole.at_all_spans(SPANS), "hidden units", kept)
    assert circuit.n_parts == 5
    assert eap.faithfulness(model, circuit, data).edges == (3 * whole.count_edges(),)


def test_a_curve_by_number_of_parts():
    model = twins.load("gpt2", torch.float64)
    scores = eap.part_scores(model, DATA, parts="hidden units", method="EAP")
    graph = eap.Graph.from_model(model)
    graph = graph.with_edges(graph.edge_exists)
    sizes = [0, 5, 40, len(scores)]
    circuits = [eap.PartCircuit(graph, scores.parts, scores.keep(n)) for n in sizes]
    assert [circuit.n_parts for circuit in circuits] == sizes
    curve = eap.faithfulness(model, circuits, DATA)
    assert curve.edges == (graph.count_edges(),) * 4
    assert curve.normalised[-1] == pytest.approx(1)
    assert len(set(curve.normalised.round(6))) == 4


def test_provenance_names_spans_and_kinds_of_parts():
    model, data = twins.load("gpt2"), with_spans(DATA)
    plain = circuit_of(model)
    spread = plain.at_all_spans(SPANS)
    kept = eap.part_scores(model, data, method="EAP").keep(3)
    for circuits, expected in (
        (plain, {}),
        ([plain, spread], {"spans": list(SPANS)}),
        (eap.PartCircuit(plain, "hidden units", kept), {"parts": ["hidden units"]}),
    ):
        origin = eap.faithfulness(model, circuits, data).provenance
        found = {key: origin[key] for key in ("spans", "parts") if key in origin}
        assert found == expected
        assert ("spans_sha256" in origin) == ("spans" in expected)


def test_masks_that_do_not_fit_are_refused():
    model = twins.load("gpt2")
    graph = eap.Graph.from_model(model)
    for kept, message in (
        ({"m0": torch.ones(3, dtype=torch.bool)}, "a mask of 65 truth values"),
        ({"m0": torch.ones(65)}, "not torch.float32"),
        ({"a0.h0": torch.ones(65, dtype=torch.bool)}, "a0.h0 has no hidden units"),
        ({"m7": torch.ones(65, dtype=torch.bool)}, "no sender 'm7'"),
    ):
        with pytest.raises(eap.UserError, match=message):
            eap.evaluate(model, eap.PartCircuit(graph, "hidden units", kept), DATA)

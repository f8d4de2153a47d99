"""Scores per example, and tables of values: equal to what is computed one pair at a time."""

from __future__ import annotations

import pytest
import torch
from reference import twins
from reference.twins import steps_of

import eap

EXAMPLES = twins.RAGGED
METHODS = {"EAP": ((1.0,), (1.0,)), "EAP-IG": ((1 / 3, 2 / 3, 1.0), (1 / 3,) * 3)}


def names_and_places(graph):
    return {name: graph.index(name) for name in graph.full().edge_names()}


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_scores_of_all_edges_are_the_oracles(family, method, batch_size):
    dataset, model = twins.dataset_of(EXAMPLES), twins.load(family, torch.float64)
    names = eap.Graph.from_model(model).edge_names()
    with twins.precision(family, torch.float64):
        found = eap.example_scores(
            model, dataset, names, method=method, batch_size=batch_size, **steps_of(method, 3)
        )
    expected = twins.oracle_attribution(family, EXAMPLES, "logit_diff", *METHODS[method])
    places = torch.tensor([found.graph.index(name) for name in names])
    twins.assert_close(found.scores, expected[:, places[:, 0], places[:, 1]], 1e-9)
    assert found.edges == tuple(names)
    assert list(found.to_frame().columns) == names


@pytest.mark.parametrize("method", ["EAP-IG", "EAP-IG-activations", "CEAP", "AtP*-QK", "GIM"])
def test_the_best_edges_are_scored_on_every_example(method):
    dataset, model = twins.dataset_of(EXAMPLES), twins.load("llama")
    options = {"method": method, "quiet": True, **steps_of(method, 2)}
    found = eap.example_scores(model, dataset, 7, **options)
    graph = eap.attribute(model, dataset, **options)
    assert set(found.edges) == set(graph.top_n(7).edge_names())
    sizes = [abs(graph.score(edge)) for edge in found.edges]
    assert sizes == sorted(sizes, reverse=True)
    alone = []
    for example in EXAMPLES:
        one = eap.attribute(model, twins.dataset_of([example]), **options)
        alone.append([one.score(edge) for edge in found.edges])
    twins.assert_close(found.scores, torch.tensor(alone), 1e-5)
    means = torch.tensor([graph.score(edge) for edge in found.edges])
    twins.assert_close(found.scores.mean(0), means, 1e-5)


def test_steps_are_chosen_first_where_they_are_not_given():
    dataset, model = twins.dataset_of(twins.RAGGED), twins.load("gpt2")
    found = eap.example_scores(model, dataset, ["input->logits"], steps="auto")
    steps = found.graph.provenance["settings"]["steps"]
    again = eap.example_scores(model, dataset, ["input->logits"], steps=steps)
    assert torch.equal(found.scores, again.scores)


def test_the_former_call_names_the_present_one():
    dataset, model = twins.dataset_of(twins.RAGGED), twins.load("gpt2")
    with pytest.warns(FutureWarning, match=r"example_scores\(model, dataset, edges"):
        former = eap.attribute(model, dataset, per_example=True, edges=3, method="EAP")
    present = eap.example_scores(model, dataset, 3, method="EAP")
    assert former.edges == present.edges
    assert torch.equal(former.scores, present.scores)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "exact"}, "no per-example scores"),
        ({"method": ["EAP", "EAP-IG"]}, "it must be a string or a Method"),
        ({"level": "node"}, "are for edges only"),
        ({"edges": ["m0->m9"]}, "m0->m9"),
        ({"edges": 0, "method": "exact"}, "no per-example scores"),
    ],
)
def test_what_has_no_scores_per_example_is_refused(options, message):
    dataset, model = twins.dataset_of(twins.RAGGED), twins.load("gpt2")
    with pytest.raises(eap.UserError, match=message):
        eap.example_scores(model, dataset, **options)


def test_a_table_of_values_has_a_row_per_circuit_and_example():
    dataset, model = twins.dataset_of(EXAMPLES), twins.load("neox")
    graph = eap.attribute(model, dataset, method="EAP", quiet=True)
    circuits = [graph.top_n(20), graph.top_n(5).prune(), graph.full()]
    frame = eap.evaluate(
        model, circuits, dataset, metrics=["logit_diff", "kl"], as_frame=True, quiet=True
    )
    assert list(frame.columns) == ["circuit", "edges", "example", "logit_diff", "kl"]
    assert len(frame) == len(circuits) * len(EXAMPLES)
    for row in frame.itertuples():
        one = twins.dataset_of([EXAMPLES[row.example]])
        values = eap.evaluate(model, circuits[row.circuit], one, metrics=["logit_diff", "kl"])
        assert row.edges == circuits[row.circuit].count_edges()
        assert row.logit_diff == pytest.approx(float(values["logit_diff"]), rel=1e-4, abs=1e-4)
        assert row.kl == pytest.approx(float(values["kl"]), rel=1e-3, abs=1e-5)
    alone = eap.evaluate(model, circuits[0], dataset, as_frame=True, quiet=True)
    assert alone["logit_diff"].tolist() == frame["logit_diff"][: len(EXAMPLES)].tolist()


@pytest.mark.parametrize("edges", [5, ["m0->logits"]])
def test_an_observer_sees_every_block_once(edges):
    """Also where the best edges are found in a pass of their own."""

    class Total:
        value = 0.0

        def add(self, _rows, block):
            self.value += float(block.scores.sum())

    model, dataset = twins.load("gpt2"), twins.dataset_of(EXAMPLES)
    whole, found = Total(), Total()
    eap.attribute(model, dataset, method="EAP", observers=[whole])
    eap.example_scores(model, dataset, edges, method="EAP", observers=[found])
    assert found.value == pytest.approx(whole.value, rel=1e-4)

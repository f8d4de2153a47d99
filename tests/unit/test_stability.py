"""The bootstrap over examples: weights, scores, circuits, chance, and the null task."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from models.tiny import random_examples
from reference import twins

import eap
from eap.analysis.stability import Resamples, bootstrap, mean_jaccard, null_task, poisson_weights
from eap.data.collections import known_circuits
from eap.runtime.errors import UserError

EXAMPLES = random_examples([6, 8, 8, 5, 7, 8], [2, 3, 3, 1, 4, 3], seed=5)
DATASET = twins.dataset_of(EXAMPLES)


def gathered(model, dataset, *, batch_size=None, method="EAP", n_resamples=20):
    resamples = Resamples(model.config, dataset.examples, n_resamples=n_resamples)
    graph = eap.attribute(
        model, dataset, method=method, observers=[resamples], batch_size=batch_size
    )
    return graph, resamples


# ---- weights -------------------------------------------------------------------------------------


def test_weights_go_with_the_example():
    weights = poisson_weights(EXAMPLES, 30, seed=0)
    order = [4, 2, 0, 5, 1, 3]
    again = poisson_weights([EXAMPLES[row] for row in order], 30, seed=0)
    assert torch.equal(again, weights[order])
    assert not torch.equal(poisson_weights(EXAMPLES, 30, seed=1), weights)


def test_equal_examples_are_drawn_apart():
    weights = poisson_weights([EXAMPLES[0]] * 3, 50, seed=0)
    assert not torch.equal(weights[0], weights[1])


def test_weights_are_poisson():
    examples = random_examples([4] * 400, [1] * 400, seed=9)
    weights = poisson_weights(examples, 100, seed=0)
    assert float(weights.mean()) == pytest.approx(1, abs=0.02)
    assert float(weights.var()) == pytest.approx(1, abs=0.03)
    assert float((weights == 0).float().mean()) == pytest.approx(np.exp(-1), abs=0.01)


# ---- scores of resamples -------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_resampled_scores_are_weighted_means_of_the_examples(family):
    model = twins.load(family)
    _, resamples = gathered(model, DATASET, method="EAP-IG")
    singles = torch.stack(
        [eap.attribute(model, twins.dataset_of([own])).scores for own in EXAMPLES]
    ).double()
    expected = torch.einsum("er,efb->rfb", resamples.weights.double(), singles)
    expected /= resamples.weights.double().sum(dim=0)[:, None, None]
    twins.assert_close(resamples.scores, expected, 1e-5)


def test_neither_order_nor_batches_change_them():
    model = twins.load("gpt2")
    _, first = gathered(model, DATASET, batch_size=1)
    backwards = replace(DATASET, examples=EXAMPLES[::-1])
    for dataset, size in ((DATASET, 7), (DATASET, 64), (backwards, 2)):
        _, other = gathered(model, dataset, batch_size=size)
        twins.assert_close(other.scores, first.scores, 1e-5)


def test_frequencies_are_the_same_to_the_byte_for_every_batch_size():
    known = known_circuits.load("majority")
    found = [
        bootstrap(known.model, known.dataset, sizes=[3, 5], n_resamples=20, batch_size=size)
        for size in (1, 7, 64)
    ]
    for other in found[1:]:
        for a, b in zip(found[0].sizes, other.sizes, strict=True):
            assert a.frequency.numpy().tobytes() == b.frequency.numpy().tobytes()
            assert (a.edge_jaccard, a.node_jaccard) == (b.edge_jaccard, b.node_jaccard)


def test_standard_errors_approach_the_analytic_ones():
    examples = random_examples([5] * 60, [2] * 60, seed=7)
    model, dataset = twins.load("gpt2"), twins.dataset_of(examples)
    graph, resamples = gathered(model, dataset, n_resamples=600)
    errors = graph.standard_errors.double()
    large = graph.edge_exists & (errors > errors.max() / 10)
    ratio = resamples.standard_errors[large] / errors[large]
    assert float(ratio.median()) == pytest.approx(1, abs=0.05)
    assert float((ratio - 1).abs().max()) < 0.35


# ---- circuits ------------------------------------------------------------------------------------


def test_identical_examples_have_a_jaccard_of_one():
    model = twins.load("gpt2")
    same = twins.dataset_of([EXAMPLES[0]] * 6)
    found = bootstrap(model, same, sizes=[10, 20], n_resamples=10, null=False)
    for own in found.sizes:
        assert own.edge_jaccard == 1
        assert set(own.frequency.unique().tolist()) <= {0.0, 1.0}
        assert torch.equal(own.consensus.in_graph, found.graph.top_n(own.size).prune().in_graph)


def test_a_size_is_measured_once():
    found = bootstrap(twins.load("gpt2"), DATASET, sizes=[3, 5, 3], n_resamples=4)
    assert [own.size for own in found.sizes] == [3, 5]


def test_jaccard_by_brute_force():
    random = np.random.default_rng(0)
    members = torch.from_numpy(random.random((7, 30)) < 0.4)
    sets = [set(own.nonzero().flatten().tolist()) for own in members]
    pairs = list(itertools.combinations(sets, 2))
    expected = np.mean([len(a & b) / len(a | b) for a, b in pairs])
    assert mean_jaccard(members)[0] == pytest.approx(expected)


def test_chance_is_what_random_sets_share():
    random = np.random.default_rng(1)
    members = torch.from_numpy(np.argsort(random.random((60, 200)), axis=1) < 40)
    jaccard, chance = mean_jaccard(members)
    assert jaccard == pytest.approx(chance, abs=0.01)


def test_empty_circuits_are_no_evidence():
    jaccard, chance = mean_jaccard(torch.zeros(5, 9, dtype=torch.bool))
    assert np.isnan([jaccard, chance]).all()


def test_a_known_circuit_is_stable_and_its_consensus_is_true():
    known = known_circuits.load("induction")
    found = bootstrap(known.model, known.dataset, sizes=[5], n_resamples=20)
    (own,) = found.sizes
    assert own.edge_jaccard == 1
    assert torch.equal(own.consensus.in_graph, known.circuit.in_graph)
    assert own.edge_chance < 0.1
    frame = found.to_frame()
    assert {"edge_jaccard", "edge_chance", "null_edge_jaccard"} <= set(frame.columns)


@pytest.mark.parametrize("options", [{"metric": "kl"}, {"metric": "js"}, {"method": "IFR"}])
def test_scores_that_read_no_answers_have_no_null_task(options):
    """With other answers the scores are the same, and would look as stable as a null's may not."""
    with pytest.warns(UserWarning, match="no null task is measured"):
        found = bootstrap(twins.load("gpt2"), DATASET, sizes=[40], n_resamples=5, **options)
    assert found.null is None
    assert "null_edge_jaccard" not in found.to_frame()
    assert np.isfinite(found.sizes[0].edge_jaccard)


@pytest.mark.parametrize("seed", range(3))
def test_no_warning_is_about_the_null_task(seed):
    """Null tasks are done by no model: half of their baselines are in the wrong order."""
    known = known_circuits.load("induction")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bootstrap(known.model, known.dataset.head(6), sizes=[5], n_resamples=3, seed=seed)


def test_the_null_task_has_the_prompts_and_other_answers():
    null = null_task(DATASET, seed=3)
    prompts = [(own.clean, own.corrupted) for own in DATASET.examples]
    assert [(own.clean, own.corrupted) for own in null.examples] == prompts

    def answer_sets(dataset):
        return sorted(tuple(sorted((own.correct, own.incorrect))) for own in dataset.examples)

    assert answer_sets(null) == answer_sets(DATASET)
    assert null.examples != DATASET.examples
    assert null_task(DATASET, seed=3).examples == null.examples
    assert "shuffled" in null.provenance["answers"]


def test_what_cannot_be_measured_is_refused():
    model = twins.load("gpt2")
    with pytest.raises(UserError, match="n_resamples is 1; it must be a whole number from 2"):
        bootstrap(model, DATASET, n_resamples=1)
    with pytest.raises(UserError, match="cannot select"):
        bootstrap(model, DATASET, sizes=[10_000])
    with pytest.raises(UserError, match="unknown selection"):
        bootstrap(model, DATASET, selection="best")


def test_scores_of_nodes_are_refused():
    """They would be taken for the scores of edges into the first receiver."""
    with pytest.raises(UserError, match="leave out level='node'"):
        bootstrap(twins.load("gpt2"), DATASET, method="EAP", level="node", n_resamples=2)

"""Verdicts: known circuits pass, padded and truncated ones do not; nulls are kept."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import twins

import eap
from eap.analysis.random_circuits import PathSampler, compared_circuits, edges_of, without_edge
from eap.analysis.verdicts import judge, leave_one_out
from eap.data.collections import known_circuits
from eap.runtime.errors import UserError
from eap.statistics import hypotheses
from eap.statistics.intervals import resampled_counts

QUICK = {"n_random": 40, "n_subsets": 6}


@pytest.fixture(scope="module", params=known_circuits.names())
def known(request):
    return known_circuits.load(request.param)


def outside(circuit):
    return circuit.edge_exists & ~circuit.in_graph


def test_known_circuits_pass(known):
    found = judge(known.model, known.circuit, known.dataset, **QUICK)
    assert [own.word for own in found.verdicts] == [
        "faithful",
        "complete",
        "minimal",
        "sufficient",
        # Among 23 edges there are not 19 circuits of three beside these.
        "inconclusive with 15 random circuits of its size outside it"
        if known.name == "share-before"
        else "necessary",
        "no difference found",
        # The model has the same difference of logits on all examples.
        "inconclusive with the same logit_diff of the model on all examples"
        if known.name == "xor"
        else "no dependence found",
    ]
    assert found["faithfulness"].statistic == pytest.approx(1)
    assert found.edges["needed"].all()
    assert list(found.edges["edge"]) == known.circuit.edge_names()
    assert len(found.to_frame()) == 7
    assert found.provenance["task"] == known.name


def test_padded_circuits_fail_minimality(known):
    circuit = known.circuit
    added = PathSampler(circuit, outside(circuit), seed=3).circuit(4)
    padded = circuit.with_edges(circuit.in_graph | added.in_graph)
    found = judge(known.model, padded, known.dataset, **QUICK)
    assert found["minimality"].p_value > 0.05
    spare = set(found.edges["edge"][~found.edges["needed"]])
    assert spare == set(added.edge_names())
    assert found["sufficiency"].word == "sufficient"


def test_truncated_circuits_fail_sufficiency():
    for name, lost in {
        "induction": "a0.h0->a1.h0<k>",
        "xor": "a0.h0->m0",
        "balance": "a1.h0->m1",
        "majority": "a0.h0->m0",
    }.items():
        known = known_circuits.load(name)
        truncated = without_edge(known.circuit, *known.circuit.index(lost))
        found = judge(known.model, truncated, known.dataset, **QUICK)
        assert found["sufficiency"].word != "sufficient", name
        assert found["faithfulness"].word == "not shown to be faithful", name
        assert found["equivalence"].p_value <= 0.05, name


def test_a_random_circuit_passes_nothing():
    known = known_circuits.load("induction")
    drawn = PathSampler(known.circuit, outside(known.circuit), seed=1).circuit(5)
    found = judge(known.model, drawn, known.dataset, **QUICK)
    for test in ("faithfulness", "minimality", "sufficiency", "partial necessity"):
        assert found[test].p_value > 0.05, test


def test_the_same_seed_says_the_same():
    known = known_circuits.load("xor")
    first, second = (judge(known.model, known.circuit, known.dataset, **QUICK) for _ in range(2))
    assert first.to_frame().equals(second.to_frame())
    assert str(first) == str(second)


@pytest.mark.parametrize("expanded", [False, True])
def test_leave_one_out_is_one_circuit_per_edge(expanded):
    model, dataset = twins.load("llama"), twins.dataset_of(twins.RAGGED[:4])
    graph = eap.attribute(model, dataset, method="EAP", expanded_kv=expanded)
    circuit = graph.top_n(25).prune()
    found = leave_one_out(model, circuit, dataset)
    whole = eap.evaluate(model, circuit, dataset)["logit_diff"].mean()
    for edge in edges_of(circuit):
        less = eap.evaluate(model, without_edge(circuit, *edge), dataset)["logit_diff"].mean()
        assert float(found.scores[edge]) == pytest.approx(float(less - whole), abs=2e-5)
    assert found.scores[~circuit.in_graph].isnan().all()
    assert found.standard_errors is not None


def test_leave_one_out_of_the_whole_graph_is_exact_patching():
    known = known_circuits.load("balance")
    found = leave_one_out(known.model, known.circuit.full(), known.dataset)
    exact = eap.patch_edges(known.model, known.dataset)["logit_diff"]
    exists = exact.edge_exists
    torch.testing.assert_close(found.scores[exists], exact.scores[exists], atol=1e-6, rtol=0)


def test_random_circuits_are_paths_of_the_asked_size():
    known = known_circuits.load("induction")
    sampler = PathSampler(known.circuit, known.circuit.edge_exists, seed=0)
    drawn = [sampler.circuit(size) for size in (1, 5, 20, 40)]
    for size, circuit in zip((1, 5, 20, 40), drawn, strict=True):
        assert circuit.count_edges() == size
        assert torch.equal(circuit.prune().in_graph, circuit.in_graph)
    assert len({tuple(edges_of(sampler.circuit(5))) for _ in range(20)}) > 10


def test_an_empty_circuit_and_one_example_are_refused():
    known = known_circuits.load("xor")
    with pytest.raises(UserError, match="empty"):
        judge(known.model, known.circuit.empty(), known.dataset)
    with pytest.raises(UserError, match="at least two examples"):
        judge(known.model, known.circuit, known.dataset.head(1))


# ---- no word that a p-value could never have supported -------------------------------------------


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ({"n_random": 18}, "n_random is 18: no p-value among so few .* give at least 19"),
        ({"n_random": 98, "alpha": 0.01}, "give at least 99"),
        ({"n_subsets": 0}, "n_subsets is 0; it must be a whole number from 1"),
        ({"tolerance": float("nan")}, "tolerance is nan; it must be a number above 0 and below 1"),
        ({"alpha": 2}, "alpha is 2; it must be a number above 0 and below 1"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_arguments_that_make_a_test_meaningless_are_refused(odd, message):
    known = known_circuits.load("xor")
    with pytest.raises(UserError, match=message):
        judge(known.model, known.circuit, known.dataset, **QUICK | odd)


def test_a_circuit_of_most_edges_is_compared_with_none_of_another_size():
    known = known_circuits.load("majority")
    size = int(0.6 * known.circuit.n_edges)
    circuit = known.circuit.with_edges(
        known.circuit.in_graph
        | PathSampler(known.circuit, outside(known.circuit), 0)
        .circuit(size - known.circuit.count_edges())
        .in_graph
    )
    found = judge(known.model, circuit, known.dataset, **QUICK)
    assert found["partial necessity"].word == (
        "inconclusive with 0 random circuits of its size outside it"
    )
    assert found["partial necessity"].p_value == 1


def test_random_circuits_are_different_and_of_the_judged_size():
    for name in ("share-before", "balance"):
        circuit = known_circuits.load(name).circuit
        groups = compared_circuits(circuit, n_random=40, n_subsets=1, seed=0)
        drawn = groups["random"]
        sets = {frozenset(edges_of(own)) for own in drawn}
        assert 30 < len(sets) == len(drawn) <= 40
        assert {len(edges) for edges in sets} == {circuit.count_edges()}
        assert frozenset(edges_of(circuit)) not in sets
        for less in groups["without random"]:
            assert less.count_edges() == less.n_edges - circuit.count_edges()


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 13, 14])
def test_few_examples_are_inconclusive(n):
    known = known_circuits.load("majority")
    found = judge(known.model, known.circuit, known.dataset.head(n), **QUICK)
    lowest = {"faithfulness": 0.8**n, "completeness": 0.8**n, "equivalence": 2.0 ** (1 - n),
              "independence": 1 / math.factorial(n)}  # fmt: skip
    for test, p in lowest.items():
        assert (found[test].word == f"inconclusive with {n} examples") == (p > 0.05), test


@given(st.integers(0, 40), st.floats(0.001, 0.999), st.floats(0, 1))
def test_a_word_is_given_only_where_both_could_be(n, alpha, p):
    word = hypotheses.Evidence.of_ranks(n, "circuits").word(p, alpha, "yes", "no")
    if hypotheses.rank_p(1.0, np.zeros(n)) > alpha:
        assert word == f"inconclusive with {n} circuits"
    else:
        assert word == ("yes" if p <= alpha else "no")


# ---- under their null, tests are wrong at most as often as they say -----------------------------

LEVEL, ROUNDS = 0.05, 1000
# Three standard errors of a share of .05 in so many rounds.
AT_MOST = LEVEL + 3 * (LEVEL * (1 - LEVEL) / ROUNDS) ** 0.5


def false_positives(p_values):
    return float((np.asarray(p_values) <= LEVEL).mean())


def test_false_positives_of_edges_with_holm():
    """The chance that any of 30 edges that change nothing on average is called needed."""
    random = np.random.default_rng(0)
    changes = random.normal(size=(ROUNDS, 30, 40))
    families = [hypotheses.holm(own).min() for own in hypotheses.mean_p(changes)]
    assert false_positives(families) <= AT_MOST
    assert false_positives(hypotheses.mean_p(changes)) == pytest.approx(LEVEL, abs=0.01)


def test_false_positives_of_equivalence():
    random = np.random.default_rng(1)
    p = [hypotheses.sign_test(own)[1] for own in random.normal(size=(ROUNDS, 60))]
    assert false_positives(p) <= AT_MOST


def test_false_positives_of_ranks_among_random_circuits():
    random = np.random.default_rng(2)
    for values in (random.normal(size=(ROUNDS, 101)), random.integers(0, 5, size=(ROUNDS, 101))):
        p = [hypotheses.rank_p(own[0], own[1:]) for own in values]
        assert false_positives(p) <= AT_MOST


def test_false_positives_of_independence():
    random = np.random.default_rng(3)
    pairs = random.normal(size=(ROUNDS, 2, 25))
    p = [hypotheses.hsic_p(x, y, n_permutations=99)[1] for x, y in pairs]
    assert false_positives(p) <= AT_MOST
    x = random.normal(size=50)
    assert hypotheses.hsic_p(x, x**2)[1] <= LEVEL  # a dependence without correlation


def losses_at_the_bound(kind, random, n):
    """Losses and gaps of n examples, of a circuit exactly as far away as .2."""
    gaps = 4 + random.normal(size=n) - 0.7 * random.normal(size=n)
    if kind == "normal":
        return 0.2 * gaps + 0.3 * random.normal(size=n), gaps
    fails = random.random(n) < 0.2
    if kind == "fails":
        return np.where(fails, 4.0, 0.0), np.full(n, 4.0)
    return np.where(fails, gaps, 0.0) + 0.1 * random.normal(size=n), gaps


@pytest.mark.parametrize("n", [5, 14, 20, 50, 200])
@pytest.mark.parametrize("kind", ["normal", "fails", "fails, with noise"])
def test_false_positives_of_a_tolerance(kind, n):
    """A circuit exactly as far away as is tolerated is called faithful one time in twenty."""
    random, p = np.random.default_rng(4), []
    for _ in range(ROUNDS // 2):
        counts = resampled_counts(n, 199, int(random.integers(2**31)))
        p.append(hypotheses.ratio_beyond_p(*losses_at_the_bound(kind, random, n), 0.2, counts))
    assert false_positives(p) <= LEVEL + 3 * (LEVEL * (1 - LEVEL) / (ROUNDS // 2)) ** 0.5


def test_the_power_of_a_tolerance():
    """A circuit well within the tolerance is called faithful, from either side of the model."""
    random, n = np.random.default_rng(5), 40
    counts = resampled_counts(n, 199, 0)
    gaps = 4 + random.normal(size=n)
    for loss in (0.05, -0.05):
        losses = loss * gaps + 0.3 * random.normal(size=n)
        assert hypotheses.ratio_beyond_p(losses, gaps, 0.2, counts) <= LEVEL
        assert hypotheses.ratio_beyond_p(losses, gaps, 0.03, counts) > LEVEL


def test_distances_that_are_biased_upwards_are_no_less_careful():
    assert hypotheses.beyond_tolerance_p(np.zeros(999), 0.2, 100) == pytest.approx(0.001)
    assert hypotheses.beyond_tolerance_p(np.zeros(999), 0.2, 5) == pytest.approx(0.8**5)
    assert hypotheses.beyond_tolerance_p(np.ones(999), 0.2, 100) == 1


@pytest.mark.parametrize("metric", ["kl", "js"])
def test_a_metric_that_compares_with_the_model_has_no_sign_and_nothing_to_depend_on(metric):
    known = known_circuits.load("xor")
    found = judge(known.model, known.circuit.full(), known.dataset, metric=metric, n_random=19)
    assert (
        found["equivalence"].word == f"inconclusive with {metric}, which is 0 for the model itself"
    )
    assert found["independence"].word == (
        f"inconclusive with the same {metric} of the model on all examples"
    )
    assert found["equivalence"].p_value == found["independence"].p_value == 1


def test_holm_by_hand():
    assert hypotheses.holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert hypotheses.holm([0.9, 0.8]).tolist() == [1, 1]


def test_equal_changes_have_a_p_value():
    assert hypotheses.mean_p(np.full(10, -2.0)) == pytest.approx(2**-9)
    assert hypotheses.mean_p(np.zeros(10)) == 1


def test_verdicts_under_another_ablation():
    """Leaving one edge out of the whole is zero ablation of it, if that is asked for."""
    model, dataset = twins.load("gpt2"), twins.dataset_of(twins.RAGGED[:4])
    graph = eap.Graph.from_model(model)
    found = leave_one_out(model, graph, dataset, ablation="zero")
    exact = eap.patch_edges(model, dataset, ablation="zero")["logit_diff"]
    exists = graph.edge_exists
    torch.testing.assert_close(found.scores[exists], exact.scores[exists], atol=2e-5, rtol=1e-4)
    assert found.provenance["method"] == "leave one out"
    assert found.higher_is_better

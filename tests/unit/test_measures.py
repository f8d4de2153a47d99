"""Areas, intervals and AUROC: by hand, by brute force, and with a twin on tiny models."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models.tiny import random_examples
from reference import twins
from reference.mib_areas import area_of_nodes, area_of_ranking

import eap
from eap.analysis.rankings import areas
from eap.runtime.errors import UserError
from eap.statistics import intervals
from eap.statistics.measures import (
    SHARES,
    area,
    auroc,
    circuit_sizes,
    faithfulness_errors,
    normalised,
)

# ---- areas ---------------------------------------------------------------------------------------


def test_a_curve_of_ones_has_cpr_999_thousandths_and_cmd_0():
    ones = np.ones(len(SHARES))
    assert area(ones) == pytest.approx(0.999, abs=1e-12)
    assert area(np.abs(1 - ones)) == 0


def test_a_curve_worth_nothing_below_the_whole_model_has_a_quarter():
    assert area([0.0] * 9 + [1.0]) == pytest.approx(0.25, abs=1e-12)


def test_an_area_over_log_share_is_the_mean_height():
    assert area(np.full(len(SHARES), 0.7), log=True) == pytest.approx(0.7)
    # Decades count alike: 1 up to 1%, 0 from there, falling on the way between .01 and .02.
    steps = np.array([1.0, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    assert area(steps, log=True) == pytest.approx((1 + np.log10(2) / 2) / 3)


def test_areas_of_several_curves_at_once():
    curves = np.stack([np.zeros(10), np.ones(10)])
    assert area(curves).tolist() == pytest.approx([0, 0.999])


def test_sizes_are_rounded_down():
    assert circuit_sizes(32_491) == [32, 64, 162, 324, 649, 1624, 3249, 6498, 16245, 32491]
    assert circuit_sizes(100)[:4] == [0, 0, 0, 1]


@pytest.mark.parametrize("shares", [(), (1.0,), (0.5, 0.1), (0.0, 1.0), (0.1, 1.5), (0.1, 0.1)])
def test_shares_that_are_no_sizes_are_refused(shares):
    with pytest.raises(UserError, match="at least two shares"):
        area([1.0] * len(shares), shares)


def test_as_many_values_as_shares_are_needed():
    with pytest.raises(UserError, match="10 values"):
        area([1.0, 1.0])


# ---- intervals -----------------------------------------------------------------------------------


def test_an_interval_of_equal_examples_is_a_point():
    values = np.linspace(0, 1, 10)[:, None].repeat(6, axis=1)
    found = intervals.interval_of_faithfulness(values, np.ones(6), np.zeros(6), area)
    assert found.low == pytest.approx(found.value)
    assert found.high == pytest.approx(found.value)


def test_a_ratio_whose_parts_vary_together_has_a_narrow_interval():
    """Examples of very different size that all have the same share: the interval is a point."""
    clean = np.array([1.0, 10.0, 100.0, 3.0, 20.0])
    values = np.outer(np.full(10, 0.6), clean)
    found = intervals.interval_of_faithfulness(values, clean, np.zeros(5), area)
    assert found.value == pytest.approx(0.6 * 0.999)
    assert found.high - found.low == pytest.approx(0, abs=1e-12)


def test_an_interval_of_decisions_is_students_in_the_middle_and_clopper_pearsons_at_the_ends():
    right = (np.random.default_rng(0).random((1, 400)) < 0.5).astype(float)
    found = intervals.interval_of_means(right, lambda means: means[..., 0])
    error = right.std(ddof=1) / 20
    assert (found.high - found.low) / 2 == pytest.approx(1.966 * error, rel=0.01)
    all_right, none = (
        intervals.interval_of_means(np.full((1, 10), v), lambda means: means[..., 0])
        for v in (1.0, 0.0)
    )
    assert (all_right.low, all_right.high) == pytest.approx((0.025**0.1, 1))
    assert (none.low, none.high) == pytest.approx((0, 1 - 0.025**0.1))


def test_equal_examples_leave_room_for_those_not_seen():
    """Ten examples with one mean over sizes: a third of all examples may have another."""
    seen, n_samples = 0.025**0.1, 400
    found = intervals.interval_of_means(np.full((1, 10), 0.4), lambda means: means[..., 0])
    assert (found.low, found.high) == pytest.approx((0.4 * seen, 0.4 * seen + 1 - seen))
    random, covered = np.random.default_rng(1), 0
    for _ in range(n_samples):  # one example in fifty is right at the last size only
        values = np.where(random.random((1, 30)) < 0.02, [[0.1], [1.0]], 1.0)
        found = intervals.interval_of_means(values, lambda means: means.mean(-1))
        covered += found.low <= 1 - 0.02 * 0.45 <= found.high
    assert covered / n_samples >= 0.95


def test_no_interval_where_there_is_nothing_to_normalise_by_in_some_resamples():
    clean = np.array([1.0, -1.0, 1.0, -0.9, 0.3])
    ones = np.ones((10, 5))
    for found in (
        intervals.interval_of_faithfulness(ones, clean, np.zeros(5), area),
        intervals.interval_of_distances(ones, clean, np.zeros(5), area),
        intervals.interval_of_faithfulness(ones[:, :4], np.ones(4), np.zeros(4), area),
        intervals.interval_of_means(ones[:, :4], area),
    ):
        assert np.isfinite(found.value)
        assert np.isnan([found.low, found.high]).all()
        assert str(found).endswith(" (no interval)")


# ---- AUROC ---------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30).filter(
        lambda rows: 0 < sum(true for _, true in rows) < len(rows)
    )
)
def test_auroc_is_the_share_of_pairs_in_order(rows):
    true = [score for score, is_true in rows if is_true]
    false = [score for score, is_true in rows if not is_true]
    won = sum((a > b) + (a == b) / 2 for a, b in product(true, false))
    found = auroc([score for score, _ in rows], [is_true for _, is_true in rows])
    assert found == pytest.approx(won / (len(true) * len(false)))


def test_auroc_refuses_what_has_no_answer():
    with pytest.raises(UserError, match="true and false"):
        auroc([1.0, 2.0], [True, True])
    with pytest.raises(UserError, match="NaN"):
        auroc([1.0, np.nan], [True, False])


# ---- areas of a ranking --------------------------------------------------------------------------

EXAMPLES = random_examples([6, 8, 8, 5, 7], [2, 3, 3, 1, 4], seed=5)
DATASET = twins.dataset_of(EXAMPLES)


@pytest.mark.parametrize(
    ("family", "expanded"), [("llama", False), ("llama", True), ("qwen2", True)]
)
def test_areas_equal_the_benchmarks_on_the_same_scores(family, expanded):
    model = twins.load(family, torch.float64)
    with twins.precision(family, torch.float64):
        graph = eap.attribute(model, DATASET, method="EAP", expanded_kv=expanded)
        found = areas(model, graph, DATASET, n_resamples=50)
    helpful = area_of_ranking(family, EXAMPLES, -graph.scores, expanded=expanded, from_one=False)
    distance = area_of_ranking(
        family, EXAMPLES, graph.scores.abs(), expanded=expanded, from_one=True
    )
    assert found.cpr.value == pytest.approx(helpful, rel=1e-6)
    assert found.cmd.value == pytest.approx(distance, rel=1e-6)
    assert found.n_ranked == int(twins.edges_of(family, expanded=expanded).sum())
    assert found.helpful.faithfulness[-1] == pytest.approx(1, abs=1e-9)
    assert found.accuracy.low <= found.accuracy.value <= found.accuracy.high


def test_areas_of_nodes_equal_the_benchmarks_which_ranks_the_input():
    model = twins.load("llama", torch.float64)
    options = {"level": "node", "rank_input": True, "n_resamples": 10}
    with twins.precision("llama", torch.float64):
        graph = eap.attribute(model, DATASET, method="EAP", level="node", expanded_kv=True)
        found = areas(model, graph, DATASET, **options)
        # Where the input comes last, only the whole model is a circuit.
        last = graph.node_scores.clone()
        last[0] = 0.0
        empty = areas(model, replace(graph, node_scores=last), DATASET, **options)
    scores = graph.node_scores
    helpful = area_of_nodes("llama", EXAMPLES, -scores, from_one=False)
    distance = area_of_nodes("llama", EXAMPLES, scores.abs(), from_one=True)
    assert found.cpr.value == pytest.approx(helpful, rel=1e-6)
    assert found.cmd.value == pytest.approx(distance, rel=1e-6)
    assert found.n_ranked == graph.n_forward
    assert empty.magnitude.n_edges[:-1] == (0,) * 9
    assert empty.cmd.value == pytest.approx(0.749)
    with pytest.raises(UserError, match="rank_input is for nodes"):
        areas(model, graph, DATASET, rank_input=True)


def test_helpful_edges_of_a_divergence_are_those_that_raise_it():
    """KL is lower for a better circuit: the same edges help, though their scores are positive."""
    model = twins.load("gpt2")
    graph = eap.attribute(model, DATASET, method="EAP-IG", metric="kl")
    found = areas(model, graph, DATASET, metric="kl", n_resamples=10)
    turned = replace(graph, scores=-graph.scores, higher_is_better=True)
    again = areas(model, turned, DATASET, metric="kl", n_resamples=10)
    assert found.cpr.value == again.cpr.value
    for named in ("kl", "logit_diff"):  # a file that does not say it: what its metric is
        silent = replace(
            graph if named == "kl" else turned,
            higher_is_better=None,
            provenance={"metric": named},
        )
        assert areas(model, silent, DATASET, metric="kl", n_resamples=10).cpr == found.cpr


def test_a_ranking_of_the_metric_accuracy_alone():
    model = twins.load("gpt2")
    graph = eap.attribute(model, DATASET, method="EAP")
    clean, corrupted = eap.evaluate_baselines(model, DATASET, metrics=["accuracy"])
    if torch.equal(clean["accuracy"].mean(), corrupted["accuracy"].mean()):
        with pytest.raises(UserError, match="nothing to normalise"):
            areas(model, graph, DATASET, metric="accuracy")
    else:
        assert np.isfinite(areas(model, graph, DATASET, metric="accuracy").cpr.value)


def test_the_table_has_a_row_per_size():
    model = twins.load("gpt2")
    frame = areas(model, eap.attribute(model, DATASET, method="EAP"), DATASET).to_frame()
    assert len(frame) == 20
    assert set(frame["by"]) == {"helpful", "magnitude"}
    assert (frame["n_edges"] <= frame["size"]).all()


def test_areas_of_a_ranking_of_nodes():
    """All edges among the best nodes, by hand: MIB's rule for node-level files."""
    model = twins.load("llama")
    graph = eap.attribute(model, DATASET, method="EAP", level="node")
    shares = (0.2, 0.5, 1.0)
    found = areas(model, graph, DATASET, level="node", shares=shares, n_resamples=10)
    assert found.n_ranked == graph.n_forward - 1 == 10
    assert found.helpful.sizes == (2, 5, 10)
    order = torch.argsort(graph.node_scores[1:]).tolist()  # the most negative helps most
    kept = {graph.sender_names[1 + i] for i in order[:5]} | {"input"}
    among = torch.tensor(
        [
            [
                sender in kept
                and (receiver == "logits" or node_of(receiver, graph) & kept != set())
                for receiver in graph.receiver_names
            ]
            for sender in graph.sender_names
        ]
    )
    circuit = graph.with_edges(among & graph.edge_exists)
    value = eap.evaluate(model, circuit, DATASET)["logit_diff"].double().numpy()
    np.testing.assert_allclose(found.helpful.values[1], value, rtol=1e-4, atol=1e-5)


def node_of(receiver, graph):
    """The nodes that read a receiver: two query heads share a key/value head here."""
    layer, _, rest = receiver.partition(".")
    if not rest:
        return {receiver}
    number = int(rest[: rest.index("<")].strip("hkv"))
    shared = graph.config.n_heads // graph.config.n_kv_receivers
    heads = [number] if rest.startswith("h") else range(number * shared, (number + 1) * shared)
    return {f"{layer}.h{head}" for head in heads}


def test_greedy_areas_and_what_cannot_be_selected():
    model = twins.load("gpt2")
    graph = eap.attribute(model, DATASET, method="EAP")
    found = areas(model, graph, DATASET, selection="greedy", n_resamples=10)
    size = found.magnitude.sizes[-2]
    value = eap.evaluate(model, graph.greedy(size), DATASET)["logit_diff"].double().numpy()
    np.testing.assert_allclose(found.magnitude.values[-2], value, rtol=1e-4, atol=1e-5)
    for wrong in ({"level": "head"}, {"selection": "best"}, {"level": "node"}):
        with pytest.raises(UserError):
            areas(model, graph, DATASET, **wrong)


def test_areas_say_what_they_are_of():
    model = twins.load("gpt2")
    graph = eap.attribute(model, DATASET, method="EAP")
    found = areas(model, graph, DATASET, ablation="zero", n_resamples=10)
    assert found.provenance["method"] == "areas"
    assert found.provenance["ranking"]["method"] == "EAP"
    assert found.provenance["ablation"] != graph.provenance["ablation"]
    other = areas(model, graph, DATASET, n_resamples=10)
    assert found.cpr.value != other.cpr.value  # what is outside carries something else


@pytest.mark.parametrize("metric", ["kl", "js"])
def test_without_incorrect_answers_only_the_accuracy_is_unknown(metric):
    """KL needs none, so its areas do not either."""
    model, pairs = twins.load("gpt2"), twins.dataset_of(twins.RAGGED)
    alone = replace(pairs, examples=tuple(replace(pair, incorrect=()) for pair in pairs))
    graph = eap.attribute(model, pairs, metric=metric, steps=2)
    both, found = (
        areas(model, graph, data, metric=metric, n_resamples=10) for data in (pairs, alone)
    )
    assert found.cmd == both.cmd
    assert np.isnan(found.accuracy.value)
    assert "accuracy" in str(found)
    with pytest.raises(UserError, match="incorrect answer"):
        areas(model, graph, alone, metric="accuracy")


# ---- the error of a share ------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.05, 0.5, 2.0])
def test_the_error_of_a_share_is_that_of_a_bootstrap(noise):
    """Circuit, clean and corrupted run vary together: far less than the circuit's mean alone."""
    generator = np.random.default_rng(0)
    n = 300
    clean = 3 + generator.normal(size=n)
    corrupted = generator.normal(scale=0.5, size=n)
    values = corrupted + 0.7 * (clean - corrupted) + noise * generator.normal(size=n)
    draws = generator.integers(0, n, size=(4000, n))
    shares = normalised(values[draws].mean(1), clean[draws].mean(1), corrupted[draws].mean(1))
    error = float(faithfulness_errors(values, clean, corrupted))
    assert error == pytest.approx(shares.std(), rel=0.06)
    if noise < 0.1:  # the circuit's own error over the gap, as if its parts were constants
        naive = values.std(ddof=1) / np.sqrt(n) / (clean.mean() - corrupted.mean())
        assert error < naive / 4


def test_the_whole_model_and_the_ablated_one_have_no_error():
    generator = np.random.default_rng(1)
    clean, corrupted = 2 + generator.normal(size=50), generator.normal(size=50)
    errors = faithfulness_errors(np.stack([clean, corrupted]), clean, corrupted)
    assert errors == pytest.approx([0.0, 0.0], abs=1e-15)
    assert np.isnan(faithfulness_errors(clean[:1], clean[:1], corrupted[:1]))

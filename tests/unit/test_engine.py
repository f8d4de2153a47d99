"""Attribution: EAP and its relatives equal the split-input oracle, whatever the batches."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models.tiny import D_VOCAB, FAMILIES, MAIN_FAMILIES, random_examples
from reference import micro, twins
from reference.oracle import RULES, float64
from reference.twins import DTYPES, EXAMPLES, FORMS, METRICS, RELATIVE, assert_close, dataset_of

import eap
from eap.methods import RULES as PACKAGE_RULES
from eap.metrics.metric import METRICS as PACKAGE_METRICS
from eap.model.runs import run_tokens

AT_CLEAN = ([1.0], [1.0])
AT_BOTH_ENDS = ([0.0, 1.0], [0.5, 0.5])


def check_scores(family, dtype, examples, metric, path, *, expanded=False, **arguments):
    """Means and standard errors of `eap.attribute` equal those of the oracle's scores."""
    model = twins.load(family, dtype)
    with twins.precision(family, dtype):
        graph = eap.attribute(
            model,
            dataset_of(examples),
            metric=metric,
            expanded_kv=expanded,
            **arguments,
        )
    expected = twins.oracle_attribution(family, examples, metric, *path, expanded=expanded)
    assert_close(graph.scores, expected.mean(0), RELATIVE[dtype])
    if len(examples) == 1:
        assert graph.standard_errors is None
    else:
        # Kept in float32 always.
        errors = expected.std(0, correction=1) / len(examples) ** 0.5
        assert_close(graph.standard_errors, errors, RELATIVE[torch.float32])
    return graph


# ---- the forward pass ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_those_of_hugging_face_at_every_length(family, dtype):
    model, hf = twins.load(family, dtype), twins.hf_model(family)
    for n_positions in (1, 2, 7, 20):
        generator = torch.Generator().manual_seed(n_positions)
        tokens = torch.randint(D_VOCAB, (3, n_positions), generator=generator)
        with twins.precision(family, dtype):
            logits = run_tokens(model, tokens)
        with float64(), torch.no_grad():
            expected = hf(input_ids=tokens, use_cache=False).logits[:, -1]
        assert_close(logits, expected, RELATIVE[dtype])


# ---- EAP and EAP-IG ------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "expanded"), FORMS)
def test_eap_equals_the_oracle(family, expanded):
    for metric, dtype in product(("logit_diff", "prob_diff"), DTYPES):
        check_scores(family, dtype, EXAMPLES, metric, AT_CLEAN, expanded=expanded, method="EAP")


@pytest.mark.parametrize(("family", "expanded"), FORMS)
def test_eap_ig_equals_the_oracle(family, expanded):
    """All as one batch, which begins at the first token, and in batches with prefixes."""
    path, batch_size = RULES["paper", 3], {torch.float32: 4, torch.float64: 64}
    in_float32 = METRICS if family in MAIN_FAMILIES else ("kl",)
    for metric, dtype in [
        *product(METRICS, [torch.float64]), *product(in_float32, [torch.float32])
    ]:  # fmt: skip
        check_scores(
            family,
            dtype,
            EXAMPLES,
            metric,
            path,
            expanded=expanded,
            method="EAP-IG",
            steps=3,
            batch_size=batch_size[dtype],
        )


@pytest.mark.parametrize("family", MAIN_FAMILIES)
@pytest.mark.parametrize(("rule", "steps"), RULES)
def test_every_rule_of_integration_equals_the_oracle(family, rule, steps):
    check_scores(
        family,
        torch.float64,
        twins.RAGGED,
        "prob_diff",
        RULES[rule, steps],
        method="EAP-IG",
        rule=rule,
        steps=steps,
    )


@pytest.mark.parametrize("family", MAIN_FAMILIES)
def test_clean_corrupted_is_the_mean_of_the_gradients_at_both_ends(family):
    for metric in METRICS:
        check_scores(
            family, torch.float64, twins.RAGGED, metric, AT_BOTH_ENDS, method="clean-corrupted"
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_each_first_difference_alone_equals_the_oracle(family):
    """One example at a time, in calls of their own, and with prefixes of their own in one call."""
    for example in EXAMPLES:
        check_scores(family, torch.float64, [example], "logit_diff", AT_CLEAN, method="EAP")
    check_scores(
        family, torch.float64, EXAMPLES, "logit_diff", AT_CLEAN, method="EAP", batch_size=1
    )


@pytest.mark.parametrize("batch_size", [1, 2, 4, 64])
@pytest.mark.parametrize("family", MAIN_FAMILIES)
def test_every_batch_size_equals_the_oracle(family, batch_size):
    """Nine ragged examples: some last batches are smaller than the rest."""
    path = RULES["paper", 3]
    check_scores(family, torch.float32, EXAMPLES, "kl", path, steps=3, batch_size=batch_size)


@pytest.mark.parametrize("examples", [twins.RAGGED, twins.FROM_THE_FIRST, twins.WITH_BOS])
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_with_and_without_bos_equal_the_oracle(family, examples):
    path = RULES["paper", 2]
    check_scores(family, torch.float32, examples, "logit_diff", path, steps=2)


def test_a_model_of_one_layer_and_a_model_of_four_equal_the_oracle():
    for n_layers in (1, 4):
        hf = twins.tiny_hf("gpt2", dtype=torch.float64, n_layers=n_layers, seed=n_layers)
        model = eap.from_bridge(twins.bridge_of(hf))
        found = eap.attribute(model, dataset_of(twins.RAGGED), method="EAP", metric="prob_diff")
        expected = torch.stack(
            [
                twins.oracle.attribution_scores(
                    hf,
                    own.clean,
                    own.corrupted,
                    [twins.oracle.metric_of("prob_diff", own.correct, own.incorrect)],
                    *AT_CLEAN,
                )[0]
                for own in twins.RAGGED
            ]
        )
        assert_close(found.scores, expected.nan_to_num(0.0).mean(0), 1e-9)


# ---- a model solved by hand ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"method": "EAP"}, micro.EAP),
        ({"method": "EAP-IG", "steps": 1}, micro.EAP),
        ({"method": "EAP-IG", "steps": 1, "rule": "midpoint"}, micro.MIDDLE),
        ({"method": "EAP-IG", "steps": 1, "rule": "gauss-legendre"}, micro.MIDDLE),
        ({"method": "EAP-IG", "steps": 2}, micro.TWO_STEPS),
    ],
)
def test_scores_of_the_micro_model_are_those_of_pen_and_paper(arguments, expected):
    with float64():
        model = eap.from_bridge(micro.micro_bridge())
        graph = eap.attribute(model, dataset_of([micro.EXAMPLE]), metric="logit_diff", **arguments)
    scores = {edge.name: edge.score for edge in graph.edges()}
    assert scores == pytest.approx({name: expected.get(name, 0.0) for name in scores}, abs=1e-9)


# ---- invariants ----------------------------------------------------------------------------------

EXAMPLE_SETS = st.integers(0, 10_000).flatmap(
    lambda seed: (
        st.lists(st.tuples(st.integers(1, 8), st.integers(0, 7)), min_size=1, max_size=6)
        .map(lambda rows: [(length, first % length) for length, first in rows])
        .map(lambda rows: random_examples(*zip(*rows, strict=True), seed=seed))
    )
)


@settings(max_examples=12)  # each has values of the oracle that no other test shares
@given(EXAMPLE_SETS, st.sampled_from(MAIN_FAMILIES), st.sampled_from(METRICS))
def test_any_examples_equal_the_oracle(examples, family, metric):
    path = RULES["midpoint", 1]
    check_scores(family, torch.float64, examples, metric, path, steps=1, rule="midpoint")


@given(EXAMPLE_SETS, st.integers(1, 7), st.randoms(use_true_random=False))
def test_batch_size_and_order_do_not_matter(examples, batch_size, random):
    model = twins.load("llama")
    shuffled = random.sample(examples, len(examples))
    one, other = (
        eap.attribute(model, dataset_of(own), metric="prob_diff", batch_size=size)
        for own, size in ((examples, 64), (shuffled, batch_size))
    )
    assert_close(one.scores, other.scores, 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_1_and_a_batch_of_64_give_the_same_scores(family):
    one, many = (
        eap.attribute(twins.load(family), dataset_of(EXAMPLES), metric="js", batch_size=size)
        for size in (1, 64)
    )
    assert_close(one.scores, many.scores, 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_two_runs_are_identical(family):
    one, other = (
        eap.attribute(twins.load(family), dataset_of(EXAMPLES), metric="kl", batch_size=4)
        for _ in range(2)
    )
    assert torch.equal(one.scores, other.scores)
    assert torch.equal(one.standard_errors, other.standard_errors)


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_prompts_have_zero_scores(family):
    """Up to rounding: the two runs are rows of one batch, which a kernel may add up differently."""
    examples = random_examples([5, 7, 1], [None, None, None])
    for method in ("EAP", "EAP-IG", "clean-corrupted"):
        graph = eap.attribute(twins.load(family), dataset_of(examples), method=method)
        assert graph.scores.abs().max() < 1e-6
        assert graph.standard_errors.abs().max() < 1e-6


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("family", MAIN_FAMILIES)
def test_scores_along_the_input_sum_to_the_change_of_the_metric_as_steps_grow(family, metric):
    """Completeness. The input's edges together are the gradient along the path of inputs."""
    model = twins.load(family, torch.float64)
    dataset = dataset_of(random_examples([4, 6, 6], [1, 2, 5], seed=4))
    with twins.precision(family, torch.float64):
        clean, corrupted = eap.evaluate_baselines(model, dataset, metrics=[metric])
        change = float((corrupted[metric] - clean[metric]).mean())
        size = float((corrupted[metric] - clean[metric]).abs().max())

        def gap(rule, steps):
            graph = eap.attribute(model, dataset, metric=metric, rule=rule, steps=steps)
            return abs(float(graph.scores[0].sum()) - change) / size

        gaps = {rule: [gap(rule, steps) for steps in (5, 100)] for rule in ("paper", "midpoint")}
    print(f"{family} {metric}: what is missing with 5 and with 100 steps: {gaps}")
    assert gaps["paper"][1] < 0.02
    assert gaps["midpoint"][1] < 5e-4
    for first, last in gaps.values():
        assert last < first


def test_the_weights_are_as_before_and_hold_no_gradient():
    model = twins.load("qwen3")
    before = {n: p.clone() for n, p in model.bridge.original_model.named_parameters()}
    eap.attribute(model, dataset_of(EXAMPLES))
    for name, parameter in model.bridge.original_model.named_parameters():
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", [f for f in FAMILIES if not f.startswith("olmo")])
def test_half_precision_scores_resemble_those_of_float32(family, dtype):
    """Random weights with large gains are the worst case. (The bridge runs no OLMo in half.)"""
    half, single = (
        eap.attribute(twins.load(family, own), dataset_of(EXAMPLES), steps=3)
        for own in (dtype, torch.float32)
    )
    assert half.scores.dtype == torch.float32
    similarity = torch.cosine_similarity(half.scores.flatten(), single.scores.flatten(), dim=0)
    assert similarity > (0.99 if dtype == torch.bfloat16 else 0.999)


# ---- metrics of one's own, and what is refused ---------------------------------------------------


def test_a_metric_of_ones_own_is_attributed_like_a_named_one():
    model, dataset = twins.load("gpt2"), dataset_of(EXAMPLES)
    own = eap.Metric("mine", PACKAGE_METRICS["logit_diff"].function, higher_is_better=True)
    one, other = (eap.attribute(model, dataset, metric=metric) for metric in (own, "logit_diff"))
    assert_close(one.scores, other.scores, 1e-6)


def test_a_memory_budget_changes_batches_but_not_scores():
    model, dataset = twins.load("gpt2"), dataset_of(EXAMPLES)
    small = eap.attribute(model, dataset, memory_budget=2_000_000)
    assert_close(small.scores, eap.attribute(model, dataset).scores, 1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": "logitdiff"}, "unknown metric 'logitdiff'; known are logit_diff"),
        ({"method": "ACDC"}, "unknown method 'ACDC'; known are EAP, EAP-IG"),
        ({"rule": "simpson"}, "unknown rule 'simpson'; known are paper, library, midpoint"),
        ({"steps": 0}, "steps is 0; it must be"),
        ({"batch_size": 0}, "it must be a whole number from 1"),
        ({"batch_size": -3}, "it must be a whole number from 1"),
        ({"memory_budget": 1000}, "too small"),
        ({"metric": "accuracy"}, "accuracy has no gradient"),
        ({"metric": "kl", "method": "EAP"}, "zero at the clean input"),
        ({"metric": "js", "steps": 1}, "zero at the clean input"),
        (
            {"metric": eap.Metric("mean", lambda x, y, a: x.mean(), higher_is_better=True)},
            "one value per example",
        ),
    ],
)
def test_what_cannot_be_attributed_is_refused_in_one_line(arguments, message):
    with pytest.raises(eap.UserError, match=message) as error:
        eap.attribute(twins.load("gpt2"), dataset_of(EXAMPLES), **arguments)
    assert "\n" not in str(error.value)


def test_no_examples_are_refused():
    with pytest.raises(eap.UserError, match="no examples"):
        eap.attribute(twins.load("gpt2"), dataset_of([]))


def test_rules_have_weights_that_sum_to_one_and_points_on_the_path():
    for rule in PACKAGE_RULES.values():
        for steps in (1, 2, 7, 30):
            points = rule(steps)
            assert len(points) == steps
            assert sum(point.weight for point in points) == pytest.approx(1)
            assert all(0 <= point.position <= 1 for point in points)

"""Metrics: by hand, against the oracle's, at their limits, and metrics of one's own."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import twins
from reference.oracle import metric_of
from reference.twins import assert_close, dataset_of

import eap
from eap.metrics import METRICS, Answers, get_metric

CPU = torch.device("cpu")
PUBLIC = ("logit_diff", "prob_diff", "kl", "js", "accuracy")


def example(correct, incorrect):
    return eap.Example(clean=(0, 1), corrupted=(0, 2), correct=correct, incorrect=incorrect)


def measure(name, logits, clean_logits, examples):
    answers = Answers.of(examples, range(len(examples)), CPU)
    return METRICS[name](logits, clean_logits, answers)


@st.composite
def batches(draw, scale=3.0):
    """Logits, clean logits and answer sets of several sizes, on 12 tokens."""
    n = draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    logits, clean_logits = scale * torch.randn(2, n, 12, generator=generator).double()
    examples = []
    for _ in range(n):
        tokens = draw(st.permutations(range(12)))
        first, second = draw(st.integers(1, 5)), draw(st.integers(1, 5))
        examples.append(example(tuple(tokens[:first]), tuple(tokens[first : first + second])))
    return logits, clean_logits, examples


# ---- values --------------------------------------------------------------------------------------


@given(batches(), st.sampled_from(PUBLIC))
def test_metrics_equal_the_oracle(batch, name):
    logits, clean_logits, examples = batch
    expected = torch.stack(
        [
            metric_of(name, own.correct, own.incorrect)(row, clean_row)
            for own, row, clean_row in zip(examples, logits, clean_logits, strict=True)
        ]
    )
    torch.testing.assert_close(measure(name, *batch), expected, rtol=1e-10, atol=1e-12)


def test_metrics_have_the_values_of_pen_and_paper():
    """Probabilities 1/8, 1/4, 5/8 against 1/2, 1/4, 1/4 in the clean run."""
    logits = torch.tensor([[1.0, 2.0, 5.0]]).log()
    clean = torch.tensor([[2.0, 1.0, 1.0]]).log()
    examples = [example((2,), (0, 1))]
    expected = {
        "logit_diff": math.log(5) - (math.log(1) + math.log(2)) / 2,
        "logit_diff_sum": math.log(5) - (math.log(1) + math.log(2)),
        "prob_diff": 5 / 8 - 3 / 8,
        "kl": 0.5 * math.log(0.5 / 0.125) + 0 + 0.25 * math.log(0.25 / 0.625),
        "js": (
            0.5 * math.log(0.5 / 0.3125)
            + 0.25 * math.log(0.25 / 0.4375)
            + 0.125 * math.log(0.125 / 0.3125)
            + 0.625 * math.log(0.625 / 0.4375)
        )
        / 2,
        "accuracy": 1.0,
    }
    assert set(expected) == set(METRICS)
    for name, value in expected.items():
        assert float(measure(name, logits, clean, examples)) == pytest.approx(value, abs=1e-6)


@given(batches(), st.sampled_from(PUBLIC))
def test_each_example_is_measured_alone(batch, name):
    logits, clean_logits, examples = batch
    together = measure(name, *batch)
    assert together.shape == (len(examples),)
    for row, own in enumerate(examples):
        alone = measure(name, logits[row : row + 1], clean_logits[row : row + 1], [own])
        torch.testing.assert_close(alone[0], together[row], rtol=1e-10, atol=1e-12)


@given(batches(), st.sampled_from(PUBLIC), st.floats(-100, 100))
def test_a_constant_added_to_all_logits_changes_nothing(batch, name, constant):
    logits, clean_logits, examples = batch
    moved = measure(name, logits + constant, clean_logits - constant, examples)
    torch.testing.assert_close(moved, measure(name, *batch), rtol=1e-9, atol=1e-9)


@given(batches())
def test_divergences_are_zero_at_the_clean_run_and_nowhere_less(batch):
    logits, clean_logits, examples = batch
    for name in ("kl", "js"):
        assert measure(name, clean_logits, clean_logits, examples).abs().max() < 1e-12
        assert measure(name, logits, clean_logits, examples).min() > 0


@given(batches(scale=30.0))
def test_js_is_symmetric_and_at_most_log_2(batch):
    logits, clean_logits, examples = batch
    one, other = (
        measure("js", a, b, examples) for a, b in ((logits, clean_logits), (clean_logits, logits))
    )
    torch.testing.assert_close(one, other)
    assert one.max() <= math.log(2) + 1e-12


@given(batches())
def test_swapped_answers_change_the_sign(batch):
    logits, clean_logits, examples = batch
    swapped = [example(own.incorrect, own.correct) for own in examples]
    for name in ("logit_diff", "prob_diff", "logit_diff_sum"):
        other = measure(name, logits, clean_logits, swapped)
        torch.testing.assert_close(other, -measure(name, *batch))


@given(batches())
def test_metrics_of_answers_alone_need_no_other_logits(batch):
    logits, clean_logits, examples = batch
    answers = Answers.of(examples, range(len(examples)), CPU)
    few, clean_few = logits[:, answers.token_ids], clean_logits[:, answers.token_ids]
    for metric in METRICS.values():
        if metric.answers_only:
            own = metric(few, clean_few, answers.among_themselves())
            torch.testing.assert_close(own, metric(logits, clean_logits, answers))


@given(batches())
def test_only_kl_and_js_are_flat_at_the_clean_run(batch):
    _, clean_logits, examples = batch
    answers = Answers.of(examples, range(len(examples)), CPU)
    for metric in METRICS.values():
        if not metric.differentiable:
            continue
        logits = clean_logits.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(metric(logits, clean_logits, answers).sum(), logits)
        assert (gradient.abs().max() < 1e-9) == metric.flat_at_clean


# ---- limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_give_numbers(dtype):
    """A token that one of the runs all but rules out: its probability is zero in float32."""
    clean = torch.tensor([[0.0, 0.0, -300.0], [500.0, 0.0, 0.0]], dtype=dtype)
    logits = torch.tensor([[-300.0, 0.0, 0.0], [0.0, 500.0, 0.0]], dtype=dtype)
    examples = [example((0,), (2,))] * 2
    for name in PUBLIC:
        assert measure(name, logits, clean, examples).isfinite().all()
    kl = measure("kl", logits, clean, examples)
    # Half of the clean probability lies where the run has e^-300 of 1/2; all where it has e^-500.
    assert kl.tolist() == pytest.approx([150.0, 500.0], rel=1e-3)


def test_tokens_that_are_ruled_out_altogether_contribute_nothing():
    ruled_out = torch.tensor([[0.0, 1.0, -torch.inf]])
    for name in ("kl", "js"):
        assert float(measure(name, ruled_out, ruled_out, [example((0,), (1,))])) == 0


def test_accuracy_compares_the_sets_probabilities_not_their_means():
    """Three unlikely right answers together outweigh one that is likelier than each."""
    logits = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    assert float(measure("accuracy", logits, logits, [example((0, 1, 2), (3,))])) == 1.0
    assert float(measure("accuracy", logits, logits, [example((0, 1), (3,))])) == 0.0


def test_a_tie_is_no_success():
    logits = torch.zeros(1, 3)
    assert float(measure("accuracy", logits, logits, [example((0,), (1,))])) == 0.0


# ---- names and metrics of one's own --------------------------------------------------------------


def test_metrics_are_known_by_name():
    for name, metric in METRICS.items():
        assert metric.name == name
        assert get_metric(name) is metric
    own = eap.Metric("mine", METRICS["kl"].function)
    assert get_metric(own) is own


def test_an_unknown_metric_is_refused_with_those_that_are_known():
    with pytest.raises(eap.UserError, match="unknown metric 'nll'") as error:
        get_metric("nll")
    for name in PUBLIC:
        assert name in str(error.value)


def test_a_metric_that_averages_over_the_batch_is_refused():
    mean = eap.Metric("mean", lambda logits, clean, answers: logits.mean())
    logits = torch.zeros(3, 4)
    examples = [example((0,), (1,))] * 3
    with pytest.raises(eap.UserError, match="one value per example"):
        mean(logits, logits, Answers.of(examples, range(3), CPU))


LABELS = [3, 9, 4, 7, 5, 11, 6]


def label_logit(logits, clean_logits, input_length, labels):
    """As metrics for whole sequences are written: reads position `input_length - 1`."""
    rows = torch.arange(len(input_length))
    labels = torch.as_tensor(labels)
    last = logits[rows, input_length - 1]
    return last[rows, labels] - clean_logits[rows, input_length - 1].mean(-1)


@pytest.mark.parametrize("labels", [LABELS, torch.tensor(LABELS)], ids=["list", "tensor"])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_a_metric_for_whole_sequences_reads_the_last_token_and_its_examples_labels(
    labels, batch_size
):
    metric = eap.from_sequence_metric("label_logit", label_logit, labels)
    model, dataset = twins.load("gpt2"), dataset_of(twins.RAGGED)
    clean, corrupted = eap.evaluate_baselines(
        model, dataset, metrics=[metric], batch_size=batch_size
    )
    hf = twins.hf_model("gpt2")
    for found, prompts in ((clean, "clean"), (corrupted, "corrupted")):
        expected = [
            twins.oracle.last_logits(hf, getattr(own, prompts))[label]
            - twins.oracle.last_logits(hf, own.clean).mean()
            for own, label in zip(twins.RAGGED, LABELS, strict=True)
        ]
        assert_close(found["label_logit"], torch.stack(expected), 1e-5)
    scores = eap.attribute(model, dataset, metric=metric, batch_size=batch_size).scores
    again = eap.attribute(model, dataset, metric=metric, batch_size=2).scores
    assert_close(scores, again, 1e-5)
    assert scores.abs().max() > 0


def test_answers_share_what_examples_share():
    shared = (4, 5, 6)
    examples = [example(shared, (7,)), example(shared, (3, 8))]
    answers = Answers.of(examples, [10, 20], CPU)
    assert answers.token_ids.tolist() == [3, 4, 5, 6, 7, 8]
    assert answers.correct.tolist() == [[False, True, True, True, False, False]] * 2
    assert answers.incorrect.int().tolist() == [[0, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, 1]]
    assert answers.rows == (10, 20)

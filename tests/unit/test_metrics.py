"""Metrics: by hand, against the oracle's, at their limits, and metrics of one's own."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference.oracle import metric_of
from reference.twins import assert_close, example
from scipy.stats import kendalltau

import eap
from eap.metrics.metric import METRICS, Answers

CPU = torch.device("cpu")
PUBLIC = ("logit_diff", "prob_diff", "kl", "js", "accuracy")


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


# ---- small divergences in float32 ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["kl", "js"])
@pytest.mark.parametrize("d_vocab", [20, 50_257])
@pytest.mark.parametrize("scale", [1e-6, 1e-4, 1e-2, 1.0, 10.0])
def test_divergences_keep_their_digits_in_float32(name, d_vocab, scale):
    """Relative to each value, however small; the same logits, so that nothing else rounds."""
    generator = torch.Generator().manual_seed(0)
    clean = 4 * torch.randn(6, d_vocab, generator=generator) - 30
    logits = clean + scale * torch.randn(6, d_vocab, generator=generator)
    examples = [example((0,), (1,))] * 6
    values = measure(name, logits, clean, examples)
    exact = measure(name, logits.double(), clean.double(), examples)
    assert (values > 0).all()
    torch.testing.assert_close(values.double(), exact, rtol=1e-4, atol=0)
    # The textbook's formula, in twice the digits, says the same (its own rounding apart).
    p, q = (x.double().log_softmax(-1) for x in (clean, logits))
    mixture = torch.logaddexp(p, q) - math.log(2)
    textbook = {
        "kl": (p.exp() * (p - q)).sum(-1),
        "js": (p.exp() * (p - mixture) + q.exp() * (q - mixture)).sum(-1) / 2,
    }[name]
    torch.testing.assert_close(exact, textbook, rtol=1e-6, atol=1e-14)


@pytest.mark.parametrize("name", ["kl", "js"])
@pytest.mark.parametrize("constant", [0.0, 3.0, -250.0])
def test_a_constant_beside_a_small_change_is_no_divergence(name, constant):
    generator = torch.Generator().manual_seed(1)
    clean = torch.randn(4, 1000, generator=generator)
    logits = clean + 1e-3 * torch.randn(4, 1000, generator=generator)
    examples = [example((0,), (1,))] * 4
    moved = measure(name, logits + constant, clean, examples)
    exact = measure(name, (logits + constant).double(), clean.double(), examples)
    # Beside 250, what a float32 can tell of a change of 0.001 are two digits.
    rtol = 1e-4 if abs(constant) < 10 else 3e-2
    torch.testing.assert_close(moved.double(), exact, rtol=rtol, atol=0)
    assert (measure(name, clean + constant, clean, examples) >= 0).all()


@pytest.mark.parametrize("name", ["kl", "js"])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 20.0])
def test_gradients_of_divergences_are_the_textbooks(name, scale):
    generator = torch.Generator().manual_seed(2)
    clean = torch.randn(3, 40, generator=generator).double()
    logits = clean + scale * torch.randn(3, 40, generator=generator).double()
    examples = [example((0,), (1,))] * 3

    def gradient(function, dtype):
        x = logits.to(dtype).requires_grad_()
        (out,) = torch.autograd.grad(function(x).sum(), x)
        return out.double()

    def textbook(x):
        p, q = clean.log_softmax(-1), x.log_softmax(-1)
        if name == "kl":
            return (p.exp() * (p - q)).sum(-1)
        mixture = torch.logaddexp(p, q) - math.log(2)
        return (p.exp() * (p - mixture) + q.exp() * (q - mixture)).sum(-1) / 2

    expected = gradient(textbook, torch.float64)
    ours = gradient(lambda x: measure(name, x, clean, examples), torch.float64)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-13)
    in_float32 = gradient(lambda x: measure(name, x, clean.float(), examples), torch.float32)
    assert_close(in_float32, expected, 1e-4)
    for dtype in (torch.float32, torch.float64):
        x = clean.to(dtype).requires_grad_()
        (at_clean,) = torch.autograd.grad(measure(name, x, clean.to(dtype), examples).sum(), x)
        assert at_clean.abs().max() == 0


def test_tokens_that_one_run_rules_out():
    """By pen and paper: halves against halves that share one token, or none."""
    inf = math.inf
    clean = torch.tensor([[0.0, 0.0, -inf]] * 3)
    logits = torch.tensor([[0.0, -inf, 0.0], [-inf, -inf, 0.0], [0.0, 0.0, 0.0]])
    examples = [example((0,), (1,))] * 3
    assert measure("kl", logits, clean, examples).tolist() == [
        inf,
        inf,
        pytest.approx(math.log(1.5), rel=1e-6),
    ]
    thirds = (math.log(6 / 5) + math.log(4 / 5) * 2 / 3 + math.log(2) / 3) / 2
    assert measure("js", logits, clean, examples).tolist() == pytest.approx(
        [math.log(2) / 2, math.log(2), thirds], rel=1e-6
    )


@pytest.mark.parametrize("metric", ["kl", "js"])
def test_exact_divergences_of_all_edges_rank_as_in_float64(metric):
    """Every edge of the model that ships here, on pairs of a task: float32 against float64."""
    single, double = (eap.load_model("toy", dtype=dtype) for dtype in ("float32", "float64"))
    dataset = eap.load_dataset("sva", single.tokenizer, head=3)
    values = [
        eap.patch_edges(model, dataset, metrics=[metric])[metric] for model in (single, double)
    ]
    counted = values[0].edge_exists
    ours, exact = (graph.scores[counted].double() for graph in values)
    assert (ours >= 0).all()
    assert kendalltau(ours, exact)[0] > 0.99
    relative = ((ours - exact).abs() / exact.clamp(min=1e-12)).median()
    assert relative < 1e-2

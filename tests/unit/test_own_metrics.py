"""Metrics of one's own: what they may return, what they are given."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from reference import twins
from reference.twins import assert_close, dataset_of, example

import eap
from eap.metrics.metric import METRICS, Answers, get_metric

CPU = torch.device("cpu")
PUBLIC = ("logit_diff", "prob_diff", "kl", "js", "accuracy")


# ---- names and metrics of one's own --------------------------------------------------------------


def test_metrics_are_known_by_name():
    for name, metric in METRICS.items():
        assert metric.name == name
        assert get_metric(name) is metric
    own = eap.Metric("mine", METRICS["kl"].function, higher_is_better=False)
    assert get_metric(own) is own


def test_an_unknown_metric_is_refused_with_those_that_are_known():
    with pytest.raises(eap.UserError, match="unknown metric 'nll'") as error:
        get_metric("nll")
    for name in PUBLIC:
        assert name in str(error.value)


def test_a_metric_that_averages_over_the_batch_is_refused():
    mean = eap.Metric("mean", lambda logits, clean, answers: logits.mean(), higher_is_better=True)
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
    metric = eap.from_sequence_metric("label_logit", label_logit, labels, higher_is_better=True)
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


# ---- what people's own metrics return, and what they are given -----------------------------------


def evaluate_own(function, **options):
    model, dataset = twins.load("gpt2"), dataset_of(twins.RAGGED)
    return eap.evaluate_baselines(
        model,
        dataset,
        metrics=[eap.Metric("own", function, **options, higher_is_better=True)],
        batch_size=3,
    )[0]["own"]


@pytest.mark.parametrize("dtype", [torch.bool, torch.float64, torch.long, torch.bfloat16])
def test_a_metric_of_any_dtype_is_converted(dtype):
    values = evaluate_own(lambda logits, clean, answers: (logits[:, 3] > 0).to(dtype))
    plain = evaluate_own(lambda logits, clean, answers: logits[:, 3])
    assert values.dtype == plain.dtype == torch.float32
    assert torch.equal(values, (plain > 0).float())


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (lambda logits: None, "NoneType"),
        (lambda logits: logits[:, 0].tolist(), "list"),
        (lambda logits: logits[:, 0].numpy(), "ndarray"),
        (lambda logits: 0.5, "float"),
        (lambda logits: logits, "one value per example"),
        (lambda logits: logits[:, :1], "one value per example"),
        (lambda logits: logits[:, 0].mean(), "one value per example"),
        (lambda logits: logits[:, 0].to(torch.complex64), "complex"),
        (lambda logits: logits[:, 0] * math.nan, "NaN"),
        (lambda logits: (logits[:, 0] - 1e9).sqrt(), "NaN"),
    ],
)
def test_a_metric_that_returns_something_else_is_refused_by_name(returned, words):
    with pytest.raises(eap.UserError, match=words) as error:
        evaluate_own(lambda logits, clean, answers: returned(logits))
    assert "'own'" in str(error.value)


def test_a_nan_is_refused_by_every_verb():
    model, dataset = twins.load("gpt2"), dataset_of(twins.RAGGED)
    metric = eap.Metric(
        "broken", lambda logits, clean, answers: logits[:, 0] * math.nan, higher_is_better=True
    )
    for verb in (
        lambda: eap.attribute(model, dataset, metric=metric),
        lambda: eap.patch_edges(model, dataset, metrics=[metric]),
    ):
        with pytest.raises(eap.UserError, match=r"'broken' is NaN"):
            verb()


@pytest.mark.parametrize(
    "function",
    [
        lambda logits, clean, answers: logits.argmax(-1),
        lambda logits, clean, answers: logits[:, 3] > 0,
        lambda logits, clean, answers: logits.detach()[:, 3],
        lambda logits, clean, answers: clean[:, 3],
    ],
)
def test_a_metric_without_a_gradient_cannot_be_attributed(function):
    model, dataset = twins.load("gpt2"), dataset_of(twins.RAGGED)
    with pytest.raises(eap.UserError, match="'own' has no gradient"):
        eap.attribute(model, dataset, metric=eap.Metric("own", function, higher_is_better=True))


def test_metrics_of_one_name_are_refused():
    model, dataset = twins.load("gpt2"), dataset_of(twins.RAGGED)
    mine = eap.Metric("kl", METRICS["logit_diff"].function, higher_is_better=True)
    for several in (["kl", "kl"], ["kl", mine], [mine, mine]):
        for verb in (
            lambda chosen: eap.evaluate_baselines(model, dataset, metrics=chosen),
            lambda chosen: eap.patch_edges(model, dataset, metrics=chosen),
        ):
            with pytest.raises(eap.UserError, match="2 metrics are called 'kl'"):
                verb(several)
    with pytest.raises(eap.UserError, match="no metric"):
        eap.evaluate_baselines(model, dataset, metrics=[])
    with pytest.raises(eap.UserError, match="unknown metric"):
        get_metric(lambda logits, clean, answers: logits[:, 0])


def test_an_empty_answer_set_is_refused_where_it_is_read():
    """The side is named; a divergence reads no answers."""
    model, names = twins.load("gpt2"), ("logit_diff", "logit_diff_sum", "prob_diff", "accuracy")
    full = twins.RAGGED[0]
    for side, empty in (
        ("incorrect", replace(full, incorrect=())),
        ("correct", replace(full, correct=())),
    ):
        dataset = dataset_of([full, empty])
        for name in names:
            with pytest.raises(eap.UserError, match=f"example 1 has no {side} answer.*{name}"):
                eap.evaluate_baselines(model, dataset, metrics=[name])
        clean, _ = eap.evaluate_baselines(model, dataset, metrics=["kl", "js"])
        assert clean["kl"].tolist() == clean["js"].tolist() == [0.0, 0.0]
        assert eap.attribute(model, dataset, metric="kl", steps=2).scores.abs().max() > 0
    with pytest.raises(eap.UserError, match="neither a correct nor an incorrect answer"):
        eap.attribute(model, dataset_of([replace(full, correct=(), incorrect=())]))


@pytest.mark.parametrize("field", ["clean", "corrupted", "correct", "incorrect"])
def test_a_token_id_below_0_is_refused(field):
    tokens = (*getattr(twins.RAGGED[0], field)[:-1], -1)
    dataset = dataset_of([replace(twins.RAGGED[0], **{field: tokens})])
    with pytest.raises(eap.UserError, match=r"example 0 has token -1; token ids begin at 0"):
        eap.evaluate_baselines(twins.load("gpt2"), dataset)


@pytest.mark.parametrize(
    "labels",
    [
        pd.Series(LABELS, index=[6, 0, 5, 1, 4, 2, 3]),
        pd.Series(LABELS, index=range(10, 17)),
        pd.Series(LABELS, index=list("abcdefg")),
        pd.DataFrame({"correct_idx": LABELS}).sample(frac=1, random_state=0).sort_values(
            "correct_idx", key=lambda column: column.map(LABELS.index)
        )["correct_idx"],
        pd.Index(LABELS),
        np.array(LABELS),
        tuple(LABELS),
        range(7),
    ],
    ids=["shuffled", "offset", "named", "sampled", "index", "array", "tuple", "range"],
)  # fmt: skip
def test_labels_go_by_position(labels):
    metric = eap.from_sequence_metric("own", label_logit, labels, higher_is_better=True)
    plain = eap.from_sequence_metric(
        "own", label_logit, [int(label) for label in labels], higher_is_better=True
    )
    model, dataset = twins.load("gpt2"), dataset_of(twins.RAGGED)
    values, expected = (
        eap.evaluate_baselines(model, dataset, metrics=[own], batch_size=2)[1]["own"]
        for own in (metric, plain)
    )
    assert torch.equal(values, expected)


@pytest.mark.parametrize(
    "labels",
    [
        dict(enumerate(LABELS)),
        set(LABELS),
        "3947566",
        3,
        None,
        torch.tensor(3),
        np.array(3),
        pd.DataFrame({"a": LABELS}),
    ],
)
def test_labels_without_an_order_are_refused(labels):
    with pytest.raises(eap.UserError, match="one entry per example is needed, in order"):
        eap.from_sequence_metric("own", label_logit, labels, higher_is_better=True)


@pytest.mark.parametrize("n", [0, 6, 8])
def test_labels_of_another_number_are_refused(n):
    metric = eap.from_sequence_metric("own", label_logit, [0] * n, higher_is_better=True)
    model, dataset = twins.load("gpt2"), dataset_of(twins.RAGGED)
    for verb in (
        lambda: eap.evaluate_baselines(model, dataset, metrics=[metric]),
        lambda: eap.attribute(model, dataset, metric=metric),
        lambda: eap.patch_edges(model, dataset, metrics=[metric]),
    ):
        with pytest.raises(eap.UserError, match=f"'own' has {n} labels for 7 examples"):
            verb()


ELSEWHERE = {
    "the one before": lambda x, c, n, y: x[torch.arange(len(x)), n - 2, 0],
    "three before": lambda x, c, n, y: x[torch.arange(len(x)), n - 4, 0],
    "twenty before": lambda x, c, n, y: x[torch.arange(len(x)), n - 21, 0],
    "the first": lambda x, c, n, y: x[:, 0, 1],
    "the mean": lambda x, c, n, y: x.mean(1)[:, 2],
    "the sum": lambda x, c, n, y: x[:, :, 2].sum(1),
    "the largest": lambda x, c, n, y: x[:, :, 2].amax(1),
    "of the clean run": lambda x, c, n, y: x[:, -1, 0] - c[:, 0, 0],
    "mean log-likelihood": lambda x, c, n, y: x.log_softmax(-1)[:, :, 0].mean(1),
    "top token": lambda x, c, n, y: x[:, 0].argmax(-1) == c[:, -1].argmax(-1),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_metric_that_reads_another_position_is_refused(name):
    metric = eap.from_sequence_metric(name, ELSEWHERE[name], [0] * 7, higher_is_better=True)
    model, dataset = twins.load("gpt2"), dataset_of(twins.RAGGED)
    for verb in (
        lambda: eap.evaluate_baselines(model, dataset, metrics=[metric]),
        lambda: eap.patch_edges(model, dataset, metrics=[metric]),
    ):
        with pytest.raises(eap.UserError, match="reads logits at other positions"):
            verb()


@pytest.mark.parametrize(
    "function",
    [
        lambda x, c, n, y: x[:, -1, 0],
        lambda x, c, n, y: x[torch.arange(len(x)), n - 1].softmax(-1)[:, 0],
        lambda x, c, n, y: x.log_softmax(-1)[torch.arange(len(x)), n - 1, 0],
        lambda x, c, n, y: x.gather(1, (n - 1)[:, None, None].expand(-1, 1, x.shape[2]))[:, 0, 1],
        lambda x, c, n, y: x[:, -1].argmax(-1) == c[:, -1].argmax(-1),
    ],
)
def test_the_ways_of_reading_the_last_position_are_accepted(function):
    metric = eap.from_sequence_metric("own", function, [0] * 7, higher_is_better=True)
    model, dataset = twins.load("gpt2"), dataset_of(twins.RAGGED)
    assert eap.evaluate_baselines(model, dataset, metrics=[metric])[0]["own"].isfinite().all()


def test_attribution_turns_gradients_on_where_a_notebook_turned_them_off():
    model, dataset = twins.load("gpt2"), dataset_of(twins.RAGGED)
    expected = eap.attribute(model, dataset, steps=2).scores
    with torch.no_grad():
        assert torch.equal(eap.attribute(model, dataset, steps=2).scores, expected)
        assert not torch.is_grad_enabled()
    torch.set_grad_enabled(False)
    try:
        assert torch.equal(eap.attribute(model, dataset, steps=2).scores, expected)
    finally:
        torch.set_grad_enabled(True)


# ---- what a function may not do ------------------------------------------------------------------


def bans(logits, clean, answers):
    logits[:, 0] = -1e9
    return logits.logsumexp(-1)


def bans_in_clean(logits, clean, answers):
    clean[:, 0] = -1e9
    return logits.logsumexp(-1) - clean.logsumexp(-1)


def empties_answers(logits, clean, answers):
    answers.correct.zero_()
    return logits[:, 0]


@pytest.mark.parametrize(
    ("function", "what"),
    [(bans, "logits"), (bans_in_clean, "(clean_)?logits"), (empties_answers, "answers.correct")],
)
def test_a_metric_that_writes_into_what_others_read_is_refused(function, what):
    model, dataset = twins.load("gpt2"), dataset_of(twins.RAGGED)
    metric, graph = eap.Metric("writes", function), eap.Graph.from_model(model)
    for call in (
        lambda: eap.evaluate(model, graph, dataset, metrics=["kl", metric]),
        lambda: eap.evaluate_baselines(model, dataset, metrics=[metric, "kl"]),
        lambda: eap.patch_edges(model, dataset, metrics=[metric]),
        lambda: eap.attribute(model, dataset, metric=metric),
    ):
        with pytest.raises(eap.UserError, match=f"'writes' writes into {what}, "):
            call()


@pytest.mark.parametrize("method", ["EAP", "EAP-IG", "CEAP", "GIM", "AtP*-GradDrop"])
@pytest.mark.parametrize("batch_size", [None, 1])
def test_a_gradient_that_is_no_number_names_its_example(method, batch_size):
    def root_at_zero(logits, clean, answers):
        values = logits[:, 0]
        wrong = torch.tensor([row == 2 for row in answers.rows])
        return (
            torch.where(wrong, 1.0, 0.0)
            * (values - values.detach()).clamp(min=0).add(torch.where(wrong, 0.0, 1.0)).sqrt()
            + values
        )

    model, dataset = twins.load("gpt2"), dataset_of(twins.RAGGED)
    metric = eap.Metric("root", root_at_zero)
    assert eap.evaluate_baselines(model, dataset, metrics=[metric])[0]["root"].isfinite().all()
    with pytest.raises(eap.UserError, match=r"gradient of metric 'root' is .* on example 2, "):
        eap.attribute(model, dataset, method=method, metric=metric, batch_size=batch_size)
    if method in ("EAP", "EAP-IG"):
        options = {"method": method, "metric": metric, "batch_size": batch_size}
        for call in (
            lambda: eap.part_scores(model, dataset, **options),
            lambda: eap.unit_edges(model, dataset, "m0", **options),
        ):
            with pytest.raises(eap.UserError, match=r"is .* on example 2, "):
                call()

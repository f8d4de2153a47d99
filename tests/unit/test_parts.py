"""Scores of parts equal their autograd twin, and sum to the scores of their senders."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache

import pandas as pd
import pytest
import torch
from models.tiny import FAMILIES, random_examples
from reference import part_twins, twins
from reference.oracle import float64, metric_of
from reference.twins import assert_close, dataset_of, steps_of

import eap
from eap.parts.basis import PARTS

EXAMPLES = random_examples([5, 3, 6], [2, 0, 3], seed=5)
DATA = dataset_of(EXAMPLES)
LINEAR = (
    "EAP",
    "EAP-IG",
    "clean-corrupted",
    "CEAP",
    "RelP",
    "AttnLRP",
    "GIM",
    "EAP-IG-activations",
)
OPTIONS = {"metric": "logit_diff", "steps": 2, "batch_size": 2}


@lru_cache(maxsize=64)
def mean_of(family):
    return eap.Mean.over_dataset(twins.load(family, torch.float64), DATA)


def node_scores(family, **options):
    model = twins.load(family, torch.float64)
    graph = eap.attribute(model, DATA, level="node", **options)
    return dict(zip(graph.sender_names, graph.node_scores, strict=True))


def assert_parts_sum_to_their_senders(family, method, ablation, *, kinds=tuple(PARTS)):
    model = twins.load(family, torch.float64)
    with twins.precision(family, torch.float64):
        ablation = mean_of(family) if ablation == "mean" else ablation
        options = {"metric": "logit_diff", "batch_size": 2, **steps_of(method, 2)}
        options |= {"method": method, "ablation": ablation}
        nodes = node_scores(family, **options)
        largest = max(abs(float(score)) for score in nodes.values())
        for parts in kinds:
            scores = eap.part_scores(model, DATA, parts=parts, **options)
            for sender, total in scores.node_scores.items():
                assert abs(float(total - nodes[sender])) <= 1e-9 * largest
                # Biases of the MLP are in its output: a zero ablation takes them, too.
                if ablation != "zero" or parts != "hidden units":
                    assert abs(float(scores.of_sender(sender)[-1])) <= 1e-9 * largest


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_sum_to_their_sender_in_every_family(family):
    assert_parts_sum_to_their_senders(family, "EAP-IG", "resample")


@pytest.mark.parametrize("method", LINEAR)
@pytest.mark.parametrize("family", ["neox", "gemma2"])
def test_parts_sum_to_their_sender_by_every_linear_method(family, method):
    assert_parts_sum_to_their_senders(family, method, "resample", kinds=["hidden units"])


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_parts_sum_to_their_sender_by_other_ablations(family):
    for ablation in ("zero", "mean"):
        assert_parts_sum_to_their_senders(family, "EAP", ablation)


@lru_cache(maxsize=64)
def twin_scores(family, kind):
    """EAP-IG of two points, as one row a layer."""
    model = twins.hf_model(family)
    with float64():
        by_example = [
            part_twins.part_scores(
                model, own.clean, own.corrupted,
                metric_of("logit_diff", own.correct, own.incorrect), (0.5, 1.0), (0.5, 0.5), kind,
            )
            for own in EXAMPLES
        ]  # fmt: skip
    return torch.stack([torch.stack(layers) for layers in by_example])


@pytest.mark.parametrize("kind", ["hidden units", "channels"])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_a_leaf_for_every_unit(family, kind):
    expected = twin_scores(family, kind)
    for dtype in twins.DTYPES:
        model = twins.load(family, dtype)
        with twins.precision(family, dtype):
            scores = eap.part_scores(model, DATA, parts=kind, **OPTIONS)
        found = torch.cat([scores.of_sender(name)[:-1] for name in scores.layout.names])
        assert_close(found, expected.mean(0).flatten(), twins.RELATIVE[dtype])
        rows = [scores.layout.of_sender(name) for name in scores.layout.names]
        errors = torch.cat([scores.standard_errors[own][:-1] for own in rows])
        assert_close(errors, expected.std(0).flatten() / len(EXAMPLES) ** 0.5, 1e-5)


@pytest.mark.parametrize("expanded", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "neox", "llama", "gemma2"])
def test_scores_to_chosen_receivers_sum_to_edges(family, expanded):
    model = twins.load(family, torch.float64)
    with twins.precision(family, torch.float64):
        graph = eap.attribute(model, DATA, expanded_kv=expanded, **OPTIONS)
        receivers = [name for name in graph.receiver_names if name[1] in "1o"]  # layer 1, logits
        for parts in ("hidden units", "coordinates"):
            scores = eap.part_scores(
                model, DATA, parts=parts, receivers=receivers, expanded_kv=expanded, **OPTIONS
            )
            assert scores.scores.shape == (len(scores), len(receivers))
            for sender, totals in scores.node_scores.items():
                row = graph.sender_names.index(sender)
                columns = [graph.receiver_names.index(name) for name in receivers]
                assert_close(totals, graph.scores[row, columns], 1e-9, at_least=1e-3)


def test_only_chosen_senders_are_split():
    model = twins.load("gpt2", torch.float64)
    whole = eap.part_scores(model, DATA, parts="channels", **OPTIONS)
    some = eap.part_scores(model, DATA, parts="channels", senders=["a1.h2", "a0.h1"], **OPTIONS)
    assert some.layout.names == ("a0.h1", "a1.h2")
    assert torch.equal(some.of_sender("a1.h2"), whole.of_sender("a1.h2"))
    assert len(some) == 2 * (4 + 1)
    assert some.name(0) == "a0.h1.c0"
    assert some.name(9) == "a1.h2.rest"


def test_tables_and_rankings():
    model = twins.load("llama")
    scores = eap.part_scores(model, DATA, **OPTIONS)
    frame = scores.to_frame()
    assert list(frame.columns) == ["sender", "part", "score", "standard_error"]
    assert len(frame) == len(scores) == 2 * (24 + 1)
    assert frame.groupby("sender").score.sum()["m1"] == pytest.approx(
        float(scores.node_scores["m1"]), rel=1e-5
    )
    top = scores.top_n(5)
    assert (top.score.abs().diff().dropna() <= 0).all()
    assert scores.top_n(1, by="helpful").score.item() == frame.score.min()  # logit_diff: high
    assert scores.top_n(1, by="harmful").score.item() == frame.score.max()
    kept = scores.keep(7)
    assert sum(int(mask.sum()) for mask in kept.values()) == 7
    to_logits = eap.part_scores(model, DATA, receivers=["logits", "m1"], **OPTIONS)
    assert list(to_logits.to_frame().columns)[2] == "receiver"
    assert len(to_logits.to_frame()) == 2 * len(scores)
    with pytest.raises(eap.UserError, match="leave receivers= out"):
        to_logits.top_n(3)


def test_batches_do_not_change_scores():
    model = twins.load("gemma2", torch.float64)
    with twins.precision("gemma2", torch.float64):
        ones, all_at_once = (
            eap.part_scores(model, DATA, metric="logit_diff", batch_size=n) for n in (1, 3)
        )
    assert_close(ones.scores, all_at_once.scores, 1e-12)


class Two:
    """Two directions of the residual stream, and what is left of the sender."""

    kind, rest = "two directions", "others"

    def __init__(self, names=("first", "second")):
        self.names = names

    def count(self, model, sender):
        return 2 if sender == 0 else 0

    def name(self, number):
        return self.names[number]

    def coefficients(self, model, run):
        return run.output[..., :2]

    def directions(self, model, sender):
        return torch.eye(2, model.config.d_model, dtype=model.residual_dtype)


def test_a_basis_of_ones_own():
    model = twins.load("gpt2", torch.float64)
    two = eap.part_scores(model, DATA, parts=Two(), **OPTIONS)
    each = eap.part_scores(model, DATA, parts="coordinates", senders=["input"], **OPTIONS)
    assert_close(two.scores[:2], each.scores[:2], 1e-12)
    assert_close(two.scores.sum(), each.scores.sum(), 1e-12)
    assert list(two.to_frame().part) == ["input.first", "input.second", "input.others"]


@pytest.mark.parametrize(
    "names", [("first", "second"), ("l0f0", "l0f1"), ("l0.f0", "l0.f1"), ("1", "0")]
)
def test_parts_of_a_basis_of_ones_own_are_found_by_their_names(names):
    model = twins.load("gpt2", torch.float64)
    full = [f"input.{name}" for name in names]
    found = eap.part_activity(model, DATA, full, parts=Two(names), n=3)
    expected = eap.part_activity(model, DATA, ["input.d0", "input.d1"], parts="coordinates", n=3)
    assert found.coefficient.equals(expected.coefficient)
    with pytest.raises(eap.UserError, match="no part 'input"):
        eap.part_activity(model, DATA, ["input.l0f7"], parts=Two(names))


@pytest.mark.parametrize("parts", ["hidden units", "channels", "coordinates"])
def test_where_a_part_is_active(parts):
    model = twins.load("gpt2", torch.float64)
    names = {"hidden units": "m1.u3", "channels": "a1.h2.c1", "coordinates": "a0.h1.d5"}
    frame = eap.part_activity(model, DATA, [names[parts]], parts=parts, n=40, batch_size=2)
    assert len(frame) == sum(len(example.clean) for example in EXAMPLES)
    assert (frame.coefficient.abs().diff().dropna() <= 0).all()
    few = eap.part_activity(model, DATA, [names[parts]], parts=parts, n=3, batch_size=1)
    pd.testing.assert_frame_equal(few, frame.head(3))
    for row in few.itertuples():
        token = EXAMPLES[row.example].clean[row.position]
        assert row.token == model.tokenizer.decode([token])


@pytest.mark.parametrize("method", ["EAP", "EAP-IG", "EAP-IG-activations", "CEAP"])
def test_pairs_of_equal_prompts_score_exactly_zero(method):
    equal = [replace(example, corrupted=example.clean) for example in EXAMPLES]
    for parts in ("hidden units", "channels", "coordinates"):
        scores = eap.part_scores(
            twins.load("llama"),
            dataset_of(equal),
            parts=parts,
            method=method,
            **steps_of(method, 2),
        )
        assert not scores.scores.any()


def test_neurons_are_of_all_senders():
    model = twins.load("gpt2")
    some = eap.part_scores(model, DATA, parts="coordinates", senders=["m0"], method="EAP")
    with pytest.raises(eap.UserError, match="coordinates of all senders"):
        _ = some.by_coordinate


@pytest.mark.parametrize("n", [-1, 10**6, True, 0.5, "3"])
def test_numbers_of_parts_that_there_are_not_are_refused(n):
    scores = eap.part_scores(twins.load("gpt2"), DATA, method="EAP")
    with pytest.raises(eap.UserError, match=f"from 0 to {len(scores)}"):
        scores.keep(n)


def test_a_mean_over_another_models_activations_is_refused():
    mean = eap.Mean.over_dataset(twins.load("llama"), DATA)
    with pytest.raises(eap.UserError, match="compute it again with this model"):
        eap.part_scores(twins.load("gpt2"), DATA, method="EAP", ablation=mean)


class Silent(eap.Resample):
    """An ablation of an earlier version: it says nothing of parts."""

    coefficients = None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": "neurons"}, "unknown parts 'neurons'; known are hidden units"),
        ({"senders": ["m7"]}, "no sender 'm7'"),
        ({"senders": ["a0.h0"]}, "a0.h0 has no hidden units"),
        ({"receivers": ["m9"]}, "no receiver 'm9'"),
        ({"receivers": "logits"}, "receivers is 'logits'; it must be None or a list"),
        ({"receivers": []}, "receivers is empty"),
        ({"receivers": ["logits", "m1", "logits"]}, "receivers has 'logits' twice"),
        ({"senders": ["m0", "m0"]}, "senders has 'm0' twice"),
        ({"method": "exact"}, "exact are not linear"),
        ({"method": "AtP*-QK"}, "AtP*-QK are not linear"),
        ({"method": "IFR"}, "IFR are not linear"),
        ({"metric": "accuracy"}, "no gradient"),
        ({"method": "EAP", "metric": "kl"}, "zero at the clean input"),
        ({"steps": "auto"}, "steps is 'auto'; it must be a whole number"),
        ({"method": "EAP", "steps": 5}, "EAP does not integrate; leave steps=5 out"),
        ({"steps": 0}, "steps is 0; it must be a whole number from 1"),
        ({"ablation": Silent()}, "does not say what parts carry"),
        ({"ablation": eap.Mean(torch.zeros(11, 1, 16), {})}, "made by eap.Mean.over_dataset"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(options, message):
    with pytest.raises(eap.UserError, match=re.escape(message)) as error:
        eap.part_scores(twins.load("gpt2"), DATA, **options)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("name", ["m0", "m9.u1", "m0.u99", "m0.c1", "u1", "", "m0.u", "m0.u-1"])
def test_unknown_parts_are_refused(name):
    with pytest.raises(eap.UserError, match="no part"):
        eap.part_activity(twins.load("gpt2"), DATA, [name])

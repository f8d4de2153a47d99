"""Attention patterns are those of the Hugging Face model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from models.tiny import FAMILIES
from reference import oracle, twins

import eap
from eap.data.collections import known_circuits

EXAMPLES = twins.RAGGED[:3]


@pytest.mark.parametrize("prompt", ["clean", "corrupted"])
@pytest.mark.parametrize("family", FAMILIES)
def test_patterns_are_those_of_the_library(family, prompt):
    hf, model = twins.hf_model(family), twins.load(family)
    dataset = twins.dataset_of(twins.RAGGED)
    patterns = eap.attention_patterns(model, dataset, n_examples=3, prompt=prompt)
    assert len(patterns) == model.config.n_layers * model.config.n_heads
    for number, example in enumerate(EXAMPLES):
        tokens = torch.tensor([getattr(example, prompt)])
        expected = hf(tokens, output_attentions=True).attentions
        for layer, of_layer in enumerate(expected):
            for head, weights in enumerate(of_layer[0]):
                texts, found = patterns[f"a{layer}.h{head}"][number]
                assert len(texts) == len(example.clean)
                np.testing.assert_allclose(found, weights.numpy(), atol=2e-5)
                np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)


def test_heads_are_chosen_and_others_refused():
    model, dataset = twins.load("gpt2"), twins.dataset_of(twins.RAGGED)
    patterns = eap.attention_patterns(model, dataset, heads=["a1.h2"], n_examples=1)
    assert list(patterns) == ["a1.h2"]
    assert len(patterns["a1.h2"]) == 1
    for options, message in (
        ({"heads": ["m0"]}, "no head 'm0'"),
        ({"n_examples": 0}, "n_examples is 0; it must be a whole number from 1"),
        ({"prompt": "both"}, "'clean' or 'corrupted'"),
    ):
        with pytest.raises(eap.UserError, match=message):
            eap.attention_patterns(model, dataset, **options)


# ---- why a head looks there ----------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["clean", "corrupted", "difference"])
@pytest.mark.parametrize("family", FAMILIES)
def test_terms_sum_to_the_logit(family, prompt):
    """Differences of logits between keys are those of the logs of the library's pattern."""
    hf, model = twins.hf_model(family), twins.load(family, torch.float64)
    dataset, query = twins.dataset_of(twins.RAGGED), 4
    prompts, signs = ["clean", "corrupted"], (1, -1)
    if prompt != "difference":
        prompts, signs = [prompt], (1,)
    tokens = [torch.tensor([getattr(EXAMPLES[1], one)]) for one in prompts]
    with twins.precision(family, torch.float64):
        expected = [hf(own, output_attentions=True).attentions for own in tokens]
        for layer in range(model.config.n_layers):
            for head in (0, model.config.n_heads - 1):
                keys = [query - 2, query]
                found = [
                    eap.attention.logit_terms(
                        model, dataset, f"a{layer}.h{head}",
                        query=query, key=key, example=1, prompt=prompt,
                    )
                    for key in keys
                ]  # fmt: skip
                n = model.config.n_forward + 1
                assert all(own.terms.shape == (n, n) for own in found)
                if prompt == "difference" and found[0].softcap is not None:
                    continue  # capped logits have no sum of terms
                cap = found[0].softcap
                first, second = (
                    own.logit if cap is None else cap * np.tanh(own.logit / cap) for own in found
                )
                patterns = [own[layer][0, head, query].log() for own in expected]
                wanted = sum(
                    sign * float(own[keys[0]] - own[keys[1]])
                    for sign, own in zip(signs, patterns, strict=True)
                )
                assert first - second == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_terms_are_of_senders_before_the_layer(family):
    model, dataset = twins.load(family, torch.float64), twins.dataset_of(twins.RAGGED)
    with twins.precision(family, torch.float64):
        terms = eap.attention.logit_terms(model, dataset, "a1.h1", query=3, key=1)
    config = model.config
    before = config.senders_before(1, "attention")
    assert (terms.terms[before:-1] == 0).all()
    assert (terms.terms[:, before:-1] == 0).all()
    assert (terms.terms[:before, :before] != 0).all()
    assert terms.by_query.sum() == pytest.approx(terms.logit)
    assert terms.by_key.sum() == pytest.approx(terms.logit)
    frame = terms.to_frame(3)
    assert (frame.term.abs().diff().dropna() <= 0).all()
    assert terms.to_frame().term.sum() == pytest.approx(terms.logit)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_head_moves_sums_to_its_result(family):
    model, dataset = twins.load(family, torch.float64), twins.dataset_of(twins.RAGGED)
    example = EXAMPLES[1]
    with twins.precision(family, torch.float64):
        moved = eap.attention.head_result(model, dataset, "a1.h2", query=5, example=1)
        last = eap.attention.head_result(model, dataset, "a1.h2", example=1)
        sent = oracle.sender_outputs(twins.hf_model(family), example.clean)
    result = sent[model.config.sender_names.index("a1.h2")]
    twins.assert_close(moved.moved.sum((0, 1)), result[5], 1e-9)
    assert (moved.moved[6:] == 0).all()
    twins.assert_close(moved.by_answers, moved.moved @ moved.direction, 1e-9)
    assert last.to_frame().answers.sum() == pytest.approx(float(result[-1] @ last.direction))


def test_the_answers_direction_is_the_final_norms_gradient_at_a_frozen_scale():
    model, dataset = twins.load("gpt2", torch.float64), twins.dataset_of(twins.RAGGED)
    example = EXAMPLES[1]
    moved = eap.attention.head_result(model, dataset, "a1.h0", example=1)
    hf = twins.hf_model("gpt2")
    stream = []
    handle = hf.transformer.ln_f.register_forward_pre_hook(lambda _, args: stream.append(args[0]))
    logits = hf(torch.tensor([example.clean])).logits[0, -1]
    handle.remove()
    difference = logits[list(example.correct)].mean() - logits[list(example.incorrect)].mean()
    W = hf.lm_head.weight
    along = W[list(example.correct)].mean(0) - W[list(example.incorrect)].mean(0)
    bias = along @ hf.transformer.ln_f.bias
    x = stream[0][0, -1]
    assert float(x @ moved.direction + bias) == pytest.approx(float(difference), abs=1e-9)


def test_without_incorrect_answers_the_direction_is_that_of_the_correct_ones():
    known = known_circuits.load("induction")
    pair = known.dataset.examples[0]
    alone = eap.Dataset("mine", (replace(pair, incorrect=()),))
    both, correct, incorrect = (
        eap.attention.head_result(known.model, data, "a1.h0").direction
        for data in (
            known.dataset,
            alone,
            eap.Dataset("mine", (replace(pair, correct=pair.incorrect, incorrect=()),)),
        )
    )
    assert both.isfinite().all()
    torch.testing.assert_close(correct - incorrect, both)


def test_the_induction_head_looks_for_the_previous_token_heads_output():
    circuit = known_circuits.load("induction", dtype=torch.float64)
    assert "a0.h0->a1.h0<k>" in circuit.circuit.edge_names()
    for example in range(len(circuit.dataset)):
        terms = eap.attention.logit_terms(circuit.model, circuit.dataset, "a1.h0", example=example)
        assert terms.by_key.idxmax() == "a0.h0"
        assert terms.by_query.idxmax() == "input"
        assert terms.terms[0, 1] == pytest.approx(terms.logit)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "m0"}, "no head 'm0'"),
        ({"head": "input"}, "no head 'input'"),
        ({"query": 99}, "query is 99; it must be a whole number from -4 to 3"),
        ({"query": True}, "query is True"),
        ({"query": 0.5}, "query is 0.5"),
        ({"key": -9}, "key is -9; it must be a whole number from -4 to 3"),
        ({"query": 0, "key": 2}, "does not see position 2 from 0"),
        ({"example": 99}, "example is 99; it must be a whole number from 0 to 6"),
        ({"example": -1}, "example is -1"),
        ({"prompt": "both"}, "'clean' or 'corrupted' or 'difference'"),
    ],
)
def test_logits_that_there_are_not_are_refused(options, message):
    model, dataset = twins.load("gpt2"), twins.dataset_of(twins.RAGGED)
    with pytest.raises(eap.UserError, match=message):
        eap.attention.logit_terms(model, dataset, **{"head": "a0.h0", **options})


def test_reasons_for_the_page_are_the_terms_and_the_result():
    model, data = twins.load("llama", torch.float64), twins.dataset_of(EXAMPLES)
    with twins.precision("llama", torch.float64):
        reasons = eap.attention.head_reasons(model, data, heads=["a1.h0"], n_examples=2)["a1.h0"]
        assert len(reasons) == 2
        for example, why in enumerate(reasons):
            terms = eap.attention.logit_terms(model, data, "a1.h0", example=example)
            moved = eap.attention.head_result(model, data, "a1.h0", example=example)
            assert (why.query, why.key) == (terms.query, terms.key)
            assert why.logit == pytest.approx(terms.logit)
            assert why.pairs.equals(terms.to_frame(len(why.pairs)))
            assert why.by_key.equals(terms.by_key[why.by_key.index])
            assert why.by_key.abs().max() == terms.by_key.abs().max()
            assert why.moved == pytest.approx(float(moved.by_answers.sum()))
            pattern = eap.attention_patterns(model, data, heads=["a1.h0"])["a1.h0"][example][1]
            assert np.allclose(why.weights, pattern)

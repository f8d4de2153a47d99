"""Attention patterns are those of the Hugging Face model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models.tiny import FAMILIES
from reference import twins

import eap

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
        ({"n_examples": 0}, "at least 1"),
        ({"prompt": "both"}, "'clean' or 'corrupted'"),
    ):
        with pytest.raises(eap.UserError, match=message):
            eap.attention_patterns(model, dataset, **options)

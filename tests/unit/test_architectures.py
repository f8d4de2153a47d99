"""Which architectures are run, and that others are refused."""

from __future__ import annotations

import contextlib

import pytest
import torch
import transformers
from models.directories import edit_config, refusal, save
from models.tiny import (
    D_VOCAB,
    bridge_of,
    tiny_bridge,
    tiny_hf,
)
from reference.twins import assert_close

import eap
from eap.model.families import FAMILIES as PACKAGE_FAMILIES
from eap.model.runs import run_tokens

_SIZES = {"vocab_size": D_VOCAB, "hidden_size": 16, "intermediate_size": 24}
_SIZES |= {"num_hidden_layers": 2, "num_attention_heads": 4}
UNSUPPORTED = {
    "BloomForCausalLM": ("BloomConfig", {"vocab_size": 50, "hidden_size": 16, "n_head": 4}),
    "Olmo2ForCausalLM": ("Olmo2Config", _SIZES),
    "MixtralForCausalLM": ("MixtralConfig", {**_SIZES, "num_key_value_heads": 4}),
    "BertForMaskedLM": ("BertConfig", _SIZES),
}


@pytest.mark.parametrize("architecture", UNSUPPORTED)
def test_an_unsupported_architecture_is_refused_with_those_that_are(architecture, tmp_path):
    config_class, arguments = UNSUPPORTED[architecture]
    config = getattr(transformers, config_class)(**arguments)
    hf = getattr(transformers, architecture)(config)
    message = refusal(save(hf, tmp_path / "model"))
    assert architecture in message
    assert len(message) <= 400
    for supported in PACKAGE_FAMILIES.values():
        assert supported.label in message


def test_an_unknown_architecture_is_refused_with_those_that_are(tmp_path):
    path = save(tiny_hf("gpt2"), tmp_path / "model")
    edit_config(path, architectures=["SecretForCausalLM"])
    message = refusal(path)
    assert "SecretForCausalLM" in message
    assert "GPT-2" in message


@pytest.mark.parametrize(
    ("family", "setting"),
    [
        ("opt", {"do_layer_norm_before": False}),
        ("opt", {"word_embed_proj_dim": 8}),
        ("opt", {"_remove_final_layer_norm": True}),
    ],
)
def test_a_setting_that_the_engine_lacks_is_refused_by_name(family, setting, tmp_path):
    message = refusal(save(tiny_hf(family, **setting), tmp_path / "model"))
    assert "not supported" in message


def test_a_setting_that_the_engine_lacks_is_refused(tmp_path):
    refusal(save(tiny_hf("phi", qk_layernorm=True), tmp_path / "model"))


def test_a_setting_that_the_bridge_lacks_is_computed(tmp_path):
    """The engine is compared with Hugging Face's model, which the bridge is not here."""
    hf = tiny_hf("gpt2", scale_attn_weights=False)
    tokens = torch.arange(18).reshape(2, 9)
    expected = hf(tokens).logits[:, -1]
    for model in (hf, str(save(hf, tmp_path / "model"))):
        assert_close(run_tokens(eap.load_model(model, device="cpu"), tokens), expected, 1e-5)


def test_a_model_that_computes_something_else_is_refused():
    """Its weights read well, but its own forward pass has another activation."""
    bridge = tiny_bridge("gpt2")
    bridge.original_model.config.activation_function = "relu"
    with pytest.raises(eap.UserError, match="differ from the bridge's"):
        eap.from_bridge(bridge)


def test_weights_that_are_not_numbers_are_refused():
    hf = tiny_hf("gpt2")
    hf.transformer.wte.weight[7] = torch.nan
    hf.transformer.wpe.weight[:] = torch.nan
    with pytest.raises(eap.UserError):
        eap.from_bridge(bridge_of(hf))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_model_that_the_bridge_cannot_run_is_refused_or_works(dtype, tmp_path):
    path = save(tiny_hf("olmo"), tmp_path / "model")
    with contextlib.suppress(eap.UserError):
        eap.load_model(str(path), device="cpu", dtype=dtype)

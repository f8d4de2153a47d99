"""Loading: what works in every family and precision, and what is refused with one clear line."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from models.directories import edit_config, refusal, save
from models.tiny import (
    D_VOCAB,
    FAMILIES,
    GROUPED_FAMILIES,
    MAX_POSITIONS,
    PARALLEL_FAMILIES,
    bridge_of,
    random_examples,
    tiny_bridge,
    tiny_hf,
)
from reference import twins
from reference.oracle import attribution_scores, float64, metric_of
from reference.twins import assert_close, dataset_of

import eap
from eap.model.loading import find_device, find_dtype

# ---- what works ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_directory_is_loaded_and_computes_what_hugging_face_does(family, tmp_path):
    hf = tiny_hf(family)
    model = eap.load_model(str(save(hf, tmp_path / "model")), device="cpu")
    found = eap.attribute(model, dataset_of(twins.RAGGED), method="EAP")
    expected = eap.attribute(twins.load(family), dataset_of(twins.RAGGED), method="EAP")
    assert_close(found.scores, expected.scores, 1e-5)
    assert model.source["directory"] == "model"
    assert len(model.source["weights_sha256"]) == 64


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_the_shape_that_its_configuration_says(family):
    config = twins.load(family).config
    hf = twins.hf_model(family).config
    assert config.n_layers == 2
    assert config.n_heads == hf.num_attention_heads
    assert config.d_model == hf.hidden_size
    assert config.n_kv_heads == (2 if family in GROUPED_FAMILIES else config.n_heads)
    assert config.parallel_attn_mlp == (family in PARALLEL_FAMILIES)
    assert not config.expanded_kv


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads_in_every_precision(family, dtype, tmp_path):
    """Hugging Face computes parts in float32 whatever the weights, so float64 is no more exact."""
    if family.startswith("olmo") and dtype in ("bfloat16", "float16"):
        pytest.skip("the bridge does not run it")
    model = eap.load_model(str(save(tiny_hf(family), tmp_path)), device="cpu", dtype=dtype)
    assert model.dtype == getattr(torch, dtype)
    assert model.residual_dtype == (torch.float64 if dtype == "float64" else torch.float32)


def test_the_same_weights_have_the_same_hash_and_others_another(tmp_path):
    hashes = [
        eap.load_model(str(save(tiny_hf("gpt2", seed=seed), tmp_path / name))).source
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    a, b, c = (source["weights_sha256"] for source in hashes)
    assert a == b != c


def test_loading_freezes_the_weights_and_turns_dropout_off():
    hf = tiny_hf("gpt2", attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5).train()
    hf.requires_grad_(True)
    model = eap.from_bridge(bridge_of(hf))
    assert not model.bridge.original_model.training
    assert not any(p.requires_grad for p in model.bridge.original_model.parameters())
    assert not model.W_E.requires_grad


def test_a_model_says_what_it_is():
    model = eap.from_bridge(tiny_bridge("llama"), name="some/where/tiny-llama")
    assert model.short_name == "tiny-llama"
    assert "2 layers, 4 heads" in repr(model)


# What checkpoints of one family differ in.
VARIANTS = [
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    ("gpt2", {"activation_function": "relu", "layer_norm_epsilon": 1e-2, "n_inner": 20}),
    ("gpt2", {"tie_word_embeddings": False}),
    ("neox", {"rotary_pct": 1.0, "hidden_act": "gelu_new"}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"head_dim": 6, "tie_word_embeddings": True, "rms_norm_eps": 1e-2}),
    ("llama", {"num_key_value_heads": 1}),
    ("llama", {"num_key_value_heads": 4}),
    ("llama", {"hidden_act": "gelu_pytorch_tanh"}),
    (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8,
            }
        },
    ),
    ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0}}),
    ("mistral", {"sliding_window": None}),
    ("mistral", {"sliding_window": 1}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}),
    ("qwen3", {"attention_bias": True, "num_key_value_heads": 4}),
    ("smollm3", {"no_rope_layers": [0, 0]}),
    ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    ("gemma3", {"sliding_window": 2, "layer_types": ["full_attention", "sliding_attention"]}),
    ("gptj", {"rotary_dim": 8}),
    ("gptj", {"rotary_dim": 2, "activation_function": "gelu"}),
    ("phi", {"partial_rotary_factor": 1.0}),
    ("gpt_neo", {"attention_types": [[["global"], 2]], "intermediate_size": None}),
    ("gpt_neo", {"attention_types": [[["local", "global"], 1]], "window_size": 2}),
    ("opt", {"activation_function": "gelu"}),
    ("opt", {"enable_bias": False}),
    ("opt", {"layer_norm_elementwise_affine": False}),
]


@pytest.mark.parametrize(("family", "config"), VARIANTS, ids=lambda value: str(value)[:60])
def test_variants_within_a_family_equal_the_oracle(family, config):
    hf = tiny_hf(family, dtype=torch.float64, **config)
    with float64():
        model = eap.from_bridge(bridge_of(hf))
        found = eap.attribute(model, dataset_of(twins.RAGGED), method="EAP", metric="prob_diff")
        expected = [
            attribution_scores(
                hf,
                own.clean,
                own.corrupted,
                [metric_of("prob_diff", own.correct, own.incorrect)],
                [1.0],
                [1.0],
            )[0].nan_to_num(0.0)
            for own in twins.RAGGED
        ]
    assert_close(found.scores, torch.stack(expected).mean(0), 1e-9)


# ---- names and directories -----------------------------------------------------------------------


def test_an_unknown_hub_name_is_refused_by_name():
    assert "no-such-owner/no-such-model" in refusal("no-such-owner/no-such-model")


@pytest.mark.parametrize("name", ["./no-such-directory", "/no/such/directory", "~/no-such-dir"])
def test_a_directory_that_is_not_there_is_refused_by_name(name):
    assert "no model directory at" in refusal(name)


@pytest.mark.parametrize(
    ("patterns", "what"),
    [
        (["config.json"], "config.json"),
        (["*.safetensors"], "weights"),
        (["tokenizer*", "special_tokens*"], "tokenizer"),
    ],
)
def test_a_directory_that_lacks_a_file_is_refused_with_what_it_lacks(tmp_path, patterns, what):
    path = save(tiny_hf("gpt2"), tmp_path / "model")
    for pattern in patterns:
        for file in path.glob(pattern):
            file.unlink()
    message = refusal(path)
    assert what in message
    assert str(path) in message


def test_an_empty_directory_is_refused(tmp_path):
    assert "not a Hugging Face model directory" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", b"{not json"),
        ("config.json", b"{}"),
        ("model.safetensors", b"not weights"),
        ("model.safetensors", b""),
        ("tokenizer.json", b"{not json"),
    ],
)
def test_a_directory_with_a_broken_file_is_refused_by_name(tmp_path, file, content):
    path = save(tiny_hf("gpt2"), tmp_path / "model")
    (path / file).write_bytes(content)
    assert str(path) in refusal(path)


def test_truncated_weights_are_refused(tmp_path):
    path = save(tiny_hf("gpt2"), tmp_path / "model")
    weights = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert str(path) in refusal(path)


def test_weights_that_lack_a_layer_are_refused(tmp_path):
    """Hugging Face would make up random weights for it, with a warning."""
    path = save(tiny_hf("gpt2"), tmp_path / "model")
    edit_config(path, n_layer=3)
    assert str(path) in refusal(path)


def test_weights_are_not_made_up_where_logging_was_silenced(tmp_path):
    path = save(tiny_hf("gpt2"), tmp_path / "model")
    edit_config(path, n_layer=3)
    loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict]
    before = [(logger, logger.disabled) for logger in loggers]
    logging.disable(logging.CRITICAL)
    for logger in loggers:  # what `logging.config` does to loggers that are there already
        logger.disabled = True
    try:
        assert str(path) in refusal(path)
    finally:
        logging.disable(logging.NOTSET)
        for logger, disabled in before:
            logger.disabled = disabled


def test_weights_of_another_width_are_refused(tmp_path):
    path = save(tiny_hf("gpt2"), tmp_path / "model")
    edit_config(path, n_embd=32)
    assert str(path) in refusal(path)


# ---- devices and precisions ----------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cuda:99", "mps:7", "tpu", "", "gpu0", "xpu"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(device, tmp_path):
    with pytest.raises(eap.UserError, match="this machine has cpu") as error:
        find_device(device)
    assert repr(device) in str(error.value)
    assert "\n" not in str(error.value)


def test_the_device_is_looked_at_before_anything_is_loaded():
    assert "this machine has" in refusal("no-such-owner/no-such-model", device="cuda:99")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_device_map_computes_the_same(family, tmp_path):
    path = str(save(tiny_hf(family), tmp_path / "model"))
    dataset = dataset_of(twins.RAGGED)
    one = eap.load_model(path, device="cpu")
    several = eap.load_model(path, device_map={"": "cpu"})
    for run in (
        lambda model: eap.attribute(model, dataset).scores,
        lambda model: eap.patch_edges(model, dataset)["logit_diff"].scores,
        lambda model: eap.evaluate(model, eap.Graph.from_model(model), dataset)["logit_diff"],
    ):
        assert run(one).equal(run(several))


def test_several_processes_and_a_device_map_are_one_too_many(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "each of the 2 processes would place a whole model" in refusal("toy", device_map="auto")


def test_a_device_and_a_device_map_are_one_too_many():
    assert "not both" in refusal("toy", device_map="auto")


@pytest.mark.parametrize("dtype", ["int8", "fp16", "", "Tensor", torch.int32])
def test_a_precision_that_is_none_is_refused_with_those_that_are(dtype):
    with pytest.raises(eap.UserError, match="float32, float16, bfloat16"):
        find_dtype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", torch.float16, torch.float64])
def test_precisions_are_known_by_name_and_as_they_are(dtype):
    assert find_dtype(dtype).is_floating_point


# ---- prompts that do not fit the model -----------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "gpt_neo", "opt"])
def test_prompts_longer_than_the_position_table_are_refused(family):
    model = twins.load(family)
    fitting = dataset_of(random_examples([MAX_POSITIONS], [5]))
    eap.attribute(model, fitting)
    dataset = dataset_of(random_examples([5, MAX_POSITIONS + 1], [2, 5]))
    for run in (
        lambda: eap.attribute(model, dataset),
        lambda: eap.evaluate_baselines(model, dataset),
        lambda: eap.patch_edges(model, dataset),
    ):
        with pytest.raises(eap.UserError, match=str(MAX_POSITIONS)):
            run()


@pytest.mark.parametrize("where", ["clean", "corrupted", "correct", "incorrect"])
def test_tokens_that_the_weights_do_not_have_are_refused(where):
    """A tokenizer that does not match the model; D_VOCAB is the first token beyond its weights."""
    example = random_examples([5], [2])[0]
    tokens = getattr(example, where)
    changed = replace(example, **{where: (*tokens[:-1], D_VOCAB)})
    model, dataset = twins.load("llama"), dataset_of([example, changed])
    for run in (
        lambda: eap.attribute(model, dataset),
        lambda: eap.evaluate_baselines(model, dataset),
        lambda: eap.patch_edges(model, dataset),
    ):
        with pytest.raises(eap.UserError, match=f"{D_VOCAB}") as error:
            run()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"corrupted": (3, 4)},
        {"clean": (), "corrupted": ()},
        {"correct": ()},
        {"incorrect": ()},
    ],
    ids=str,
)
def test_examples_that_are_none_are_refused(changes):
    """Prompts of different length or without a token; an answer set without an answer."""
    good = random_examples([5], [2])[0]
    model, dataset = twins.load("gpt2"), dataset_of([good, replace(good, **changes)])
    for run in (
        lambda: eap.attribute(model, dataset),
        lambda: eap.evaluate_baselines(model, dataset),
        lambda: eap.patch_edges(model, dataset),
    ):
        with pytest.raises(eap.UserError) as error:
            run()
        assert "\n" not in str(error.value)

"""Directories as people have them: an adapter beside the weights, another configuration."""

from __future__ import annotations

import json
import logging
import threading

import pytest
import torch
from models.directories import edit_config, save
from models.tiny import tiny_hf
from reference.twins import assert_close
from safetensors.torch import load_file, save_file

import eap
from eap.model.runs import run_tokens

TOKENS = torch.arange(4, 22).reshape(2, 9)


def logits_of(model):
    with torch.no_grad():
        return model(TOKENS)[0][:, -1]


def refusal(call):
    with pytest.raises(eap.UserError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    assert len(message) <= 400
    return message


LAYER = "model.layers.0.self_attn.q_proj"


def add_adapter(path, layer=LAYER, rank=2, **settings):
    torch.manual_seed(5)
    A, B = torch.randn(rank, 16), torch.randn(16, rank)
    key = f"base_model.model.{layer}.lora_"
    save_file({f"{key}A.weight": A, f"{key}B.weight": B}, path / "adapter_model.safetensors")
    plain = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "bias": "none", "lora_dropout": 0.1}
    (path / "adapter_config.json").write_text(json.dumps({**plain, **settings}))
    return B @ A


@pytest.mark.parametrize(("settings", "scale"), [({}, 4.0), ({"use_rslora": True}, 8 / 2**0.5)])
def test_an_adapter_beside_the_weights_is_merged_and_said(settings, scale, tmp_path):
    hf = tiny_hf("llama")
    path = save(hf, tmp_path / "m")
    without = eap.load_model(path, device="cpu").source
    change = add_adapter(path, **settings)
    with pytest.warns(UserWarning, match="merged into the weights: the adapter"):
        loaded = eap.load_model(path, device="cpu")
    hf.model.layers[0].self_attn.q_proj.weight.data += scale * change
    assert_close(run_tokens(loaded, TOKENS), logits_of(hf), 1e-5)
    assert loaded.source["weights_sha256"] != without["weights_sha256"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"bias": "all"}, "bias"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"of_next_year": 1}, "of_next_year"),
        ({"r": 3}, "rank 3"),
        ({"layer": "model.layers.9.mlp.up_proj"}, "model.layers.9.mlp.up_proj"),
        ({"layer": "model.norm"}, "model.norm"),
    ],
)
def test_an_adapter_that_is_not_known_is_refused_by_its_field(settings, words, tmp_path):
    path = save(tiny_hf("llama"), tmp_path / "m")
    add_adapter(path, **settings)
    assert words in refusal(lambda: eap.load_model(path, device="cpu"))


def test_an_adapter_alone_is_called_one(tmp_path):
    add_adapter(tmp_path, base_model_name_or_path="some/base")
    message = refusal(lambda: eap.load_model(tmp_path))
    assert "is an adapter" in message
    assert "some/base" in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 1}, ["1 layers", "of 2"]),
        ({"num_hidden_layers": 4}, ["lack", "4 layers"]),
        ({"vocab_size": 77}, ["lm_head", "[77, 16]", "[50, 16]"]),
        ({"intermediate_size": 40}, ["mlp", "40", "24"]),
        ({"rms_norm_eps": float("nan")}, ["rms_norm_eps is nan"]),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, ["quantized"]),
        ({"architectures": ["GPT2LMHeadModel"]}, ["GPT2LMHeadModel", "model_type"]),
        ({"attention_bias": True}, ["lack", "bias"]),
    ],
)
def test_a_configuration_that_is_not_the_weights_is_refused_with_both(changes, words, tmp_path):
    path = save(tiny_hf("llama"), tmp_path / "m")
    edit_config(path, **changes)
    message = refusal(lambda: eap.load_model(path, device="cpu"))
    assert all(word in message for word in words), message


def test_weights_that_the_configuration_does_not_describe_are_refused(tmp_path):
    path = save(tiny_hf("llama", attention_bias=True), tmp_path / "m")
    edit_config(path, attention_bias=False)
    assert "does not describe" in refusal(lambda: eap.load_model(path, device="cpu"))


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
@pytest.mark.parametrize("place", ["layer", "bias", "head"])
def test_files_without_the_prefix_of_the_head_are_checked_alike(family, place, tmp_path):
    """Names of the model without its head, as in the files of `gpt2` on the hub."""
    hf = tiny_hf(family, n_layers=2)
    body = getattr(hf, hf.base_model_prefix)
    path = save(body, tmp_path / "m")
    edit_config(path, architectures=[type(hf).__name__])
    weights = load_file(path / "model.safetensors")
    head = hf.get_output_embeddings().weight
    save_file(weights | {f"{HEADS[family]}.weight": head}, path / "model.safetensors")
    tied = hf.config.tie_word_embeddings
    assert_close(run_tokens(eap.load_model(str(path), device="cpu"), TOKENS), logits_of(hf), 1e-5)
    last = max(name for name in weights if ".1." in name)
    extra = {
        "layer": {last.replace(".1.", ".2."): weights[last].clone()},
        "bias": {last.rpartition(".")[0] + ".other": weights[last].clone()},
        "head": {f"{HEADS[family]}.bias": head[:, 0].clone()},
    }[place]
    save_file(
        weights | ({} if tied else {f"{HEADS[family]}.weight": head}) | extra,
        path / "model.safetensors",
    )
    said = refusal(lambda: eap.load_model(str(path), device="cpu"))
    assert "configuration has 2 layers" in said if place == "layer" else "does not describe" in said


def test_tensors_of_parts_that_the_model_does_not_have_are_left_out(tmp_path):
    """Towers of other inputs, and marks of a format, beside the weights of a language model."""
    hf = tiny_hf("llama")
    path = save(hf, tmp_path / "m")
    others = ("vision_tower.layers.0.fc.weight", "model.version", "score_head.weight")
    weights = load_file(path / "model.safetensors")
    save_file(weights | {name: torch.ones(2) for name in others}, path / "model.safetensors")
    assert_close(run_tokens(eap.load_model(str(path), device="cpu"), TOKENS), logits_of(hf), 1e-5)


HEADS = {"gpt2": "lm_head", "llama": "lm_head", "neox": "embed_out"}


@pytest.mark.parametrize("value", [None, [], "missing"])
def test_a_configuration_without_architectures_is_known_by_its_type(value, tmp_path):
    hf = tiny_hf("llama")
    path = save(hf, tmp_path / "m")
    settings = json.loads((path / "config.json").read_text())
    settings["architectures"] = value
    if value == "missing":
        del settings["architectures"]
    (path / "config.json").write_text(json.dumps(settings))
    assert_close(run_tokens(eap.load_model(path, device="cpu"), TOKENS), logits_of(hf), 1e-5)


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["[]", '"text"', "null", "3"])
def test_settings_that_are_no_object_are_named(name, content, tmp_path):
    path = save(tiny_hf("gpt2"), tmp_path / "m")
    (path / name).write_text(content)
    assert name in refusal(lambda: eap.load_model(path, device="cpu"))


@pytest.mark.parametrize("where", ["sub/w.safetensors", "../w.safetensors", "absolute"])
def test_what_is_loaded_is_hashed_and_lies_in_the_directory(where, tmp_path):
    sources = []
    for seed in (0, 1):
        path = save(tiny_hf("gpt2", seed=seed), tmp_path / str(seed) / "m")
        shard = str(tmp_path / "w.safetensors") if where == "absolute" else where
        (path / shard).parent.mkdir(exist_ok=True)
        weights = path / "model.safetensors"
        index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(weights), shard)}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
        weights.rename(path / shard)
        (path / "other.safetensors").write_bytes(b"the same in both")
        if where.startswith("sub"):
            sources.append(eap.load_model(path, device="cpu").source["weights_sha256"])
        else:
            assert "outside the directory" in refusal(lambda p=path: eap.load_model(p))
    assert len(set(sources)) == len(sources)


def test_an_id_far_beyond_the_vocabulary_is_refused_before_memory_is_taken(tmp_path):
    path = save(tiny_hf("gpt2"), tmp_path / "m")
    saved = json.loads((path / "tokenizer.json").read_text())
    saved["model"]["vocab"]["far"] = 4 * 10**9
    (path / "tokenizer.json").write_text(json.dumps(saved))
    assert "4000000000" in refusal(lambda: eap.load_model(path, device="cpu"))


def test_a_revision_is_of_a_model_of_the_hub(tmp_path):
    path = save(tiny_hf("gpt2"), tmp_path / "m")
    assert "revision" in refusal(lambda: eap.load_model(path, revision="main"))
    assert "revision" in refusal(lambda: eap.load_model(tiny_hf("gpt2"), revision="main"))


def test_threads_that_load_get_their_own_verdict_and_leave_logging_alone(tmp_path):
    whole, broken = (save(tiny_hf("gpt2"), tmp_path / name) for name in ("whole", "broken"))
    weights = load_file(broken / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    logger = logging.getLogger("transformers")
    state = (list(logger.handlers), logger.level, logger.propagate, logging.root.manager.disable)
    said: dict[str, list[str]] = {"whole": [], "broken": []}

    def load(path):
        try:
            eap.load_model(path, device="cpu")
            said[path.name].append("loaded")
        except eap.UserError as error:
            said[path.name].append(str(error))

    threads = [threading.Thread(target=load, args=(path,)) for path in (whole, broken) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said["whole"] == ["loaded"] * 3
    assert all("lack transformer.h.1.mlp.c_fc.weight" in message for message in said["broken"])
    assert len(said["broken"]) == 3
    after = (list(logger.handlers), logger.level, logger.propagate, logging.root.manager.disable)
    assert after == state

"""GGUF files: the model is the one that was written, and the file's own settings win."""

import hashlib
import importlib

import numpy as np
import pytest
import torch

import eap
from eap.model.runs import run_tokens
from eap.studies.paths import model_name
from tests.models.tiny import D_VOCAB, tiny_hf
from tests.running import ROOT

pytest.importorskip("gguf")
import gguf

from tests.models.gguf_files import ADDED, write_gguf

# What llama.cpp's converter writes about each family beside sizes; none is transformers' default.
FAMILIES = {
    "llama": ({"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
              {"rope.freq_base": 500.0, "rope.dimension_count": 4}),
    "qwen2": ({"rope_parameters": {"rope_type": "default", "rope_theta": 300.0}, "head_dim": 4},
              {"rope.freq_base": 300.0}),
    "qwen3": ({}, {"rope.freq_base": 10_000.0}),
    "gemma2": ({}, {
        "attention.scale": 1 / 3, "attention.sliding_window": 4, "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0}),
    "gemma3": (
        {"rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 700.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0}}},
        {"attention.scale": 1 / 3, "attention.sliding_window": 4, "rope.freq_base": 700.0,
         "attention.sliding_window_pattern": [True, False], "rope.freq_base_swa": 50.0}),
}  # fmt: skip


def written(path, family="llama", *, config=None, settings=None, **more):
    arguments, said = FAMILIES[family]
    hf = tiny_hf(family, **arguments, **(config or {}))
    if family.startswith("gemma"):
        more["metadata"] = {"tokenizer.ggml.add_space_prefix": False, **more.get("metadata", {})}
    return hf, write_gguf(path / "tiny.gguf", hf, settings={**said, **(settings or {})}, **more)


def refusal(call):
    with pytest.raises(eap.UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) <= 400
    return message


def logits(hf, tokens):
    with torch.no_grad():
        return hf(tokens).logits[:, -1]


@pytest.mark.parametrize(
    ("family", "tied"),
    [(family, True) for family in FAMILIES] + [("llama", False), ("qwen3", False)],
)
def test_logits_are_those_of_the_model_that_was_written(family, tied, tmp_path):
    hf, path = written(tmp_path, family, config={"tie_word_embeddings": tied})
    model = eap.load_model(path, device="cpu")
    tokens = torch.randint(3, D_VOCAB, (3, 12), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(run_tokens(model, tokens), logits(hf, tokens), rtol=1e-4, atol=1e-4)
    assert model.bridge.original_model.config.tie_word_embeddings is tied


def test_weights_are_dequantised_as_the_package_gguf_does(tmp_path, monkeypatch):
    kind, add_plain = gguf.GGMLQuantizationType.Q8_0, gguf.GGUFWriter.add_tensor

    def add(writer, name, array):
        if array.ndim == 1:
            add_plain(writer, name, array)
        else:
            add_plain(writer, name, gguf.quantize(array, kind), raw_dtype=kind)

    monkeypatch.setattr(gguf.GGUFWriter, "add_tensor", add)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "head_dim": 8}  # blocks have 32 numbers
    hf, path = written(tmp_path, "qwen3", config=sizes)
    stored = gguf.quantize(hf.get_input_embeddings().weight.detach().numpy(), kind)
    model = eap.load_model(path, device="cpu")
    assert torch.equal(model.W_E, torch.from_numpy(gguf.dequantize(stored, kind)))


def test_provenance_has_the_hash_of_the_file_and_its_quantisation(tmp_path):
    _, path = written(tmp_path, file_type=15)
    assert eap.load_model(path, device="cpu").source == {
        "file": "tiny.gguf",
        "weights_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "quantisation": "Q4_K_M",
    }
    assert model_name(str(path)) == "tiny"


def test_settings_that_lie_beside_the_file_are_of_another_model(tmp_path):
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        (tmp_path / name).write_text('{"bos_token": "<eos>", "num_hidden_layers": 7}')
    _, path = written(tmp_path)
    assert eap.load_model(path, device="cpu").tokenizer.bos_token == "<bos>"


WRONG = {
    "scaled positions": ("llama", {"rope.scaling.type": "yarn"}, "yarn"),
    "other scale of queries": ("llama", {"attention.scale": 0.1}, "scaled by 0.1"),
    "half of a head rotated": ("llama", {"rope.dimension_count": 2}, "rope.dimension_count is 2"),
    "a window in Llama": ("llama", {"attention.sliding_window": 4}, "attention.sliding_window"),
    "a cap in Qwen": ("qwen3", {"attn_logit_softcapping": 5.0}, "attn_logit_softcapping"),
    "a pattern of other length": (
        "gemma3", {"attention.sliding_window_pattern": [True] * 3}, "3 layers"
    ),
    "heads that differ by layer": ("llama", {"attention.head_count_kv": [1, 2]}, "head_count_kv"),
    "no key/value heads": ("llama", {"attention.head_count_kv": None}, "head_count_kv is missing"),
    "no epsilon": ("llama", {"attention.layer_norm_rms_epsilon": None}, "epsilon is missing"),
    "attention to the future": ("gemma3", {"attention.causal": False}, "not causal"),
    "an expert": ("qwen3", {"expert_count": 4}, "expert_count"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_setting_that_the_model_class_does_not_have_is_refused(case, tmp_path):
    family, settings, word = WRONG[case]
    _, path = written(tmp_path, family, settings=settings)
    assert word in refusal(lambda: eap.load_model(path, device="cpu"))


def test_a_tensor_without_a_place_is_refused(tmp_path):
    # Llama 3.1 keeps its scaling of positions as a tensor, which transformers would drop.
    _, path = written(tmp_path, tensors={"rope_freqs.weight": np.ones(2, np.float32)})
    assert "rope_freqs.weight" in refusal(lambda: eap.load_model(path, device="cpu"))


def test_a_missing_tensor_is_refused(tmp_path, monkeypatch):
    _, path = written(tmp_path, settings={"block_count": 3})
    assert "lack" in refusal(lambda: eap.load_model(path, device="cpu"))


@pytest.mark.parametrize("n_bytes", [0, 3, 100, 5000])
def test_a_file_that_ends_too_soon_is_refused(n_bytes, tmp_path):
    _, path = written(tmp_path)
    path.write_bytes(path.read_bytes()[:n_bytes])
    assert "tiny.gguf" in refusal(lambda: eap.load_model(path, device="cpu"))


def test_files_that_are_no_language_model_are_refused(tmp_path):
    assert "no file" in refusal(lambda: eap.load_model(tmp_path / "absent.gguf"))
    _, path = written(tmp_path, metadata={"general.architecture": "clip"})
    assert "clip" in refusal(lambda: eap.load_model(path, device="cpu"))
    _, path = written(tmp_path, metadata={"split.count": 2})
    assert "several files" in refusal(lambda: eap.load_model(path, device="cpu"))


# ---- tokenizer -----------------------------------------------------------------------------------


def tokens_of(path, text):
    tokenizer = eap.load_model(path, device="cpu").tokenizer
    return tokenizer.convert_ids_to_tokens(tokenizer.encode(text, add_special_tokens=False))


def test_digits_are_split_where_the_file_names_such_a_splitter(tmp_path):
    _, path = written(tmp_path, tokenizer="gpt2")
    assert tokens_of(path, "ab12") == ["ab", "1", "2"]
    _, path = written(tmp_path, tokenizer="gpt2", metadata={"tokenizer.ggml.pre": "gpt-2"})
    assert tokens_of(path, "ab12") == ["ab", "12"]


def test_an_unknown_splitter_is_refused(tmp_path):
    _, path = written(tmp_path, tokenizer="gpt2", metadata={"tokenizer.ggml.pre": "own"})
    message = refusal(lambda: eap.load_model(path, device="cpu"))
    assert "'own'" in message
    assert "tokenizer=" in message


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_added_tokens_stay_whole(kind, tmp_path):
    _, path = written(tmp_path, tokenizer=kind)
    assert ADDED in tokens_of(path, f"ab{ADDED}ab")
    assert "<eos>" in tokens_of(path, "ab<eos>")


@pytest.mark.parametrize(
    ("kind", "said", "bos"),
    [
        ("llama", None, "<bos>"), ("llama", False, None), ("gpt2", None, None),
        ("gpt2", True, "<bos>"),
    ],
)  # fmt: skip
def test_the_bos_is_there_where_the_file_says_so(kind, said, bos, tmp_path):
    _, path = written(tmp_path, tokenizer=kind, metadata={"tokenizer.ggml.add_bos_token": said})
    assert eap.load_model(path, device="cpu").tokenizer.bos_token == bos


def test_special_tokens_are_the_files_own(tmp_path):
    numbers = {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.unknown_token_id": None}
    _, path = written(tmp_path, metadata=numbers)
    tokenizer = eap.load_model(path, device="cpu").tokenizer
    assert (tokenizer.bos_token, tokenizer.unk_token) == ("<eos>", None)
    _, path = written(tmp_path, metadata={"tokenizer.ggml.bos_token_id": 99})
    assert "99" in refusal(lambda: eap.load_model(path, device="cpu"))


def test_a_space_in_front_that_the_file_denies_is_refused(tmp_path):
    _, path = written(tmp_path, metadata={"tokenizer.ggml.add_space_prefix": False})
    assert "space in front" in refusal(lambda: eap.load_model(path, device="cpu"))


# ---- the workflow --------------------------------------------------------------------------------


def test_the_workflow_plans_a_file_without_loading_its_weights(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "workflow"))
    inputs = importlib.import_module("inputs")
    _, path = written(tmp_path)
    settings = inputs.Settings.from_config({"model": str(path), "head": 4}, str(tmp_path))
    jobs = [job for job in inputs.planned(settings) if str(path) in job.sources]
    assert jobs
    assert any("graphs/tiny/" in file for job in jobs for file in job.writes)

"""Loading: the tokens that were saved, objects in place of names, directories of other things."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
from dataclasses import replace

import pytest
import torch
from models.tiny import FAMILIES, MAX_POSITIONS, bridge_of, random_examples, tiny_hf, tiny_tokenizer
from models.tokenizers import byte_tokenizer, word_tokenizer
from reference import twins
from reference.twins import assert_close, dataset_of
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import eap
from eap.model import checking, families, loading
from eap.model.directory import TOY_MODEL
from eap.model.runs import run_tokens

TEXT = "The war lasted from the year 1732 to the year 17"


def save(path, family="gpt2", tokenizer=None, **config):
    tokenizer = tokenizer or tiny_tokenizer()
    tiny_hf(family, vocab_size=max(50, len(tokenizer)), **config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def edit(path, **changes):
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, **changes}))


def refusal(call):
    with pytest.raises(eap.UserError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


# ---- the tokenizer as it was saved ---------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tokenizer_without_a_bos_gets_none(family, tmp_path):
    """The libraries below declare the EOS token the BOS."""
    tokenizer = byte_tokenizer(special=("</s>",), bos=None)
    tokenizer.eos_token = "</s>"
    model = eap.load_model(save(tmp_path / "m", family, tokenizer), device="cpu")
    assert model.tokenizer.bos_token is None
    assert model.tokenizer.eos_token == "</s>"
    rows = [{"clean": "1\n", "corrupted": "2\n", "correct": "Y", "incorrect": "N"}]
    dataset = eap.load_dataset("own", model.tokenizer, data=rows)
    assert not dataset.prepend_bos
    assert "without BOS" in dataset.summary()
    assert "no BOS" in refusal(
        lambda: eap.load_dataset("own", model.tokenizer, data=rows, prepend_bos=True)
    )
    eap.attribute(model, dataset, quiet=True)


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "llama", "gemma2"])
def test_a_tokenizer_with_a_bos_keeps_it(family, tmp_path):
    model = eap.load_model(save(tmp_path / "m", family, byte_tokenizer()), device="cpu")
    assert model.tokenizer.bos_token == "<s>"
    assert model.tokenizer.eos_token == "</s>"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_ids_are_those_of_the_saved_file(family, tmp_path):
    """Some classes of tokenizers would split numbers and words otherwise, or not at all."""
    toy = AutoTokenizer.from_pretrained(str(TOY_MODEL))
    for name, tokenizer in {
        "toy": PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(toy.backend_tokenizer.to_str()),
            eos_token="<|endoftext|>",
        ),
        "words": word_tokenizer(toy.get_vocab(), digits=3),
    }.items():
        path = save(tmp_path / name, family, tokenizer)
        expected = Tokenizer.from_file(str(path / "tokenizer.json")).encode(TEXT).ids
        assert expected
        for forget in (False, True):
            if forget:  # the class is then taken from the model's kind
                settings = json.loads((path / "tokenizer_config.json").read_text())
                settings.pop("tokenizer_class", None)
                (path / "tokenizer_config.json").write_text(json.dumps(settings))
            loaded = loading.saved_tokenizer.load_tokenizer(str(path), path)
            assert loaded.encode(TEXT, add_special_tokens=False) == expected
            assert loaded.bos_token is None


def test_a_tokenizer_with_neither_bos_nor_eos_has_default_data(tmp_path):
    toy = AutoTokenizer.from_pretrained(str(TOY_MODEL))
    tokenizer = word_tokenizer(toy.get_vocab(), digits=2)
    model = eap.load_model(save(tmp_path / "m", "llama", tokenizer), device="cpu")
    dataset = eap.load_dataset("gender-bias", model.tokenizer, head=4)
    assert not dataset.prepend_bos
    eap.attribute(model, dataset, quiet=True)


def test_a_bos_beyond_the_weights_is_none(tmp_path):
    """Vocabulary and merges alone: the class adds its own BOS, which the model has no row for."""
    tokenizer = byte_tokenizer(special=(), bos=None)
    path = save(tmp_path / "m", "gpt2", tokenizer)
    saved = json.loads((path / "tokenizer.json").read_text())["model"]
    (path / "vocab.json").write_text(json.dumps(saved["vocab"]))
    (path / "merges.txt").write_text("#version: 0.2\n")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).unlink()
    model = eap.load_model(path, device="cpu")
    assert model.tokenizer.bos_token is None
    assert model.tokenizer.encode("a b", add_special_tokens=False)


def test_a_tokenizer_of_ones_own_is_used_as_it_is(tmp_path):
    path = save(tmp_path / "m")
    for file in path.glob("*token*"):
        file.unlink()
    tokenizer = tiny_tokenizer()
    assert eap.load_model(path, tokenizer=tokenizer, device="cpu").tokenizer is tokenizer


def test_weights_without_a_revision_are_known_by_their_hash(tmp_path, monkeypatch):
    """As those of the hub that come without one."""
    monkeypatch.setattr(loading, "find_directory", lambda name: None)
    sources = [
        eap.load_model(str(save(tmp_path / str(seed), seed=seed)), device="cpu").source
        for seed in (0, 1)
    ]
    assert sources[0]["weights_sha256"] != sources[1]["weights_sha256"]
    assert "revision" not in sources[0]


def test_the_toy_keeps_its_bos_and_its_file():
    model = eap.load_model("toy", device="cpu")
    assert model.tokenizer.bos_token == "<|endoftext|>"
    dataset = eap.load_dataset("ioi", model.tokenizer, head=2)
    assert dataset.prepend_bos
    assert dataset.provenance["source"] == "data/ioi/toy.csv"


def test_a_bridge_gives_back_the_bos_that_it_declared():
    hf = tiny_hf("gpt2", vocab_size=300)
    without = byte_tokenizer(special=("</s>",), bos=None)
    without = PreTrainedTokenizerFast(
        tokenizer_object=without.backend_tokenizer, eos_token="</s>", name_or_path="tiny"
    )
    bridge = eap.load_model(hf, tokenizer=without).bridge
    assert bridge.tokenizer.bos_token == "</s>"  # as TransformerLens has it
    assert eap.from_bridge(bridge).tokenizer.bos_token is None
    assert eap.from_bridge(bridge, tokenizer=without).tokenizer is without
    assert eap.from_bridge(bridge_of(tiny_hf("gpt2"))).tokenizer.bos_token == "<bos>"


# ---- objects in place of names -------------------------------------------------------------------


def test_a_hugging_face_model_is_loaded_and_left_as_it_was():
    hf = tiny_hf("llama")
    before = [name for name, _ in hf.named_modules()]
    model = eap.load_model(hf, tokenizer=tiny_tokenizer())
    assert [name for name, _ in hf.named_modules()] == before
    found = eap.attribute(model, dataset_of(twins.RAGGED), method="EAP", quiet=True)
    expected = eap.attribute(twins.load("llama"), dataset_of(twins.RAGGED), method="EAP")
    assert_close(found.scores, expected.scores, 1e-5)
    assert len(model.source["weights_sha256"]) == 64
    assert model.tokenizer.bos_token == "<bos>"
    other = eap.load_model(tiny_hf("llama", seed=1), dtype="float64")
    assert other.source["weights_sha256"] != model.source["weights_sha256"]
    assert other.dtype == torch.float64


def test_a_model_in_memory_without_a_tokenizer_takes_token_ids():
    model = eap.load_model(tiny_hf("gpt2"))
    assert model.tokenizer is None
    assert "tokenizer=" in refusal(lambda: eap.load_dataset("ioi", model.tokenizer))
    eap.attribute(model, dataset_of(twins.RAGGED), method="EAP", quiet=True)


@pytest.mark.parametrize("model", [None, 5, torch.nn.Linear(2, 2), ["gpt2"], {}], ids=repr)
def test_what_is_no_model_is_refused_with_what_is(model):
    said = refusal(lambda: eap.load_model(model))
    assert "Hugging Face model" in said or "PreTrainedModel" in said
    assert "TransformerBridge" in refusal(lambda: eap.from_bridge(model))


def test_a_hugging_face_model_is_no_bridge_and_a_bridge_no_name():
    hf = tiny_hf("gpt2")
    assert "eap.load_model(model, tokenizer=...)" in refusal(lambda: eap.from_bridge(hf))
    bridge = bridge_of(hf)
    assert "from_bridge" in refusal(lambda: eap.load_model(bridge))


@pytest.mark.parametrize("name", ["", " ", "a\0b", "x" * 5000, "~nobody-here/x", "a b c"])
def test_a_name_that_is_none_is_refused_in_one_line(name):
    refusal(lambda: eap.load_model(name))


# ---- positions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "gpt_neo"])
@pytest.mark.parametrize("n", [1, 3, 8])
def test_models_of_few_positions_load(family, n, tmp_path):
    size = {"n_positions": n} if family == "gpt2" else {"max_position_embeddings": n}
    model = eap.load_model(save(tmp_path / "m", family, **size), device="cpu")
    assert model.n_positions == n


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_longer_than_the_model_takes_are_refused_with_both_numbers(family):
    model = twins.load(family)
    assert model.n_positions == MAX_POSITIONS
    dataset = dataset_of(random_examples([5, MAX_POSITIONS + 1], [2, 5]))
    message = refusal(lambda: eap.attribute(model, dataset, quiet=True))
    assert f"{MAX_POSITIONS + 1} tokens" in message
    assert f"at most {MAX_POSITIONS}" in message


def test_windows_longer_than_the_usual_prompt_are_compared_too(monkeypatch):
    """With 12 positions a window of 20 would not be seen."""
    calls: list[torch.Size] = []
    run = checking.run_tokens
    monkeypatch.setattr(checking, "run_tokens", lambda m, t: calls.append(t.shape) or run(m, t))
    eap.from_bridge(bridge_of(tiny_hf("mistral", sliding_window=20)))
    assert calls == [(2, 24)]


# ---- directories that hold other things ----------------------------------------------------------


@pytest.mark.parametrize("name", ["extra.json", "model-2.safetensors", "notes.txt", "x.bin"])
@pytest.mark.parametrize("make", ["fifo", "device"])
def test_pipes_and_devices_are_named_and_never_read(name, make, tmp_path):
    path = save(tmp_path / "m")
    if make == "fifo":
        os.mkfifo(path / name)
    else:
        (path / name).symlink_to("/dev/zero")
    message = refusal(lambda: eap.load_model(path))
    assert f"{name} is not a regular file" in message


def test_a_link_to_a_file_is_a_file(tmp_path):
    path = save(tmp_path / "m")
    (path / "model.safetensors").rename(tmp_path / "blob")
    (path / "model.safetensors").symlink_to(tmp_path / "blob")
    eap.load_model(path, device="cpu")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_that_are_not_finite_are_named(value, dtype):
    hf = tiny_hf("gpt2")
    hf.transformer.h[1].mlp.c_fc.weight[3, 4] = value
    message = refusal(lambda: eap.load_model(hf, dtype=dtype))
    assert "NaN or infinity" in message
    assert "mlp" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layer": 0}, "num_hidden_layers is 0"),
        ({"n_layer": 10**6}, "num_hidden_layers is 1000000"),
        ({"n_layer": -1}, "num_hidden_layers is -1"),
        ({"vocab_size": 10**12}, "vocab_size is 1000000000000"),
        ({"n_embd": 10**9}, "hidden_size is 1000000000"),
        ({"n_inner": 10**9}, "n_inner is 1000000000"),
        ({"architectures": 5}, "architecture"),
        ({"n_head": 0}, "num_attention_heads is 0"),
    ],
)
def test_absurd_sizes_are_refused_before_anything_is_built(changes, message, tmp_path):
    path = save(tmp_path / "m")
    edit(path / "config.json", **changes)
    assert message in refusal(lambda: eap.load_model(path))


class Payload:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_nothing_that_comes_with_a_model_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "m")
    with (path / "pytorch_model.bin").open("wb") as file:
        pickle.dump(Payload(), file)
    eap.load_model(path, device="cpu")  # the safetensors beside it are taken
    (path / "model.safetensors").unlink()
    assert "weights_only" not in refusal(lambda: eap.load_model(path))
    remote = save(tmp_path / "remote")
    edit(remote / "config.json", model_type="mine", auto_map={"AutoConfig": "mine.MyConfig"})
    (remote / "mine.py").write_text("import os; os.mkdir('ran')\n")
    refusal(lambda: eap.load_model(remote))
    tokens = save(tmp_path / "tokens")
    edit(
        tokens / "tokenizer_config.json",
        tokenizer_class="Mine",
        auto_map={"AutoTokenizer": [None, "mine.Mine"]},
    )
    (tokens / "mine.py").write_text("import os; os.mkdir('ran')\n")
    with contextlib.suppress(eap.UserError):
        eap.load_model(tokens, device="cpu")
    assert not (tmp_path / "ran").exists()


# ---- settings that one architecture applies and another ignores ----------------------------------


@pytest.mark.parametrize(
    ("family", "settings", "n_positions"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False}, 12),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, 12),
        ("gpt2", {"scale_attn_weights": False}, 12),
        ("gemma3", {"attn_logit_softcapping": 0.5}, 12),
        ("gemma3", {"final_logit_softcapping": 0.5}, 12),
        ("llama", {"clip_qkv": 0.1, "final_logit_softcapping": 0.5}, 12),
        ("mistral", {"use_sliding_window": False}, 12),
        ("mistral", {"layer_types": ["full_attention"] * 2}, 12),
        ("mistral", {"sliding_window": 300, "layer_types": ["full_attention"] * 2}, 320),
    ],
)
def test_a_setting_counts_where_transformers_applies_it(family, settings, n_positions):
    hf = tiny_hf(family, **{"max_position_embeddings": 400} if n_positions > 32 else {}, **settings)
    tokens = torch.randint(50, (2, n_positions), generator=torch.Generator().manual_seed(0))
    logits = run_tokens(eap.load_model(hf), tokens)
    assert_close(logits, hf(input_ids=tokens, use_cache=False).logits[:, -1], 1e-5)


@pytest.mark.parametrize(
    ("family", "settings", "words"),
    [
        (
            "llama",
            {
                "rope_parameters": {
                    "rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0,
                    "original_max_position_embeddings": 16,
                    "short_factor": [1.0, 1.1], "long_factor": [1.0, 2.0],
                }
            },
            "rope_type=longrope is not supported",
        ),
        ("neox", {"attention_bias": False}, "attention_bias=False is not supported"),
    ],
)  # fmt: skip
def test_settings_that_would_be_computed_wrongly_are_refused(family, settings, words):
    assert words in refusal(lambda: eap.load_model(tiny_hf(family, **settings)))


def test_a_model_computed_nearly_rightly_in_half_precision_is_refused(monkeypatch):
    """Its logits differ by 7% of their range, where rounding alone makes .7%."""
    hf = tiny_hf("gpt2", dtype=torch.bfloat16)
    eap.load_model(hf, dtype="bfloat16")
    wrong = replace(families.FAMILIES["GPT2LMHeadModel"], norm_offset=0.1)
    monkeypatch.setitem(families.FAMILIES, "GPT2LMHeadModel", wrong)
    assert "logits differ" in refusal(lambda: eap.load_model(hf, dtype="bfloat16"))


def test_models_of_the_same_weights_and_another_configuration_are_not_one():
    hf = tiny_hf("llama")
    rope = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
    other = tiny_hf("llama", rope_parameters=rope)
    other.load_state_dict(hf.state_dict())
    one, same, another = (eap.load_model(model).source for model in (hf, tiny_hf("llama"), other))
    assert one == same != another
    assert one["weights_sha256"] == another["weights_sha256"]


def test_weights_of_whole_numbers_are_refused(tmp_path):
    hf = tiny_hf("llama")
    weight = hf.model.layers[0].self_attn.q_proj
    weight.weight = torch.nn.Parameter((10 * weight.weight).to(torch.int8), requires_grad=False)
    assert "q_proj.weight holds int8" in refusal(lambda: eap.load_model(hf))

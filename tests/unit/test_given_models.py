"""Models in memory as people have them: wrapped, pruned, with layers put in, or edited."""

from __future__ import annotations

import pytest
import torch
from models.directories import save
from models.tiny import D_VOCAB, random_examples, tiny_hf
from reference.twins import assert_close, dataset_of
from torch import nn
from torch.nn.utils import parametrizations, prune

import eap
from eap.model.origin import checksums
from eap.model.runs import run_tokens

TOKENS = torch.arange(4, 22).reshape(2, 9)
PAIRS = dataset_of(random_examples([5, 6], [1, 2], seed=6))


class LowRank(nn.Module):
    """A layer, and a product of two thin matrices beside it."""

    def __init__(self, layer: nn.Module, d_in: int, d_out: int) -> None:
        super().__init__()
        self.base_layer = layer
        self.A, self.B = (nn.Parameter(torch.randn(*s) / 4) for s in ((d_in, 2), (2, d_out)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + x @ self.A @ self.B


class Moved(nn.Module):
    """A function of a layer's output (or its input, where it is an embedding)."""

    def __init__(self, layer: nn.Module, function) -> None:
        super().__init__()
        self.layer, self.function = layer, function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.layer(x))


def own_logits(model):
    was_training = model.training
    with torch.no_grad():
        logits = model.eval()(TOKENS)[0][:, -1]
    model.train(was_training)
    return logits.float()


def put(parent, name, make):
    setattr(parent, name, make(getattr(parent, name)))


def refusal(call):
    with pytest.raises(eap.UserError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    assert len(message) <= 400
    assert "families.py" not in message
    return message


# ---- parts that were put in ----------------------------------------------------------------------

gpt2_mlp = lambda hf: hf.transformer.h[0].mlp  # noqa: E731
llama_mlp = lambda hf: hf.model.layers[0].mlp  # noqa: E731

CHANGES = {
    "low rank, fused": ("gpt2", lambda m: put(
        m.transformer.h[0].attn, "c_attn", lambda layer: LowRank(layer, 16, 48))),
    "low rank, grouped": ("llama", lambda m: put(
        m.model.layers[1].self_attn, "k_proj", lambda layer: LowRank(layer, 16, 8))),
    "scaled, fused": ("neox", lambda m: put(
        m.gpt_neox.layers[0].attention, "query_key_value",
        lambda layer: Moved(layer, lambda out: 1.7 * out))),
    "embedding": ("gpt2", lambda m: put(
        m.transformer, "wte", lambda layer: Moved(layer, lambda out: out + 0.1))),
    "head": ("llama", lambda m: put(
        m, "lm_head", lambda layer: Moved(layer, lambda out: 1.7 * out))),
    "mask": ("gpt2", lambda m: prune.l1_unstructured(gpt2_mlp(m).c_fc, "weight", 0.5)),
    "mask of a bias": ("gpt2", lambda m: prune.l1_unstructured(gpt2_mlp(m).c_proj, "bias", 0.5)),
    "weight norm": ("gpt2", lambda m: parametrizations.weight_norm(gpt2_mlp(m).c_fc)),
    "spectral norm": ("llama", lambda m: parametrizations.spectral_norm(llama_mlp(m).up_proj)),
    "layers taken out": ("llama", lambda m: m.model.layers.__delitem__(1)),
    "head untied": ("gpt2", lambda m: setattr(
        m.lm_head, "weight", nn.Parameter(torch.randn(D_VOCAB, 16)))),
    "training mode": ("gpt2", lambda m: m.train()),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_computed_is_the_model_that_was_given(change, recwarn):
    family, apply = CHANGES[change]
    torch.manual_seed(0)
    hf = tiny_hf(family, **({"resid_pdrop": 0.5} if change == "training mode" else {}))
    apply(hf)
    before = {name: tensor.clone() for name, tensor in hf.state_dict().items()}
    loaded = eap.load_model(hf)
    assert_close(run_tokens(loaded, TOKENS), own_logits(hf), 1e-5)
    assert all(torch.equal(before[name], tensor) for name, tensor in hf.state_dict().items())
    assert hf.training == (change == "training mode")
    merged = any(isinstance(module, LowRank | Moved) for module in hf.modules())
    assert merged == any("merged" in str(warning.message) for warning in recwarn)


def test_wrapped_models_are_unwrapped():
    hf = tiny_hf("gpt2")
    for wrapped in (torch.compile(hf, backend="eager"), nn.DataParallel(hf)):
        assert_close(run_tokens(eap.load_model(wrapped), TOKENS), own_logits(hf), 1e-5)


def test_a_model_made_in_inference_mode_has_gradients():
    with torch.inference_mode():
        hf = tiny_hf("llama")
    expected = eap.attribute(eap.load_model(tiny_hf("llama")), PAIRS)
    assert_close(eap.attribute(eap.load_model(hf), PAIRS).scores, expected.scores, 1e-6)


def at_a_position(out):
    return torch.cat([out[:, :1], out[:, 1:] + 1], dim=1)


def replace_forward(mlp):
    forward = mlp.forward
    mlp.forward = lambda x: 2 * forward(x)


def share_layers(hf):
    hf.model.layers[1] = hf.model.layers[0]


REFUSED = {
    "hook": (lambda m: llama_mlp(m).register_forward_hook(lambda *a: None), "hook on model.lay"),
    "pre-hook": (lambda m: m.register_forward_pre_hook(lambda *a: None), "hook on the model"),
    "forward": (lambda m: replace_forward(llama_mlp(m)), "forward method of model.layers.0.mlp"),
    "not linear": (
        lambda m: put(llama_mlp(m), "up_proj", lambda x: Moved(x, torch.tanh)),
        "model.layers.0.mlp.up_proj (Moved)",
    ),
    "one position": (
        lambda m: put(llama_mlp(m), "up_proj", lambda x: Moved(x, at_a_position)),
        "is not linear",
    ),
    "another part": (
        lambda m: setattr(m.model.layers[0], "mlp", nn.Linear(16, 16)), "in place of LlamaMLP",
    ),
    "another norm": (
        lambda m: setattr(m.model, "norm", nn.LayerNorm(16)), "in place of LlamaRMSNorm",
    ),
    "one part more": (
        lambda m: setattr(m.model.layers[0], "adapter", nn.Linear(2, 2)), "layers.0.adapter",
    ),
    "shared": (share_layers, "one module"),
}  # fmt: skip


@pytest.mark.parametrize("change", REFUSED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_cannot_be_computed_is_refused_by_name(change, dtype):
    """In bfloat16, too, where a small difference of logits would pass for rounding."""
    apply, words = REFUSED[change]
    hf = tiny_hf("llama").to(dtype)
    apply(hf)
    hf.to(dtype)
    assert words in refusal(lambda: eap.load_model(hf))


# ---- changes between calls -----------------------------------------------------------------------


def train(hf, bridge):
    hf.requires_grad_(True)
    optimizer = torch.optim.SGD(hf.parameters(), lr=5.0)
    hf(TOKENS, labels=TOKENS).loss.backward()
    optimizer.step()


def write_data(hf, bridge):
    for parameter in hf.parameters():
        parameter.data.mul_(1.1)


def matrices(hf):
    return [p for name, p in hf.named_parameters() if p.ndim == 2 and "embed" not in name]


def turn_signs(hf, bridge):
    for parameter in matrices(hf):
        parameter.data.neg_()


def exchange(hf, bridge):
    for parameter in matrices(hf):
        parameter.data.copy_(parameter.data.flip(-1))


def write_numpy(hf, bridge):
    next(hf.parameters()).detach().numpy()[5] += 1.0


def rebind(hf, bridge):
    for parameter in list(hf.parameters())[::2]:
        parameter.data = parameter.data * 1.1


def put_layer(hf, bridge):
    part = next(module for module in hf.modules() if isinstance(module, nn.ModuleList))[0].mlp
    name, layer = next(iter(part.named_children()))
    setattr(part, name, Moved(layer, lambda out: 1.5 * out))


EDITS = {
    "training step": train,
    "write": lambda hf, bridge: [p.mul_(1.1) for p in hf.parameters()],
    "write into .data": write_data,
    "signs turned through .data": turn_signs,
    "numbers exchanged through .data": exchange,
    "write through numpy": write_numpy,
    "new tensors": rebind,
    "state dict": lambda hf, bridge: hf.load_state_dict(
        {name: 1.1 * tensor for name, tensor in hf.state_dict().items()}
    ),
    "half and back": lambda hf, bridge: hf.half().float(),
    "a layer put in": put_layer,
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("family", ["gpt2", "neox", "llama"])
@pytest.mark.filterwarnings("ignore:.*merged")
def test_weights_that_change_between_calls_are_read_again(family, edit):
    hf = tiny_hf(family)
    loaded = eap.load_model(hf)
    before = eap.attribute(loaded, PAIRS, method="EAP")
    EDITS[edit](hf, loaded.bridge)
    after = eap.attribute(loaded, PAIRS, method="EAP")
    expected = eap.attribute(eap.load_model(hf), PAIRS, method="EAP")
    assert torch.equal(after.scores, expected.scores)
    assert not torch.equal(after.scores, before.scores)
    signed = [graph.provenance["model"]["weights_sha256"] for graph in (before, after, expected)]
    assert signed[0] != signed[1] == signed[2]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_checksums_on_a_device_see_signs_places_and_the_last_digit(dtype):
    numbers = torch.randn(5000, dtype=dtype, generator=torch.Generator().manual_seed(0))

    def changed(change):
        other = numbers.clone()
        change(other)
        return checksums(other.view(torch.uint8)) != checksums(numbers.view(torch.uint8))

    assert not changed(lambda x: None)
    assert changed(lambda x: x.neg_())
    assert changed(lambda x: x[8:16].neg_())
    assert changed(lambda x: x.__setitem__([10, 11], -x[[10, 11]]))
    assert changed(lambda x: x.__setitem__([3, 40], x[[40, 3]]))
    assert changed(lambda x: x.view(torch.uint8)[-1].add_(1))


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama", "gemma2"])
def test_a_directory_s_weights_that_change_in_memory_are_read_again(family, tmp_path):
    model = eap.load_model(save(tiny_hf(family), tmp_path / "m"), device="cpu")
    before = dict(model.source)
    with torch.no_grad():
        for parameter in model.bridge.original_model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    after = eap.attribute(model, PAIRS, method="EAP")
    fresh = eap.from_bridge(model.bridge)
    assert torch.equal(after.scores, eap.attribute(fresh, PAIRS, method="EAP").scores)
    assert model.source["weights_sha256"] != before["weights_sha256"]
    assert model.source["directory"] == before["directory"]
    eap.attribute(model, PAIRS, method="EAP")


def test_weights_that_did_not_change_are_not_read_again():
    hf = tiny_hf("gpt2")
    loaded = eap.load_model(hf)
    blocks = loaded.blocks
    hf.train()
    loaded.bridge(TOKENS, prepend_bos=False)
    eap.evaluate_baselines(loaded, PAIRS)
    assert loaded.blocks is blocks


def test_a_hook_that_is_added_later_is_refused():
    hf = tiny_hf("gpt2")
    loaded = eap.load_model(hf)
    handle = gpt2_mlp(hf).register_forward_hook(lambda *args: None)
    assert "hook" in refusal(lambda: eap.attribute(loaded, PAIRS))
    handle.remove()
    eap.attribute(loaded, PAIRS, method="EAP")
    loaded.bridge.add_hook("blocks.0.mlp.hook_out", lambda tensor, hook: tensor)
    assert "reset_hooks" in refusal(lambda: eap.attribute(loaded, PAIRS))


def test_the_weights_of_a_model_in_memory_are_not_copied():
    hf = tiny_hf("llama")
    loaded = eap.load_model(hf)
    mine = {parameter.data_ptr() for parameter in loaded.bridge.original_model.parameters()}
    assert all(parameter.data_ptr() in mine for parameter in hf.parameters())
    assert all(
        parameter.requires_grad for parameter in tiny_hf("llama").requires_grad_(True).parameters()
    )


# ---- PEFT's own objects, where it is installed ---------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}], ids=str)
def test_adapters_of_peft_are_merged(options):
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(target_modules=["q_proj", "up_proj"], init_lora_weights=False, r=4)
    adapted = peft.get_peft_model(tiny_hf("llama"), replace_all(settings, options)).eval()
    with pytest.warns(UserWarning, match="merged into the weights"):
        eap.load_model(adapted)  # which compares logits with the model's own


def test_prompts_that_peft_learned_are_refused():
    peft = pytest.importorskip("peft")
    settings = peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    with pytest.raises(eap.UserError, match="prompts that PEFT learned"):
        eap.load_model(peft.get_peft_model(tiny_hf("llama"), settings))


def replace_all(settings, options):
    for name, value in options.items():
        setattr(settings, name, value)
    return settings

"""Features as parts: an identity transcoder is the hidden units; files of two libraries."""

from __future__ import annotations

import json
import runpy

import lazy_loader
import pytest
import torch
from models.tiny import random_examples
from reference import twins
from reference.twins import assert_close, dataset_of
from safetensors.torch import save_file

import eap
import eap.parts.features as features_module
from eap.parts.features import TOY, Dictionary

DATA = dataset_of(random_examples([5, 3, 6], [2, 0, 3], seed=5))
OPTIONS = {"metric": "logit_diff", "steps": 2, "batch_size": 2}


def identity(block):
    mlp = block.mlp
    return Dictionary(mlp.W_in, mlp.b_in, mlp.W_out.T, activation=mlp.activation)


def write_circuit_tracer(folder, weights, *, reads="mlp.hook_in", writes="hook_mlp_out"):
    """`weights` by layer."""
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(
        f'model_kind: transcoder_set\nfeature_input_hook: "{reads}"\n'
        f'feature_output_hook: "{writes}"\nscan: tiny\n'
    )
    for layer, own in weights.items():
        tensors = {name: tensor.clone().contiguous() for name, tensor in own.items()}
        save_file(tensors, folder / f"layer_{layer}.safetensors")
    return folder


def of_mlp(mlp):
    return {"W_enc": mlp.W_in, "b_enc": mlp.b_in, "W_dec": mlp.W_out.T, "b_dec": mlp.b_out}


def write_sae_lens(folder, weights, **config):
    folder.mkdir(exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(config))
    tensors = {name: tensor.clone().contiguous() for name, tensor in weights.items()}
    save_file(tensors, folder / "sae_weights.safetensors")
    return folder


def random_weights(n=7, d=16, *, columns=False):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    W_enc = normal(d, n) if columns else normal(n, d)
    return {"W_enc": W_enc, "b_enc": normal(n), "W_dec": normal(n, d), "b_dec": normal(d)}


@pytest.mark.parametrize("family", ["gpt2", "opt", "neox"])
def test_an_identity_transcoder_is_the_hidden_units(family):
    model = twins.load(family, torch.float64)
    features = eap.Features({n: identity(block) for n, block in enumerate(model.blocks)})
    graph = eap.Graph.from_model(model)
    with twins.precision(family, torch.float64):
        units = eap.part_scores(model, DATA, parts="hidden units", **OPTIONS)
        scores = eap.part_scores(model, DATA, parts=features, **OPTIONS)
        kept = units.keep(20)
        values = [
            eap.evaluate(model, eap.PartCircuit(graph, one.parts, kept), DATA)["logit_diff"]
            for one in (units, scores)
        ]
    assert_close(scores.scores, units.scores, 1e-12)
    assert scores.name(len(scores) - 1) == "m1.error"
    assert_close(values[0], values[1], 1e-9)


def test_transcoders_of_circuit_tracer_are_read(tmp_path):
    """OPT's MLPs are ReLU networks, so that they can be written as transcoders."""
    model = twins.load("opt", torch.float64)
    weights = {n: of_mlp(block.mlp) for n, block in enumerate(model.blocks)}
    folder = write_circuit_tracer(tmp_path / "set", weights)
    found = eap.part_scores(model, DATA, parts=eap.load_features(folder, model), **OPTIONS)
    units = eap.part_scores(model, DATA, parts="hidden units", **OPTIONS)
    assert_close(found.scores, units.scores, 1e-12)


@pytest.mark.parametrize("kind", ["threshold", "k"])
@pytest.mark.parametrize("reads", ["mlp.hook_in", "ln2.hook_normalized", "hook_resid_mid"])
def test_encoders_are_what_their_files_say(tmp_path, reads, kind):
    model, weights = twins.load("gpt2", torch.float64), random_weights()
    if kind == "threshold":
        weights["activation_function.threshold"] = torch.full((7,), 0.5, dtype=torch.float64)
    else:
        weights["k"] = torch.tensor(2)
    folder = write_circuit_tracer(tmp_path / "set", {1: weights}, reads=reads)
    features = eap.load_features(folder, model)
    x = torch.randn(2, 3, 16, dtype=torch.float64)
    run = eap.parts.SenderRun(10, model.blocks[1], mlp_in=x, sent=x)
    norm = model.blocks[1].ln2
    read = {
        "mlp.hook_in": torch.nn.functional.layer_norm(x, (16,), norm.weight, norm.bias, norm.eps),
        "ln2.hook_normalized": torch.nn.functional.layer_norm(x, (16,), eps=norm.eps),
        "hook_resid_mid": x,
    }[reads]
    pre = read @ weights["W_enc"].T + weights["b_enc"]
    found = features.coefficients(model, run)
    if kind == "threshold":
        assert_close(found, torch.where(pre > 0.5, pre, 0.0), 1e-12)
    else:
        assert ((found > 0).sum(-1) <= 2).all()
        assert_close(found.amax(-1), pre.amax(-1).clamp(min=0), 1e-12)


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "topk"])
def test_autoencoders_of_sae_lens_are_read_and_split_what_is_sent(tmp_path, architecture):
    model, weights = twins.load("llama", torch.float64), random_weights(columns=True)
    if architecture == "jumprelu":
        weights["threshold"] = torch.full((7,), 0.5, dtype=torch.float64)
    folder = write_sae_lens(
        tmp_path / "sae", weights, architecture=architecture, k=3, apply_b_dec_to_input=True,
        normalize_activations="none", metadata={"hook_name": "blocks.1.hook_mlp_out"},
    )  # fmt: skip
    features = eap.load_features([folder], model)
    x = torch.randn(2, 3, 16, dtype=torch.float64)
    found = features.coefficients(
        model, eap.parts.SenderRun(10, model.blocks[1], mlp_in=torch.zeros_like(x), sent=x)
    )
    pre = (x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
    kept = {
        "standard": pre > 0,
        "jumprelu": pre > 0.5,
        "topk": (pre > 0) & (pre >= pre.topk(3).values[..., -1:]),
    }[architecture]
    assert_close(found, torch.where(kept, pre, 0.0), 1e-12)
    with twins.precision("llama", torch.float64):
        scores = eap.part_scores(model, DATA, parts=features, **OPTIONS)
        nodes = eap.attribute(model, DATA, level="node", **OPTIONS)
    # Whatever the features are worth, they and the error part sum to their sender.
    assert float(scores.scores.sum()) == pytest.approx(float(nodes.node_scores[-1]), rel=1e-9)
    assert list(scores.to_frame().part)[-1] == "m1.error"


@pytest.mark.parametrize(
    "config",
    [
        {"architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}},
        {"architecture": "topk", "activation_fn_kwargs": {"k": 3}},
    ],
)
def test_topk_encoders_from_before_sae_lens_6_are_topk(tmp_path, config):
    model, weights = twins.load("llama", torch.float64), random_weights(columns=True)
    hook = {"hook_name": "blocks.1.hook_mlp_out"}
    x = torch.randn(2, 3, 16, dtype=torch.float64)
    run = eap.parts.SenderRun(10, model.blocks[1], mlp_in=torch.zeros_like(x), sent=x)
    found, expected = (
        eap.load_features(
            [write_sae_lens(tmp_path / name, weights, **own, **hook)], model
        ).coefficients(model, run)
        for name, own in (("old", config), ("new", {"architecture": "topk", "k": 3}))
    )
    assert_close(found, expected, 1e-12)
    assert int((found != 0).sum(-1).max()) <= 4  # three features and the error part
    for more, says in (
        ({"rescale_acts_by_decoder_norm": True}, "fold the norms"),
        ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor=True is not supported"),
        ({"activation_fn_str": "tanh-relu"}, "activation_fn_str=tanh-relu is not supported"),
        ({"activation_fn_kwargs": {}, "architecture": "topk"}, "the k of the topk encoder"),
    ):
        folder = write_sae_lens(tmp_path / "refused", weights, **config | hook | more)
        with pytest.raises(eap.UserError, match=says):
            eap.load_features([folder], model)


def test_transcoders_of_sae_lens_are_read(tmp_path):
    model = twins.load("opt", torch.float64)
    weights = of_mlp(model.blocks[0].mlp)
    folder = write_sae_lens(
        tmp_path / "t", weights | {"W_enc": weights["W_enc"].T}, architecture="transcoder",
        metadata={"hook_name": "blocks.0.mlp.hook_in", "hook_name_out": "blocks.0.hook_mlp_out"},
    )  # fmt: skip
    found = eap.part_scores(model, DATA, parts=eap.load_features(folder, model), **OPTIONS)
    units = eap.part_scores(model, DATA, parts="hidden units", senders=["m0"], **OPTIONS)
    assert_close(found.scores, units.scores, 1e-12)


def test_files_that_do_not_fit_are_refused_in_one_line(tmp_path):
    model, gemma = twins.load("gpt2"), twins.load("gemma2")
    good = random_weights()

    def tracer(name, weights=good, layer=0, **hooks):
        return write_circuit_tracer(tmp_path / name, {layer: weights}, **hooks)

    def lens(name, weights=None, **config):
        config = {"hook_name": "blocks.0.hook_mlp_out", **config}
        weights = random_weights(columns=True) | (weights or {})
        return write_sae_lens(tmp_path / name, weights, **config)

    (tmp_path / "empty").mkdir()
    broken = tracer("broken")
    (broken / "layer_0.safetensors").write_bytes(b"no")
    cases = [
        (tmp_path / "empty", model, "no features in"),
        (broken, model, "SafetensorError"),
        (tracer("wide", random_weights(d=8)), model, "gpt2|tiny has d_model 16"),
        (tracer("deep", layer=7), model, "is of layer 7"),
        (tracer("part", {"W_enc": good["W_enc"]}), model, "has no b_enc, W_dec"),
        (tracer("in", reads="hook_attn_in"), model, "features read 'hook_attn_in'"),
        (tracer("out", writes="hook_attn_out"), model, "not parts of one sender"),
        (tracer("post", writes="mlp.hook_out"), gemma, "norm after the MLP"),
        (lens("resid", hook_name="blocks.0.hook_resid_pre"), model, "not parts of one sender"),
        (lens("gated", architecture="gated"), model, "architecture 'gated'"),
        (lens("norm", normalize_activations="layer_norm"), model, "normalize_activations"),
        (lens("jump", architecture="jumprelu"), model, "threshold"),
        (lens("hook", hook_name="hook_embed"), model, "not of a block"),
        (lens("k8", architecture="topk", k=8), model, "k 8; it must be from 1 to 7"),
        (lens("k0", architecture="topk", k=0), model, "k 0; it must be from 1 to 7"),
        (tracer("k9", good | {"k": torch.tensor(9)}), model, "k 9; it must be from 1 to 7"),
        (tracer("ks", good | {"k": torch.ones(2)}), model, "k has shape .2.; it is one number"),
        (tracer("no", good | {"W_dec": torch.tensor(1.0)}), model, "d_model 16"),
        (
            lens("thresholds", {"threshold": torch.ones(5)}, architecture="jumprelu"),
            model, "threshold of .5.; it has 7 features",
        ),
        (
            tracer("tracer", good | {"activation_function.threshold": torch.ones(7, 7)}),
            model, "threshold of .7, 7.; it has 7 features",
        ),
        (lens("b", {"b_dec": torch.ones(3)}), model, "b_dec of .3.; .* has d_model 16"),
        (lens("metadata", metadata=[1]), model, "metadata in cfg.json is not an object"),
        (
            lens("kwargs", architecture="topk", activation_fn_kwargs="k"),
            model, "activation_fn_kwargs in cfg.json is not an object",
        ),
        ([lens("a"), lens("again")], model, "layer 0, for which there are others"),
        ([], model, "path is empty; give at least one folder"),
    ]  # fmt: skip
    for folder, one, message in cases:
        with pytest.raises(eap.UserError, match=message) as error:
            eap.load_features(folder, one)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) <= 400


def test_the_toy_models_transcoders_are_what_their_training_says():
    """Held-out figures are those of the committed files; the error part is there and counts."""
    model = eap.load_model("toy", device="cpu")
    features = eap.load_features("toy", model)
    assert sum(path.stat().st_size for path in TOY.glob("*.safetensors")) < 5e6
    said = json.loads((TOY / "training.json").read_text())["held_out"]
    script = runpy.run_path(str(TOY / "train.py"), run_name="train")
    found = script["measure"](model, TOY, script["prompts_of"](model, 1)[::40])
    for layer in range(model.config.n_layers):
        assert found[f"explained_{layer}"] == pytest.approx(said[f"explained_{layer}"], abs=0.1)
        assert found[f"active_{layer}"] <= 16
    assert found["kl"] < 0.5 * found["kl_zero"]
    data = eap.load_dataset("ioi", model.tokenizer).head(8)
    scores = eap.part_scores(model, data, parts=features, method="EAP")
    nodes = eap.attribute(model, data, level="node", method="EAP")
    for sender, total in scores.node_scores.items():
        expected = float(nodes.node_scores[nodes.sender_names.index(sender)])
        assert float(total) == pytest.approx(expected, abs=1e-4)
        assert float(scores.of_sender(sender)[-1]) != 0


def test_settings_in_json_need_no_library_and_yaml_says_which(tmp_path, monkeypatch):
    missing = lazy_loader.load("no_such_library", error_on_import=False)
    monkeypatch.setattr(features_module, "yaml", missing)
    model = twins.load("gpt2", torch.float64)
    folder = write_circuit_tracer(tmp_path / "set", {1: random_weights()})
    with pytest.raises(eap.UserError, match="pip install pyyaml"):
        eap.load_features(folder, model)
    (folder / "config.yaml").write_text(
        '{"feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"}'
    )
    assert list(eap.load_features(folder, model).dictionaries) == [1]


@pytest.mark.parametrize(
    "text", ["a: [", "{a: 1", "[]", "\x00", "", "\ud800", "feature_input_hook: [a]"]
)
def test_broken_settings_are_refused_in_one_line(tmp_path, text):
    model = twins.load("gpt2", torch.float64)
    folder = write_circuit_tracer(tmp_path / "set", {1: random_weights()})
    (folder / "config.yaml").write_bytes(text.encode("utf8", "surrogatepass"))
    with pytest.raises(eap.UserError) as error:
        eap.load_features(folder, model)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) <= 400

"""Features of transcoders and sparse autoencoders as parts of MLP outputs.

The coefficient of a feature is the encoder's activation, and its direction is its row of the
decoder. The remainder of the MLP's output is the error part. The error is a part like the others
(`m3.error`): it is scored, ranked, and kept or left out, and never hidden. Skip connections and
decoder biases belong to the error.

Supported files are transcoders from circuit-tracer (`config.yaml`, `layer_<n>.safetensors`), and
transcoders and autoencoders of MLP outputs from SAELens (`cfg.json`, `sae_weights.safetensors`).
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lazy_loader
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from eap.data.dataset import DATA
from eap.model.model import Model
from eap.model.verbs import verb
from eap.parts.basis import SenderRun, place_of
from eap.runtime.errors import UserError, first_line, quoted

yaml = lazy_loader.load("yaml", error_on_import=False)

Reads = Literal["normalised", "hat", "residual", "output"]
"""Input of an encoder: the MLP's input after the norm ('normalised'), before the norm's weight and
bias ('hat') or before the norm ('residual'); or the MLP's output ('output')."""

INPUT_HOOKS: dict[str, Reads] = {
    "mlp.hook_in": "normalised",
    "ln2.hook_normalized": "hat",
    "hook_resid_mid": "residual",
    "hook_mlp_in": "residual",
}
TOY = DATA / "toy-transcoders"
"""Transcoders of the toy model, trained by `train.py` in the same folder."""

OUTPUT_HOOKS = ("hook_mlp_out", "mlp.hook_out")


@dataclass(frozen=True, eq=False)
class Dictionary:
    """Features of one MLP.

    Attributes:
        W_enc, b_enc: weights and biases of the encoder.
        W_dec: directions of the features (rows of the decoder).
        reads: activation that the encoder reads.
        activation: activation function of the encoder.
        input_bias: bias that is subtracted from the encoder's input; None: no bias.
    """

    W_enc: Float[Tensor, "n d_model"]
    b_enc: Float[Tensor, " n"]
    W_dec: Float[Tensor, "n d_model"]
    reads: Reads = "normalised"
    activation: Callable[[Tensor], Tensor] = torch.relu
    input_bias: Float[Tensor, " d_model"] | None = None


@dataclass(frozen=True, eq=False)
class Features:
    """Features as parts of MLP outputs (a basis, see `eap.parts.basis.Parts`).

    Attributes:
        dictionaries: features of each MLP, by layer.

    Example:
        >>> sorted(eap.load_features("toy", model).dictionaries)
        [0, 1, 2, 3]
    """

    dictionaries: Mapping[int, Dictionary]
    kind: str = "features"
    rest: str = "error"

    def count(self, model: Model, sender: int) -> int:
        """Number of features of an MLP; 0 for other senders."""
        layer, head = place_of(model.config, sender)
        has_features = head is None and layer in self.dictionaries
        return len(self.dictionaries[layer].W_dec) if has_features else 0

    def name(self, number: int) -> str:
        """Short name of a feature, such as `f17`."""
        return f"f{number}"

    def coefficients(self, model: Model, run: SenderRun) -> Float[Tensor, "batch query n"]:
        """Activations of the features."""
        block, mlp_in = run.block, run.mlp_in
        assert block is not None
        assert mlp_in is not None
        dictionary = self.dictionaries[place_of(model.config, run.sender)[0]]
        x = {
            "normalised": lambda: block.ln2(mlp_in),
            "hat": lambda: block.ln2.hat(mlp_in),
            "residual": lambda: mlp_in,
            "output": lambda: run.output,
        }[dictionary.reads]()
        if dictionary.input_bias is not None:
            x = x - dictionary.input_bias
        pre = x.to(dictionary.W_enc) @ dictionary.W_enc.T + dictionary.b_enc
        return dictionary.activation(pre).to(mlp_in.dtype)

    def directions(self, model: Model, sender: int) -> Float[Tensor, "n d_model"]:
        """Rows of the decoder."""
        return self.dictionaries[place_of(model.config, sender)[0]].W_dec


@verb
def load_features(path: str | Path | Sequence[str | Path], model: Model) -> Features:
    """Load features from files of circuit-tracer or SAELens.

    Args:
        path: path of a circuit-tracer folder (with `config.yaml`), or of one or several SAELens
            folders (with `cfg.json`), each for one MLP; `toy`: the transcoders of the toy model.
        model: model whose MLPs the features belong to.

    Raises:
        UserError: files that are missing, or whose shapes, settings or hooks do not fit the model;
            or two files for one layer.

    Example:
        >>> features = eap.load_features("toy", model)
        >>> scores = eap.part_scores(model, dataset, parts=features, method="EAP")
    """
    path = TOY if path == "toy" else path
    folders = [Path(path)] if isinstance(path, str | Path) else [Path(one) for one in path]
    if not folders:
        raise UserError("path is empty; give at least one folder of features")
    dictionaries: dict[int, Dictionary] = {}
    for folder in folders:
        if (folder / "cfg.json").is_file():
            found: Iterable[tuple[int, Dictionary]] = [_read_sae_lens(folder, model)]
        elif (folder / "config.yaml").is_file():
            found = _read_circuit_tracer(folder, model)
        else:
            raise UserError(
                f"no features in {quoted(str(folder))}: a folder of circuit-tracer has a "
                "config.yaml, one of SAELens a cfg.json"
            )
        for layer, dictionary in found:
            if layer in dictionaries:
                raise UserError(
                    f"{quoted(str(folder))} has features of layer {layer}, for which there are "
                    "others already; give each layer once"
                )
            dictionaries[layer] = dictionary
    if not dictionaries:
        raise UserError(f"no features in {', '.join(quoted(str(one)) for one in folders)}")
    return Features(dictionaries)


def _read_circuit_tracer(folder: Path, model: Model) -> Iterator[tuple[int, Dictionary]]:
    config = _read_yaml(folder)
    reads = _reads(folder, config.get("feature_input_hook"))
    _check_output(folder, config.get("feature_output_hook"), model)
    for file in sorted(folder.glob("layer_*.safetensors")):
        number = re.fullmatch(r"layer_(\d+)", file.stem)
        if number is None:
            raise UserError(f"{quoted(file.name)} is not called layer_<number>.safetensors")
        weights = _load(file, ("W_enc", "b_enc", "W_dec"))
        k = weights.get("k")
        if k is not None and k.numel() != 1:
            raise UserError(f"{quoted(str(file))}: k has shape {list(k.shape)}; it is one number")
        layer = int(number[1])
        yield layer, _checked(
            file, model, layer, weights["W_enc"], weights["b_enc"], weights["W_dec"], reads,
            weights.get("activation_function.threshold"), None if k is None else int(k),
        )  # fmt: skip


def _read_yaml(folder: Path) -> dict[str, Any]:
    """Contents of a folder's config.yaml; JSON, which is also YAML, is read without a library."""
    content = (folder / "config.yaml").read_bytes()
    try:
        config = json.loads(content)
    except ValueError:
        try:
            config = yaml.safe_load(content)
        except ModuleNotFoundError:
            raise UserError(
                f"{quoted(str(folder))}: config.yaml needs the package `pyyaml` (pip install "
                "pyyaml), or the same settings as JSON in it"
            ) from None
        except (yaml.YAMLError, ValueError) as error:
            raise UserError(f"{quoted(str(folder))}: config.yaml: {first_line(error)}") from None
    return config if isinstance(config, dict) else {}


_PLAIN = {
    "normalize_activations": ("none",),
    "hook_head_index": (),
    "finetuning_scaling_factor": (False,),
    "activation_fn_str": ("relu", "topk"),
    "activation_fn": ("relu", "topk"),
}
"""Values of the keys that change an encoder with which it is one of those that are read here."""


def _read_sae_lens(folder: Path, model: Model) -> tuple[int, Dictionary]:
    try:
        config = json.loads((folder / "cfg.json").read_text(encoding="utf8"))
    except ValueError as error:
        raise UserError(f"{quoted(str(folder))}: cfg.json: {first_line(error)}") from None
    if not isinstance(config, dict):
        raise UserError(f"{quoted(str(folder))}: cfg.json is not an object")
    config = {**config, **_object(folder, config, "metadata")}  # older files have none
    hook = str(config.get("hook_name") or config.get("hook_point"))
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook)
    if match is None:
        raise UserError(f"{quoted(str(folder))}: hook {quoted(hook, 60)} is not of a block")
    layer, point = int(match[1]), match[2]
    architecture = str(config.get("architecture", "standard"))
    is_transcoder = "transcoder" in architecture
    reads = _reads(folder, point) if is_transcoder else "output"
    out = str(config.get("hook_name_out", "")).removeprefix(f"blocks.{layer}.")
    _check_output(folder, out if is_transcoder else point, model)
    for key, plain in _PLAIN.items():
        if config.get(key) not in (*plain, None):
            raise UserError(f"{quoted(str(folder))}: {key}={config[key]} is not supported")
    weights = _load(folder / "sae_weights.safetensors", ("W_enc", "b_enc", "W_dec", "b_dec"))
    kind = architecture.removesuffix("transcoder").strip("_") or "standard"
    if kind not in ("standard", "jumprelu", "topk"):
        raise UserError(f"{quoted(str(folder))}: architecture {quoted(kind, 40)} is not supported")
    if kind == "jumprelu" and "threshold" not in weights:
        raise UserError(f"{quoted(str(folder))}: the threshold of the jumprelu encoder is missing")
    k = None
    if kind == "topk" or config.get("activation_fn_str") == "topk":  # the latter before SAELens 6
        k = config.get("k", _object(folder, config, "activation_fn_kwargs").get("k"))
        if not isinstance(k, int):
            raise UserError(f"{quoted(str(folder))}: the k of the topk encoder is missing")
    if k is not None and config.get("rescale_acts_by_decoder_norm"):
        raise UserError(
            f"{quoted(str(folder))}: a topk encoder that ranks by decoder norms is not supported; "
            "fold the norms into the weights (fold_W_dec_norm in SAELens) and save it again"
        )
    subtracts = config.get("apply_b_dec_to_input", not is_transcoder)
    dictionary = _checked(
        folder, model, layer, weights["W_enc"].T, weights["b_enc"], weights["W_dec"], reads,
        weights["threshold"] if kind == "jumprelu" else None, k,
        weights["b_dec"] if subtracts else None,
    )  # fmt: skip
    return layer, dictionary


def _object(folder: Path, config: Mapping[str, Any], key: str) -> dict[str, Any]:
    """An object within cfg.json; empty if it is not there."""
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise UserError(f"{quoted(str(folder))}: {key} in cfg.json is not an object")
    return value


def _reads(folder: Path, hook: Any) -> Reads:
    if not isinstance(hook, str) or hook not in INPUT_HOOKS:
        raise UserError(
            f"{quoted(str(folder))}: features read {quoted(str(hook), 60)}; known are "
            f"{', '.join(INPUT_HOOKS)}"
        )
    return INPUT_HOOKS[hook]


def _check_output(folder: Path, hook: Any, model: Model) -> None:
    if hook not in OUTPUT_HOOKS:
        raise UserError(
            f"{quoted(str(folder))}: features of {quoted(str(hook), 60)} are not parts of one "
            f"sender; those of an MLP's output ({', '.join(OUTPUT_HOOKS)}) are"
        )
    if hook == "mlp.hook_out" and any(block.post_mlp_norm for block in model.blocks):
        raise UserError(
            f"{quoted(str(folder))}: features of mlp.hook_out are before {model.name}'s norm after "
            "the MLP; only those of hook_mlp_out are parts of its output"
        )


def _load(file: Path, keys: Sequence[str]) -> dict[str, Tensor]:
    try:
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{quoted(str(file))}: {first_line(error)}") from None
    if missing := [key for key in keys if key not in weights]:
        raise UserError(f"{quoted(str(file))} has no {', '.join(missing)}")
    return weights


def _activation(threshold: Tensor | None, k: int | None) -> Callable[[Tensor], Tensor]:
    if threshold is not None:
        threshold = threshold.flatten()
        return lambda pre: pre * (pre > threshold.to(pre))
    if k is not None:
        return lambda pre: _top(pre.relu(), k)
    return torch.relu


def _top(x: Tensor, k: int) -> Tensor:
    best = x.topk(k, dim=-1)
    return torch.zeros_like(x).scatter(-1, best.indices, best.values)


def _checked(
    source: Path,
    model: Model,
    layer: int,
    W_enc: Tensor,
    b_enc: Tensor,
    W_dec: Tensor,
    reads: Reads,
    threshold: Tensor | None,
    k: int | None,
    input_bias: Tensor | None = None,
) -> Dictionary:
    """Features with shapes that fit the model, on its device and in the residual stream's dtype."""
    d_model, n_layers = model.config.d_model, model.config.n_layers
    if layer >= n_layers:
        raise UserError(
            f"{quoted(str(source))} is of layer {layer}; {model.name} has {n_layers} layers"
        )
    n = W_dec.shape[0] if W_dec.ndim else 0
    if W_enc.shape != (n, d_model) or W_dec.shape != (n, d_model) or b_enc.shape != (n,):
        raise UserError(
            f"{quoted(str(source))} has an encoder of {list(W_enc.shape)} and a decoder of "
            f"{list(W_dec.shape)}; {model.name} has d_model {d_model}"
        )
    if threshold is not None and threshold.numel() not in (1, n):
        raise UserError(
            f"{quoted(str(source))} has a threshold of {list(threshold.shape)}; it has {n} features"
        )
    if k is not None and not 1 <= k <= n:
        raise UserError(f"{quoted(str(source))} has k {k}; it must be from 1 to {n}, its features")
    if input_bias is not None and input_bias.shape != (d_model,):
        raise UserError(
            f"{quoted(str(source))} has a b_dec of {list(input_bias.shape)}; {model.name} has "
            f"d_model {d_model}"
        )
    device = model.blocks[layer].device
    W_enc, b_enc, W_dec = (x.to(device, model.residual_dtype) for x in (W_enc, b_enc, W_dec))
    bias = None if input_bias is None else input_bias.to(device, model.residual_dtype)
    return Dictionary(W_enc, b_enc, W_dec, reads, _activation(threshold, k), bias)

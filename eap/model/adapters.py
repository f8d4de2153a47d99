"""LoRA adapters in the directory of a model, as saved by PEFT (Hu et al. 2021).

An adapter adds `lora_alpha / r * B A` to the weight of a linear layer. The sum replaces the weight,
so that the analysed model is the model with its adapter, whether or not PEFT is installed.
"""

import re
from math import sqrt
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from eap.model.directory import read_json
from eap.runtime.errors import UserError, first_line, quoted

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
KEY = re.compile(r"base_model\.model\.(?P<path>.+)\.lora_(?P<side>[AB])(\.default)?\.weight")

# Fields of an adapter's configuration that do not change the output of a merged layer.
HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "exclude_modules", "fan_in_fan_out",
    "inference_mode", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout",
    "megatron_core", "peft_type", "peft_version", "qalora_group_size", "r", "revision",
    "target_modules", "task_type", "use_rslora",
}  # fmt: skip


@torch.no_grad()
def merge_adapter(name: str, model: nn.Module, config_file: Path, weights_file: Path) -> int:
    """Add an adapter to the weights of a model's linear layers, in place.

    Args:
        name: name of the model, for messages.
        model: Hugging Face model that the adapter belongs to.
        config_file: path of `adapter_config.json`.
        weights_file: path of `adapter_model.safetensors`.

    Returns:
        Number of layers that the adapter changes.

    Raises:
        UserError: the adapter is not a plain LoRA of this model's linear layers; the message names
            the field or tensor.
    """
    settings = read_json(config_file)
    refusal = f"{name} has an adapter beside its weights"
    if settings.get("peft_type") != "LORA":
        raise UserError(
            f"{refusal}, of type {quoted(settings.get('peft_type'))}; only LoRA is merged here: "
            "merge it with PEFT (merge_and_unload), and save the result"
        )
    for field, value in settings.items():
        plain = field == "bias" and value == "none"
        plain = plain or (field == "init_lora_weights" and value in (True, "gaussian"))
        if value and field not in HARMLESS and not plain:
            raise UserError(
                f"{refusal} whose field {quoted(field)} is {quoted(value)}, which is not known "
                "here: merge it with PEFT (merge_and_unload), and save the result"
            )
    try:
        tensors = load_file(weights_file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{refusal} that cannot be read: {first_line(error)}") from None
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = KEY.fullmatch(key)
        if match is None:
            raise UserError(f"{refusal}; its tensor {quoted(key)} is not a lora_A or lora_B")
        pairs.setdefault(match["path"], {})[match["side"]] = tensor
    layers = dict(model.named_modules())
    for path, pair in pairs.items():
        layer = layers.get(path)
        if not isinstance(layer, nn.Linear | Conv1D) or len(pair) != 2:
            kind = "no layer of the model" if layer is None else f"a {type(layer).__name__}"
            raise UserError(f"{refusal}; {path}, which it changes, is {kind}, or half is missing")
        A, B = pair["A"].float(), pair["B"].float()
        rank, weight = int(settings.get("r") or 0), layer.weight
        expected = weight.shape if isinstance(layer, nn.Linear) else weight.T.shape
        if A.shape != (rank, expected[1]) or B.shape != (expected[0], rank):
            raise UserError(
                f"{refusal} of rank {rank}, whose matrices for {path} are {list(A.shape)} and "
                f"{list(B.shape)}; the layer's weight is {list(expected)}"
            )
        scale = float(settings.get("lora_alpha", 8)) / (
            sqrt(rank) if settings.get("use_rslora") else rank
        )
        change = scale * B @ A
        weight.add_((change.T if isinstance(layer, Conv1D) else change).to(weight))
    return len(pairs)

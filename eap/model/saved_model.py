"""Hugging Face models from a directory or the hub, complete and with adapters merged."""

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as logs

from eap.model import adapters, saved_tokenizer
from eap.model.plain import evaluating, plain_copy
from eap.runtime.errors import UserError, first_line, quoted


def load_files(
    name: str,
    path: Path | None,
    revision: str | None,
    dtype: torch.dtype,
    device: torch.device | None,
    device_map: str | dict[str, str | int] | None,
) -> PreTrainedModel:
    """Load the Hugging Face model of a directory or of the hub, with all of its weights.

    Args:
        name: name that was given to `eap.load_model`.
        path: path of a directory; None: a model of the hub.
        revision: revision on the hub; None: the main branch.
        dtype: dtype of the weights.
        device: device of the weights; None: as given by `device_map`.
        device_map: placement of layers, as in transformers.

    Raises:
        UserError: the model cannot be loaded, or its weights do not fit its configuration.
    """
    hf: PreTrainedModel
    source = str(path or name)
    try:
        with quiet_libraries():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source, revision=revision or "main", dtype=dtype, device_map=device_map,
                attn_implementation="eager", trust_remote_code=False, output_loading_info=True,
                ignore_mismatched_sizes=True,
            )  # fmt: skip
            hf, report = loaded
            for parameter in hf.parameters():  # the library keeps some in float32
                if parameter.is_floating_point():
                    parameter.data = parameter.data.to(dtype)
            hf = hf if device is None else cast(Any, hf).to(device)
    except Exception as error:  # every library raises its own kind of error
        raise UserError(f"cannot load model {quoted(name)}: {first_line(error)}") from error
    hf.requires_grad_(False)
    if isinstance(device_map, dict):
        names = [f"{parameter}." for parameter, _ in hf.named_parameters()]
        for key in device_map:
            if key and not any(known.startswith(f"{key}.") for known in names):
                raise UserError(
                    f"the device map names {quoted(key, 60)}, which {quoted(name, 60)} does not "
                    f"have; its weights are called {quoted(names[0][:-1], 60)} and so on"
                )
    described = architecture_of(hf.config)
    if type(hf).__name__ != described:
        raise UserError(
            f"cannot load model {quoted(name)}: its config.json names {described} as architecture, "
            f"and its model_type, {hf.config.model_type}, makes it a {type(hf).__name__}"
        )
    _check_report(name, hf, report)
    if getattr(hf, "_hf_peft_config_loaded", False):  # an adapter loaded by PEFT, if installed
        with evaluating(hf):
            hf, merged = plain_copy(
                name, hf, architecture_of(hf.config), device=hf.device, dtype=dtype
            )
        say_merged(name, merged)
        return hf
    files = [
        saved_tokenizer.saved_file(source, file, revision)
        for file in (adapters.CONFIG, adapters.WEIGHTS)
    ]
    if files[0] is not None:
        if files[1] is None:
            raise UserError(f"{name} has {adapters.CONFIG} but no {adapters.WEIGHTS} beside it")
        n_layers = adapters.merge_adapter(name, hf, files[0], files[1])
        say_merged(name, [f"the adapter in the same folder, of {n_layers} layers"])
    return hf


def _check_report(name: str, hf: PreTrainedModel, report: dict[str, Any]) -> None:
    """Check that the weights of a directory fit its configuration.

    Raises:
        UserError: some weights are missing, of another size, or of layers that the configuration
            does not have.
    """
    refusal = f"cannot load model {quoted(name)}: its"
    sizes = sorted(report["mismatched_keys"])
    if sizes:
        key, saved, described = sizes[0]
        raise UserError(
            f"{refusal} weights have {key} of size {list(saved)}, and its config.json makes it "
            f"{list(described)}{and_more(sizes)}"
        )
    n_layers = hf.config.num_hidden_layers
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"{refusal} weights lack {missing[0]}{and_more(missing)}, of a configuration of "
            f"{n_layers} layers"
        )
    prefix = f"{hf.base_model_prefix}."  # files of the model without its head lack it
    layers = next(path for path, module in hf.named_modules() if isinstance(module, nn.ModuleList))
    modules = {path.removeprefix(prefix) for path, _ in hf.named_modules() if path}

    def has_a_place(key: str) -> bool:
        """Whether a tensor is of the layers, or a weight or bias of another part of the model."""
        path = key.removeprefix(prefix)
        if f"{layers}." in key or path.startswith(f"{layers.removeprefix(prefix)}."):
            return True
        module, _, kind = path.rpartition(".")
        return module in modules and kind in ("weight", "bias")

    beyond = sorted(key for key in report["unexpected_keys"] if has_a_place(key))
    numbers = [int(n) for key in beyond for n in re.findall(r"\.(\d+)\.", key)[:1]]
    if numbers and max(numbers) >= n_layers:
        raise UserError(
            f"{refusal} configuration has {n_layers} layers, and its weights are of "
            f"{max(numbers) + 1}"
        )
    if beyond:
        raise UserError(
            f"{refusal} weights hold {beyond[0]}{and_more(beyond)}, which the configuration does "
            "not describe"
        )


def and_more(names: list[Any]) -> str:
    """Number of further names after the first, in brackets."""
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def say_merged(name: str, merged: list[str]) -> None:
    """Warn that layers which were added to a model have been merged into its weights."""
    if merged:
        warnings.warn(
            f"{name}: merged into the weights: {merged[0]}{and_more(merged)}", stacklevel=2
        )


def architecture_of(config: Any) -> str:
    """Name of the model class of a configuration, from the configuration or its `model_type`."""
    names = getattr(config, "architectures", None)
    if names:
        return str(names[0]) if isinstance(names, (list, tuple)) else str(names)
    return str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(getattr(config, "model_type", ""), ""))


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the library's report (`_check_report` replaces it), and bars without a terminal.

    Both settings are process-wide, so the caller must hold a lock; they are restored afterwards.
    """
    verbosity, bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    if bars and not (sys.stderr is not None and sys.stderr.isatty()):
        logs.disable_progress_bar()
    try:
        yield
    finally:
        logs.set_verbosity(verbosity)
        if bars:
            logs.enable_progress_bar()

"""Load a model by hub name, local directory or `toy`, and check that the engine computes it.

TransformerLens' `TransformerBridge` is the model layer; `eap.model.families` reads its weights, and
`eap.model.runs` computes with them. The two are compared whenever a model is loaded.
"""

import copy
import hashlib
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedModel
from transformers.utils import logging as logs

from eap.errors import UserError, first_line, quoted
from eap.graph.graph import GraphConfig
from eap.model import gguf, saved_tokenizer
from eap.model.devices import find_device, find_dtype
from eap.model.directory import (
    check_directory,
    find_directory,
    hash_directory,
    read_config,
)
from eap.model.families import find_family, read_blocks, read_norm
from eap.model.model import Model
from eap.model.runs import run_tokens

# Largest difference from the bridge's logits, relative to their range, that rounding explains.
LOGIT_TOLERANCE = {
    torch.float64: 1e-5,  # Hugging Face computes parts in float32 whatever the weights
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}


# Prompts of the check have so many tokens; longer ones where an attention window of at most
# `WIDEST` positions is to be seen (windows wider than that are not compared with the bridge).
CHECKED = 12
WIDEST = 256


def load_model(
    model: str | os.PathLike[str] | PreTrainedModel,
    *,
    tokenizer: Any = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: str | dict[str, str | int] | None = None,
) -> Model:
    """Load `toy`, a directory, a GGUF file or a model of the hub, and check the engine against it.

    Nothing that comes with a model is run as code, and the tokens are those that its author saved.

    Args:
        model: `toy`, a directory, a GGUF file, a hub name such as `gpt2` or
            `EleutherAI/pythia-160m`; or a Hugging Face model in memory, of which a copy is made.
        tokenizer: the Hugging Face tokenizer to use; None: the model's own (a model in memory has
            none, and then takes token ids only).
        device: `cpu`, `cuda`, `cuda:1`, `mps`; None: the fastest that is there (for a model in
            memory: where it is).
        dtype: of the weights: float32, bfloat16, float16 or float64; None: float32 (for a model in
            memory: what it has).
        device_map: layers on several devices, as transformers has it (`"auto"`, `"balanced"`, or a
            dict); instead of `device`. Every layer must be on a device: nothing is offloaded.

    Raises:
        UserError: unknown name, broken directory, missing device, unsupported architecture, weights
            that are not finite, or logits that differ from the bridge's.
    """
    found = find_dtype("float32" if dtype is None else dtype)
    if device_map is not None and device is not None:
        raise UserError("give a device or a device map, not both")
    if isinstance(model, PreTrainedModel):
        if device_map is not None:
            raise UserError("a model in memory is where it is: give no device map")
        return _load_object(
            model,
            tokenizer,
            model.device if device is None else find_device(device),
            model.dtype if dtype is None else found,
        )
    if not isinstance(model, (str, os.PathLike)):
        raise UserError(
            f"the model is {type(model).__name__}; give a directory, a hub name, 'toy' or a "
            "Hugging Face model (eap.from_bridge takes a TransformerBridge)"
        )
    where: dict[str, Any] = (
        {"device": find_device(device)} if device_map is None else {"device_map": device_map}
    )
    name = os.fspath(model)
    if (file := gguf.find_file(name)) is not None:
        stored = gguf.read_file(file, dtype=found, tokenizer=tokenizer is None)
        tokenizer = stored.tokenizer if tokenizer is None else tokenizer
        bridge = _boot(name, name, tokenizer, dtype=found, hf_model=stored.model, **where)
        return from_bridge(bridge, tokenizer=tokenizer, name=name, source=stored.source)
    path = find_directory(name)
    if path is not None:
        check_directory(path, tokenizer=tokenizer is None)
    config = read_config(name, path)
    find_family(_architecture(config), config)
    if tokenizer is None:
        tokenizer = saved_tokenizer.load_tokenizer(name, path)
    bridge = _boot(name, str(path or name), tokenizer, dtype=found, **where)
    revision = getattr(bridge.original_model.config, "_commit_hash", None)
    if path is not None:
        source = hash_directory(path)
    else:
        source = {"hub": name} | (
            {"revision": revision} if revision else _hash_parameters(bridge.original_model)
        )
    return from_bridge(bridge, tokenizer=tokenizer, name=name, source=source)


def _load_object(
    model: PreTrainedModel, tokenizer: Any, device: torch.device, dtype: torch.dtype
) -> Model:
    """Boot a bridge around a copy (booting replaces a model's modules in place)."""
    architecture = _architecture(model.config) or type(model).__name__
    find_family(architecture, model.config)
    source = {"object": type(model).__name__, **_hash_parameters(model)}
    name = str(model.config.name_or_path or "model")
    hf: Any = copy.deepcopy(model)
    hf.config.architectures = [architecture]
    hf.to(device=device, dtype=dtype)
    bridge = _boot(name, name, tokenizer, hf_model=hf, device=device, dtype=dtype)
    if tokenizer is None:
        bridge.tokenizer = None
    return from_bridge(bridge, tokenizer=tokenizer, name=name, source=source)


def _boot(name: str, where: str, tokenizer: Any, **arguments: Any) -> Any:
    """A bridge with all of its weights."""
    given = saved_tokenizer.placeholder() if tokenizer is None else tokenizer
    try:
        with _missing_weights() as missing, _bars_on_terminals():
            bridge = TransformerBridge.boot_transformers(
                where, tokenizer=saved_tokenizer.for_bridge(given), **arguments
            )
    except Exception as error:  # every library below raises its own kind
        raise UserError(f"cannot load model {quoted(name)}: {first_line(error)}") from error
    if missing:
        raise UserError(
            f"cannot load model {quoted(name)}: its weights lack {missing[0]}"
            + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
        )
    return bridge


def from_bridge(
    bridge: Any, *, tokenizer: Any = None, name: str = "model", source: dict | None = None
) -> Model:
    """Wrap a booted `TransformerBridge` whose weights are already where they should be.

    The bridge's logits on random tokens are compared with the engine's; a difference is a
    `UserError`. Its parameters are frozen and dropout is off from here on.

    Args:
        bridge: from `TransformerBridge.boot_transformers`.
        tokenizer: as the model's author saved it; None: the bridge's, without the BOS token that
            TransformerLens declares where there is none.
        name: what to call the model.
        source: what identifies the weights (default: their hash).
    """
    hf = getattr(bridge, "original_model", None)
    if hf is None or not hasattr(bridge, "blocks"):
        raise UserError(
            f"the bridge is {type(bridge).__name__}; give a TransformerBridge, or a Hugging Face "
            "model to eap.load_model(model, tokenizer=...)"
        )
    if any(parameter.is_meta for parameter in hf.parameters()):
        raise UserError(
            f"{name}: parts of the weights are offloaded; give a device map that has every layer "
            "on a device"
        )
    _check_finite(name, hf)
    bridge.eval()
    hf.requires_grad_(False)
    family = find_family(_architecture(hf.config) or type(hf).__name__, hf.config)
    blocks = read_blocks(bridge, family)
    if not blocks:
        raise UserError(f"{name} has no layers")
    attention = blocks[0].attention
    unembed = bridge.unembed.original_component
    embed = bridge.embed.original_component
    W_pos = None
    if hasattr(bridge, "pos_embed"):
        W_pos = bridge.pos_embed.original_component.weight.detach()[family.position_offset :]
    bias = getattr(unembed, "bias", None)
    if tokenizer is None:
        tokenizer = saved_tokenizer.of_bridge(bridge.tokenizer)
    model = Model(
        name=name,
        bridge=bridge,
        tokenizer=saved_tokenizer.without_foreign_bos(tokenizer, len(embed.weight)),
        config=GraphConfig(
            n_layers=len(blocks),
            n_heads=attention.W_Q.shape[0],
            d_model=attention.W_Q.shape[1],
            n_kv_heads=attention.W_K.shape[0],
            parallel_attn_mlp=family.parallel(hf.config),
        ),
        blocks=blocks,
        W_E=embed.weight.detach(),
        embed_scale=float(getattr(embed, "embed_scale", 1.0)),
        W_pos=W_pos,
        ln_final=read_norm(bridge.ln_final, family),
        W_U=unembed.weight.detach(),
        b_U=None if bias is None else bias.detach(),
        logit_softcap=getattr(hf.config, "final_logit_softcapping", None),
        source=source or _hash_parameters(hf),
    )
    check_against_bridge(model)
    return model


def _architecture(config: Any) -> str:
    """Name of the class that a configuration is for, or nothing."""
    names = getattr(config, "architectures", None)
    return str(names[0]) if isinstance(names, (list, tuple)) and names else ""


def load_config(name: str) -> tuple[int, int]:
    """Numbers of layers and heads of a model that need not be loaded for it.

    Raises:
        UserError: unknown name.
    """
    path = find_directory(name)
    config = read_config(name, path)
    layers, heads = (
        getattr(config, what, None) for what in ("num_hidden_layers", "num_attention_heads")
    )
    if type(layers) is not int or type(heads) is not int:
        raise UserError(
            f"cannot load model {quoted(name)}: its configuration has no layers or heads"
        )
    return layers, heads


def check_against_bridge(model: Model) -> None:
    """Compare the engine's last-token logits with the bridge's on two random prompts.

    They have `CHECKED` tokens, more than an attention window where it is narrow, and at most as
    many as the model has positions.

    Raises:
        UserError: they differ by more than rounding, relative to the range of the logits.
    """
    windows = [block.attention.window or 0 for block in model.blocks]
    n_positions = max([CHECKED] + [window + 4 for window in windows if window <= WIDEST])
    n_positions = min(n_positions, model.n_positions or n_positions)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.W_U.shape[0], (2, n_positions), generator=generator)
    tokens = tokens.to(model.device)
    with torch.no_grad():
        try:
            expected = model.bridge(tokens, prepend_bos=False)[:, -1].to(model.residual_dtype)
        except RuntimeError as failure:
            raise UserError(
                f"{model.name}: TransformerLens cannot run it in {model.dtype}: "
                f"{first_line(failure)}"
            ) from failure
        found = run_tokens(model, tokens)
    error = float((found - expected).abs().max() / (expected.max() - expected.min()))
    tolerance = LOGIT_TOLERANCE[model.dtype]
    if not error <= tolerance:  # also when it is NaN
        raise UserError(
            f"{model.name}: the logits differ from the bridge's by {error:.1e} of their range "
            f"(at most {tolerance:.0e} is rounding): this checkpoint computes something that its "
            "family's entry in eap/model/families.py does not describe"
        )


@contextmanager
def _bars_on_terminals() -> Iterator[None]:
    """The library's bars only where there is a terminal to draw them on."""
    if (sys.stderr is not None and sys.stderr.isatty()) or not logs.is_progress_bar_enabled():
        yield
        return
    logs.disable_progress_bar()
    try:
        yield
    finally:
        logs.enable_progress_bar()


@contextmanager
def _missing_weights() -> Iterator[list[str]]:
    """Names of the parameters that Hugging Face makes up while it loads: it only warns of them."""
    missing: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            plain = re.sub(r"\x1b\[[\d;]*m", "", record.getMessage())  # without colours
            rows = [line.split("|") for line in plain.splitlines()]
            missing.extend(row[0].strip() for row in rows if "MISSING" in "".join(row[1:]))

    logger = logging.getLogger("transformers")
    # Whoever configured logging before may have silenced any of these.
    below = [
        child
        for name, child in logging.Logger.manager.loggerDict.items()
        if isinstance(child, logging.Logger) and f"{name}.".startswith("transformers.")
    ]
    before = [(child, child.disabled, child.level, child.propagate) for child in below]
    handlers, level, off = logger.handlers, logger.level, logging.root.manager.disable
    for child in below:
        child.disabled, child.propagate = False, True
        child.setLevel(logging.NOTSET)
    logging.disable(logging.NOTSET)
    logger.handlers = [Listener()]
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield missing
    finally:
        logging.disable(off)
        for child, disabled, own_level, propagate in before:
            child.disabled, child.propagate = disabled, propagate
            child.setLevel(own_level)
        logger.handlers = handlers
        logger.setLevel(level)


def _check_finite(name: str, hf: Any) -> None:
    for parameter_name, parameter in hf.named_parameters():
        if parameter.numel() and parameter.is_floating_point():
            low, high = torch.aminmax(parameter.detach())
            if not (torch.isfinite(low) and torch.isfinite(high)):
                raise UserError(f"{name}: the weights hold NaN or infinity, in {parameter_name}")


def _hash_parameters(hf: Any) -> dict[str, str]:
    """SHA-256 over the names and values of a model's parameters: where no file is known."""
    digest = hashlib.sha256()
    for name, parameter in sorted(hf.named_parameters()):
        digest.update(name.encode())
        values = parameter.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(values.numpy().data)
    return {"weights_sha256": digest.hexdigest()}

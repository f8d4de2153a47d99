"""Load a model from the hub, a directory or memory, and check the engine's logits against it.

Hugging Face loads the weights, and the `TransformerBridge` of TransformerLens names their parts;
`eap.model.families` reads them, and `eap.model.runs` computes with them. Whenever a model is
loaded, the logits of the engine are compared with those of the given model.
"""

import os
import threading
from typing import Any, cast
from weakref import ref

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from eap.graph.graph import GraphConfig
from eap.model import gguf, saved_tokenizer
from eap.model.bridge import TransformerBridge
from eap.model.checking import (
    check_logits,
    check_prompts,
    check_weights,
    hash_parameters,
    last_logits,
)
from eap.model.devices import find_device, find_dtype
from eap.model.directory import check_directory, find_directory, hash_directory, read_config
from eap.model.families import Family, find_family, read_blocks, read_norm
from eap.model.gguf_header import read_header
from eap.model.gguf_tokenizer import read_tokenizer
from eap.model.model import Model
from eap.model.origin import Origin, state_of
from eap.model.plain import evaluating, plain_copy, unwrapped
from eap.model.saved_model import (
    and_more,
    architecture_of,
    load_files,
    quiet_libraries,
    say_merged,
)
from eap.model.verbs import verb
from eap.runtime.errors import UserError, first_line, quoted
from eap.runtime.processes import expected
from eap.runtime.progress import said_when_long

# The libraries change process-wide settings while they load, so only one model loads at a time.
_LOADING = threading.RLock()


@verb
def load_model(
    model: str | os.PathLike[str] | PreTrainedModel,
    *,
    tokenizer: Any = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: str | dict[str, str | int] | None = None,
    revision: str | None = None,
) -> Model:
    """Load a model, and check the engine's logits against the model's own.

    No code that comes with a model is run. The tokenizer keeps the ids and the BOS token that its
    author saved. Low-rank layers (LoRA) are merged, with a warning: both those of a model in
    memory, and those of an adapter in the directory of its base model.

    Args:
        model: `toy`, a directory, a GGUF file, a hub name such as `gpt2` or
            `EleutherAI/pythia-160m`, or a Hugging Face model in memory. A model in memory is not
            modified: its weights are shared if device and dtype stay the same, and the next verb
            reads them again if they have changed.
        tokenizer: Hugging Face tokenizer to use; None: the model's own (a model in memory has none,
            and then accepts only token ids).
        device: device of the model: `cpu`, `cuda`, `cuda:1`, `mps`; None: the fastest available
            (for a model in memory: its current device).
        dtype: dtype of the weights: float32, bfloat16, float16 or float64; None: float32 (for a
            model in memory: its current dtype).
        device_map: placement of layers on several devices, as in transformers (`"auto"`,
            `"balanced"`, or a dict); replaces `device`. Every layer must be on a device: nothing
            is offloaded.
        revision: branch, tag or commit of a model of the hub; None: its main branch.

    Raises:
        UserError: unknown name, broken directory, missing device, unsupported architecture, a layer
            or hook that the engine cannot compute, weights that are not finite, or logits that
            differ from the model's own.

    Example:
        >>> model = eap.load_model("toy")
    """
    numbers = find_dtype("float32" if dtype is None else dtype)
    if device_map is not None and expected() > 1:
        raise UserError(
            f"each of the {expected()} processes would place a whole model by the device map; "
            "start one process, or leave the device map out, so that each takes a GPU of its own"
        )
    if device_map is not None and device is not None:
        raise UserError("give a device or a device map, not both")
    options = {"device map": device_map, "revision": revision}
    given = [what for what, value in options.items() if value is not None]
    inner = unwrapped(model)
    if isinstance(inner, PreTrainedModel):
        if given:
            raise UserError(f"a model in memory keeps its weights and place: give no {given[0]}")
        target = inner.device if device is None else find_device(device)
        with _LOADING, said_when_long(f"reading {type(inner).__name__}"):
            kind = inner.dtype if dtype is None else numbers
            return _load_object(cast(nn.Module, model), tokenizer, target, kind)
    if not isinstance(model, (str, os.PathLike)):
        raise UserError(
            f"the model is {type(model).__name__}; give a directory, a hub name, 'toy' or a "
            "Hugging Face model (eap.from_bridge takes a TransformerBridge)"
        )
    place = find_device(device) if device_map is None else None
    name = os.fspath(model)
    if (file := gguf.find_file(name)) is not None:
        if given:
            raise UserError(f"a GGUF file is loaded whole onto one device: give no {given[0]}")
        with _LOADING, said_when_long(f"loading {quoted(name)}"):
            header = read_header(file)
            hf = cast(PreTrainedModel, cast(nn.Module, gguf.read_model(header, numbers)).to(place))
            family = find_family(architecture_of(hf.config), hf.config)
            tokenizer = read_tokenizer(header) if tokenizer is None else tokenizer
            return _around(hf, hf, family, tokenizer, name, gguf.source_of(header))
    path = find_directory(name)
    if path is not None:
        if revision is not None:
            raise UserError(f"{quoted(name)} is a directory: only models of the hub have revisions")
        check_directory(path, tokenizer=tokenizer is None)
    with _LOADING, said_when_long(f"loading {quoted(name)}"):
        config = read_config(name, path, revision)
        family = find_family(architecture_of(config), config)
        if tokenizer is None:
            tokenizer = saved_tokenizer.load_tokenizer(name, path, revision)
        hf = load_files(name, path, revision, numbers, place, device_map)
        if path is not None:
            source = hash_directory(path)
        else:
            commit = getattr(hf.config, "_commit_hash", None)
            source = {"hub": name} | ({"revision": commit} if commit else hash_parameters(hf))
        return _around(hf, hf, family, tokenizer, name, source)


def _load_object(
    model: nn.Module, tokenizer: Any, device: torch.device, dtype: torch.dtype
) -> Model:
    """Wrap a model in memory; its layers, which a bridge replaces, are copied; weights are not."""
    given = unwrapped(model)
    architecture = architecture_of(given.config) or type(given).__name__
    family = find_family(architecture, given.config)
    name = str(given.config.name_or_path or "model")
    check_weights(name, given)
    outer = getattr(model, "_orig_mod", model)  # the model below torch.compile
    tokens = _prompts(given, family)
    expected = _logits_of(name, outer, tokens.to(given.device))
    with evaluating(given):
        hf, merged = plain_copy(name, given, architecture, device=device, dtype=dtype)
    say_merged(name, merged)
    hf.config.architectures = [architecture]
    source = {"object": type(given).__name__, **hash_parameters(hf)}
    loaded = _around(hf, given, family, tokenizer, name, source, expected)
    reference = ref(model)

    def read_again() -> Model:
        return _load_object(cast(nn.Module, reference()), tokenizer, device, dtype)

    assert loaded.origin is not None
    loaded.origin = Origin(((reference, state_of(model), read_again), *loaded.origin.sources))
    return loaded


def _around(
    hf: PreTrainedModel,
    given: PreTrainedModel,
    family: Family,
    tokenizer: Any,
    name: str,
    source: dict[str, Any],
    expected: Tensor | None = None,
) -> Model:
    """Boot a bridge around `hf`, read it, and compare the logits with those of the given model."""
    check_weights(name, hf)
    tokens = _prompts(hf, family)
    if expected is None:
        expected = _logits_of(name, hf, tokens.to(hf.device))
    shown = saved_tokenizer.placeholder() if tokenizer is None else tokenizer
    try:
        with quiet_libraries():
            bridge: Any = TransformerBridge.boot_transformers(
                name, hf_model=hf, tokenizer=saved_tokenizer.for_bridge(shown), device=hf.device,
                dtype=hf.dtype,
            )  # fmt: skip
    except Exception as error:  # every library raises its own kind of error
        raise UserError(f"cannot load model {quoted(name)}: {first_line(error)}") from error
    bridge.eval()
    if tokenizer is None:
        bridge.tokenizer = None
    model = _read(bridge, family, tokenizer, name, source)
    check_logits(model, tokens, expected, "the model's own", given.dtype)
    return model


def _prompts(hf: PreTrainedModel, family: Family) -> Tensor:
    table = getattr(hf.get_input_embeddings(), "weight", None)
    n_rows = hf.config.vocab_size if table is None else min(len(table), hf.config.vocab_size)
    return check_prompts(hf.config, family, n_rows)


def _logits_of(name: str, model: nn.Module, tokens: Tensor) -> Tensor:
    return last_logits(name, model, lambda: model(input_ids=tokens, use_cache=False)[0])


@verb
def from_bridge(
    bridge: Any, *, tokenizer: Any = None, name: str = "model", source: dict | None = None
) -> Model:
    """Wrap a booted `TransformerBridge`, and use its weights where they are.

    The engine's logits on random tokens are compared with the bridge's; a difference is a
    `UserError`. The call freezes the parameters of the bridge and turns dropout off. A verb reads
    the weights again if they have changed.

    Args:
        bridge: bridge from `TransformerBridge.boot_transformers`.
        tokenizer: tokenizer as saved by the author of the model; None: that of the bridge, without
            the BOS token that TransformerLens adds to tokenizers that have none.
        name: name of the model.
        source: identity of the weights, for provenance; None: their hash.

    Example:
        >>> same = eap.from_bridge(model.bridge, tokenizer=model.tokenizer, name="toy")
    """
    hf = getattr(bridge, "original_model", None)
    if hf is None or not hasattr(bridge, "blocks"):
        raise UserError(
            f"the bridge is {type(bridge).__name__}; give a TransformerBridge, or a Hugging Face "
            "model to eap.load_model(model, tokenizer=...)"
        )
    check_weights(name, hf)
    hooked = [
        key
        for key, point in bridge.hook_dict.items()
        if any(not hook.is_permanent for hook in point.fwd_hooks)  # the library's are permanent
    ]
    if hooked:
        raise UserError(
            f"{name}: there are hooks on the bridge, at {hooked[0]}{and_more(hooked)}, which the "
            "engine would not run; remove them (bridge.reset_hooks())"
        )
    family = find_family(architecture_of(hf.config) or type(hf).__name__, hf.config)
    if tokenizer is None:
        tokenizer = saved_tokenizer.of_bridge(bridge.tokenizer)
    with _LOADING:
        bridge.eval()
        hf.requires_grad_(False)
        tokens = _prompts(hf, family)
        expected = last_logits(
            name, bridge, lambda: bridge(tokens.to(hf.device), prepend_bos=False)
        )
        model = _read(bridge, family, tokenizer, name, source or hash_parameters(hf))
        check_logits(model, tokens, expected, "the bridge's", model.dtype)
    return model


def _read(bridge: Any, family: Family, tokenizer: Any, name: str, source: dict[str, Any]) -> Model:
    """Read the engine's weights from a bridge, and record how to detect later changes."""
    hf = bridge.original_model
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

    def read_again() -> Model:
        names = {key: source[key] for key in ("directory", "hub", "object") if key in source}
        hashed: dict[str, Any] = names | hash_parameters(hf)
        return from_bridge(bridge, tokenizer=tokenizer, name=name, source=hashed)

    return Model(
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
        logit_softcap=family.setting(hf.config, "final_logit_softcapping"),
        source=source,
        origin=Origin(((ref(bridge), state_of(bridge), read_again),)),
    )

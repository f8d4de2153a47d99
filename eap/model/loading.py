"""Load a model by hub name, local directory or `toy`, and check that the engine computes it.

TransformerLens' `TransformerBridge` is the model layer; `eap.model.families` reads its weights, and
`eap.model.runs` computes with them. The two are compared whenever a model is loaded.
"""

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoConfig

from eap.errors import UserError
from eap.graph.graph import GraphConfig
from eap.model.families import find_family, read_blocks, read_norm
from eap.model.model import Model
from eap.model.runs import run_tokens

TOY_MODEL = Path(__file__).resolve().parents[2] / "data" / "toy-model"

# Largest difference from the bridge's logits, relative to their range, that rounding explains.
LOGIT_TOLERANCE = {
    torch.float64: 1e-5,  # Hugging Face computes parts in float32 whatever the weights
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}


def load_model(
    name: str,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "float32",
    device_map: str | dict[str, str | int] | None = None,
) -> Model:
    """Load `toy`, a Hugging Face directory, or a model of the hub, and check the engine against it.

    Args:
        name: `toy`, a path, or a hub name such as `gpt2` or `EleutherAI/pythia-160m`.
        device: `cpu`, `cuda`, `cuda:1`, `mps`; None: the fastest that is there.
        dtype: of the weights: float32, bfloat16, float16 or float64.
        device_map: layers on several devices, as transformers has it (`"auto"`, `"balanced"`, or a
            dict); instead of `device`. Every layer must be on a device: nothing is offloaded.

    Raises:
        UserError: unknown name, broken directory, missing device, unsupported architecture, or
            logits that differ from the bridge's.
    """
    dtype = find_dtype(dtype)
    if device_map is not None and device is not None:
        raise UserError("give a device or a device map, not both")
    where: dict[str, Any] = (
        {"device": find_device(device)} if device_map is None else {"device_map": device_map}
    )
    path = TOY_MODEL if name == "toy" else Path(name).expanduser()
    is_directory = path.is_dir()
    if is_directory:
        _check_directory(path)
    elif name == "toy" or name.startswith((".", "/", "~")):
        raise UserError(f"no model directory at {path}; give a directory, a hub name or 'toy'")
    try:
        with _missing_weights() as missing:
            bridge = TransformerBridge.boot_transformers(
                str(path) if is_directory else name, dtype=dtype, **where
            )
    except Exception as error:  # every library below raises its own kind
        raise UserError(f"cannot load model {name!r}: {_first_line(error)}") from error
    if missing:
        raise UserError(
            f"cannot load model {name!r}: its weights lack {missing[0]}"
            + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
        )
    if is_directory:
        source = {
            "directory": path.name,
            "weights_sha256": _hash_files(path, "*.safetensors", "*.bin"),
            "settings_sha256": _hash_files(path, "*.json", "*.model", "*.txt"),
        }
    else:
        revision = getattr(bridge.original_model.config, "_commit_hash", None)
        source = {"hub": name, "revision": str(revision)}
    return from_bridge(bridge, name=name, source=source)


def from_bridge(
    bridge: Any, *, tokenizer: Any = None, name: str = "model", source: dict | None = None
) -> Model:
    """Wrap a booted `TransformerBridge` whose weights are already where they should be.

    The bridge's logits on random tokens are compared with the engine's; a difference is a
    `UserError`. Its parameters are frozen and dropout is off from here on.
    """
    hf = bridge.original_model
    if any(parameter.is_meta for parameter in hf.parameters()):
        raise UserError(
            f"{name}: parts of the weights are offloaded; give a device map that has every layer "
            "on a device"
        )
    bridge.eval()
    hf.requires_grad_(False)
    architectures = getattr(hf.config, "architectures", None) or [type(hf).__name__]
    family = find_family(architectures[0], hf.config)
    blocks = read_blocks(bridge, family)
    attention = blocks[0].attention
    unembed = bridge.unembed.original_component
    embed = bridge.embed.original_component
    W_pos = None
    if hasattr(bridge, "pos_embed"):
        W_pos = bridge.pos_embed.original_component.weight.detach()[family.position_offset :]
    bias = getattr(unembed, "bias", None)
    model = Model(
        name=name,
        bridge=bridge,
        tokenizer=bridge.tokenizer if tokenizer is None else tokenizer,
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
        source=source or {},
    )
    check_against_bridge(model)
    return model


def load_config(name: str) -> tuple[int, int]:
    """Numbers of layers and heads of a model that need not be loaded for it.

    Raises:
        UserError: unknown name.
    """
    path = TOY_MODEL if name == "toy" else Path(name).expanduser()
    try:
        config = AutoConfig.from_pretrained(str(path) if path.is_dir() else name)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load model {name!r}: {_first_line(error)}") from None
    return config.num_hidden_layers, config.num_attention_heads


def check_against_bridge(model: Model, *, n_positions: int = 12) -> None:
    """Compare the engine's last-token logits with the bridge's on two random prompts.

    Raises:
        UserError: they differ by more than rounding, relative to the range of the logits.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.W_U.shape[0], (2, n_positions), generator=generator)
    tokens = tokens.to(model.device)
    with torch.no_grad():
        try:
            expected = model.bridge(tokens, prepend_bos=False)[:, -1].to(model.residual_dtype)
        except RuntimeError as failure:
            raise UserError(
                f"{model.name}: TransformerLens cannot run it in {model.dtype}: "
                f"{_first_line(failure)}"
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


def find_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, if it is there; None: CUDA, else MPS, else the CPU."""
    if device is None:
        device = "mps" if torch.backends.mps.is_available() else "cpu"
        device = "cuda" if torch.cuda.is_available() else device
    if str(device) == "cuda" and torch.cuda.is_available():
        # Each of torchrun's processes has a device of its own.
        number = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
        return torch.device("cuda", number)
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        available = ["cpu"]
        available += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        available += ["mps"] if torch.backends.mps.is_available() else []
        raise UserError(
            f"device {str(device)!r} is not there ({_first_line(error)}); "
            f"this machine has {', '.join(available)}"
        ) from None
    return found


def find_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """A supported floating-point type, by name."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in LOGIT_TOLERANCE:
        names = ", ".join(str(known).removeprefix("torch.") for known in LOGIT_TOLERANCE)
        raise UserError(f"dtype {dtype!r} is not supported; use one of {names}")
    return found


def _check_directory(path: Path) -> None:
    for needed, patterns in {
        "config.json": ["config.json"],
        "weights (*.safetensors or *.bin)": ["*.safetensors", "*.bin"],
        "a tokenizer (tokenizer.json, vocab.json or *.model)": [
            "tokenizer.json",
            "vocab.json",
            "*.model",
        ],
    }.items():
        if not any(file for pattern in patterns for file in path.glob(pattern)):
            raise UserError(f"{path} is not a Hugging Face model directory: it has no {needed}")


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
    handlers, level = logger.handlers, logger.level
    logger.handlers = [Listener()]
    logger.setLevel(logging.WARNING)
    try:
        yield missing
    finally:
        logger.handlers = handlers
        logger.setLevel(level)


def _hash_files(folder: Path, *patterns: str) -> str:
    """SHA-256 over the names and contents of a folder's files."""
    digest = hashlib.sha256()
    for file in sorted(file for pattern in patterns for file in folder.glob(pattern)):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__

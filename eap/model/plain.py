"""Plain copies of models in memory, with inserted layers merged into the weights.

Users add low-rank layers, masks and parametrizations to models. A module that takes the place of a
linear layer or an embedding and computes an affine map is replaced by that map, whichever library
made it. Every other part that the model's Hugging Face class does not describe is refused by name.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from eap.runtime.errors import UserError, first_line, quoted

# Number of rows of the identity matrix that are sent through a layer at a time.
ROWS = 1024

# Largest deviation from an affine map, relative to the largest output, that rounding can explain.
AFFINE_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}
AFFINE_TOLERANCE_ELSEWHERE = 3e-2


def unwrapped(model: Any) -> Any:
    """The Hugging Face model inside a compiled, parallel or PEFT model; other values unchanged."""
    inner = model
    while isinstance(inner, nn.Module) and not isinstance(inner, PreTrainedModel):
        kind: type = type(inner)
        if kind.__name__ == "OptimizedModule":
            inner = getattr(inner, "_orig_mod")  # noqa: B009 (the wrapper's own attribute)
        elif isinstance(inner, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = inner.module
        elif kind.__module__.partition(".")[0] == "peft" and "base_model" in inner._modules:
            learned = getattr(inner, "active_peft_config", None)
            if getattr(learned, "is_prompt_learning", False):
                raise UserError(
                    f"the model has prompts that PEFT learned ({type(learned).__name__}), which "
                    "are not weights of its layers: the engine cannot run them"
                )
            base: Any = inner.base_model
            inner = getattr(base, "model", base)
        else:
            break
    return inner


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Turn dropout off, and restore every module afterwards, without calling `train` methods."""
    before = [(module, module.training) for module in model.modules()]
    for module, _ in before:
        module.training = False
    try:
        yield
    finally:
        for module, was_training in before:
            module.training = was_training


def plain_copy(
    name: str,
    given: PreTrainedModel,
    architecture: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[PreTrainedModel, list[str]]:
    """Model of the architecture's own layers that computes the same as `given`.

    Weights are shared with `given` if device and dtype stay the same; `given` is not modified. Its
    forward pass must have been run once, because that applies masks of `torch.nn.utils.prune`.

    Args:
        name: name of the model, for messages.
        given: model to copy, in evaluation mode.
        architecture: name of its Hugging Face class.
        device, dtype: device and dtype of the copy's weights.

    Returns:
        The copy, and the names and types of the layers that were merged.

    Raises:
        UserError: a part of the model that the class does not describe; the message names it.
    """
    config = copy.deepcopy(given.config)
    lists = (module for module in given.modules() if isinstance(module, nn.ModuleList))
    config.num_hidden_layers = len(next(lists, ()))  # layers may have been removed
    with torch.device("meta"):  # the class's own layers, without their weights
        plain = getattr(transformers, architecture)(config)
    parts = dict(given.named_modules(remove_duplicate=False))
    _check_shared(name, given)
    replaced: dict[str, nn.Module] = {}
    merged = []
    for path, expected in plain.named_modules():
        module = parts.get(path)
        if module is None:
            raise UserError(f"{name} has no {path}, which a {architecture} has")
        _check_calls(name, path, module)
        if type(module) is type(expected) or path == "":
            if not set(expected._parameters) <= set(module._parameters):  # masked weights
                replaced[path] = _with_weights(expected, module)
        elif parametrize.is_parametrized(module) and isinstance(module, type(expected)):
            replaced[path] = _with_weights(expected, module)
        elif type(expected) in (nn.Linear, Conv1D, nn.Embedding):
            replaced[path] = _merged(name, path, module, expected)
            merged.append(f"{path} ({type(module).__name__})")
        else:
            raise UserError(
                f"{name}: {path} is of type {type(module).__name__}, in place of "
                f"{type(expected).__name__}, which the engine cannot compute"
            )
    known = set(dict(plain.named_modules()))
    for path, module in parts.items():
        within = any(path.startswith(f"{prefix}.") for prefix in replaced)
        if path not in known and not within and any(True for _ in module.parameters(recurse=False)):
            raise UserError(
                f"{name}: {path} ({type(module).__name__}) is not part of {architecture}, and the "
                "engine cannot compute it; merge or remove it"
            )
    return _copied(given, config, parts, replaced, device, dtype), merged


def _check_shared(name: str, given: nn.Module) -> None:
    """Check that no module is used in two places.

    Raises:
        UserError: two places share one module.
    """
    places: dict[int, str] = {}
    for path, module in given.named_modules(remove_duplicate=False):
        first = places.setdefault(id(module), path)
        if first != path and any(True for _ in module.parameters()):
            raise UserError(
                f"{name}: {path} and {first} are one module; the engine needs a copy for each "
                "(copy.deepcopy)"
            )


def _check_calls(name: str, path: str, module: nn.Module) -> None:
    """Check that no hook or replaced method changes what calling a module does."""
    place = path or "the model"
    for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
        if not type(hook).__module__.startswith("torch.nn.utils."):  # except masks, weight norms
            raise UserError(
                f"{name}: there is a forward hook on {place}, which the engine would not run; "
                "remove it (handle.remove()) before the model is loaded"
            )
    if "forward" in vars(module) and not hasattr(module, "_hf_hook"):
        raise UserError(
            f"{name}: the forward method of {place} was replaced, and the engine would not run "
            "it; load the model without that"
        )


def _with_weights(expected: nn.Module, module: nn.Module) -> nn.Module:
    """The expected layer, with the weights that a mask or parametrization computes."""
    plain = copy.deepcopy(expected)
    for key in expected._parameters:
        value = getattr(module, key)
        plain._parameters[key] = None if value is None else nn.Parameter(value.detach(), False)
    return plain


@torch.no_grad()
def _merged(name: str, path: str, module: nn.Module, expected: nn.Module) -> nn.Module:
    """Linear layer or embedding that computes the same as `module`.

    Raises:
        UserError: the module is not an affine map, or cannot be run alone.
    """
    what = f"{path} ({type(module).__name__})"
    plain = copy.deepcopy(expected)
    weights = [tensor for tensor in module.parameters() if tensor.is_floating_point()]
    like = weights[0] if weights else torch.zeros(0, dtype=torch.float32)
    try:
        if isinstance(expected, nn.Embedding):
            ids = torch.arange(expected.num_embeddings, device=like.device)
            plain._parameters["weight"] = nn.Parameter(module(ids[None])[0], False)
            return plain
        weight = expected._parameters["weight"]
        assert weight is not None
        d_in = weight.shape[0] if isinstance(expected, Conv1D) else weight.shape[1]
        bias = module(like.new_zeros(1, 1, d_in))[0, 0]
        rows = [
            module(_identity(first, min(ROWS, d_in - first), d_in, like)[None])[0] - bias
            for first in range(0, d_in, ROWS)
        ]
        W = torch.cat(rows)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, 3, d_in, generator=generator, dtype=torch.float32).to(like)
        out = module(x)
        error = float((out - (x @ W + bias)).abs().max() / out.abs().max().clamp(min=1e-9))
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as failure:
        raise UserError(
            f"{name}: {what} cannot be read as a linear layer: {first_line(failure, 150)}"
        ) from failure
    if not error <= AFFINE_TOLERANCE.get(like.dtype, AFFINE_TOLERANCE_ELSEWHERE):
        raise UserError(
            f"{name}: {what} takes the place of a linear layer and is not linear, so the "
            "engine cannot compute it"
        )
    plain._parameters["weight"] = nn.Parameter(W if isinstance(expected, Conv1D) else W.T, False)
    if plain._parameters["bias"] is not None:
        plain._parameters["bias"] = nn.Parameter(bias, False)
    elif float(bias.abs().max()) > 0:
        raise UserError(f"{name}: {what} adds a bias, which {path} does not have in this family")
    return plain


def _identity(first: int, n: int, d_in: int, like: Tensor) -> Tensor:
    rows = like.new_zeros(n, d_in)
    rows[:, first : first + n].fill_diagonal_(1.0)
    return rows


def _copied(
    given: PreTrainedModel,
    config: Any,
    parts: dict[str, nn.Module],
    replaced: dict[str, nn.Module],
    device: torch.device,
    dtype: torch.dtype,
) -> PreTrainedModel:
    """Copy of `given` with some parts replaced; modules are copied, weights shared if possible."""

    def as_weight(parameter: Tensor) -> nn.Parameter:
        values = parameter.detach()
        values = values.to(device, dtype) if values.is_floating_point() else values.to(device)
        return nn.Parameter(values.clone() if values.is_inference() else values, False)

    memo: dict[int, Any] = {id(given.config): config}
    for plain in replaced.values():
        for key, parameter in plain._parameters.items():
            plain._parameters[key] = None if parameter is None else as_weight(parameter)
    for path, module in parts.items():
        if path in replaced:
            memo[id(module)] = replaced[path]
            continue
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in memo:
                memo[id(parameter)] = as_weight(parameter)
        for buffer in module.buffers(recurse=False):
            memo[id(buffer)] = buffer.detach().to(device, copy=True)
    try:
        copied = copy.deepcopy(given, memo)
    except RuntimeError as error:  # tensors that result from a computation cannot be copied
        raise UserError(f"{quoted(type(given).__name__)}: {first_line(error, 150)}") from error
    return copied.eval()

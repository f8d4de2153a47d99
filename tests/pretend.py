"""Devices that are not there: CPU tensors that say they are elsewhere and refuse to meet others.

As on a GPU, an operation takes tensors of one device; only copies cross. A tensor of one number on
the host may meet any tensor, and indices may stay on the host. What the host waits for is counted.

    with pretend.devices() as waits:
        x = torch.ones(3, device=pretend.FIRST)
        x + torch.ones(3)  # raises pretend.TwoDevicesError
        float(x.sum())     # waits["_local_scalar_dense"] is 1
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

# Autograd runs the backward pass of this type in the thread that asks for it, as on a CPU.
FIRST, SECOND = (torch.device("lazy", number) for number in range(2))
CPU = torch.device("cpu")

COPIES = {"_to_copy", "copy_"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}

LISTS = {
    torch.tensor, torch.as_tensor, Tensor.__getitem__, Tensor.__setitem__, Tensor.tolist,
}  # fmt: skip

SYNCHRONISING = {
    "_local_scalar_dense",  # item(), bool(), float()
    "nonzero", "is_nonzero", "equal", "masked_select", "_unique2", "unique_dim", "bincount",
    "repeat_interleave",
}  # fmt: skip
"""Operations whose result, or its shape, the host has to wait for."""


class TwoDevicesError(RuntimeError):
    """An operation on tensors that are not on one device."""


class Pretended(Tensor):
    """A tensor that says it is on a device; its numbers are in `inner`, on the CPU."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # results are of this class anyway

    @staticmethod
    def __new__(cls, inner: Tensor, device: torch.device) -> Pretended:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device=device,
        )  # fmt: skip
        made.inner = inner
        return made

    def __repr__(self, **_: Any) -> str:
        return f"Pretended({self.inner!r}, device='{self.device}')"

    @classmethod
    def __torch_dispatch__(cls, operation, types, arguments=(), options=None):
        raise RuntimeError(f"{operation}: a pretended tensor is used outside pretend.devices()")


class _Devices(TorchDispatchMode):
    """For operations that have no pretended tensor among their arguments but make one."""

    def __init__(self, waits: Counter[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        return run(operation, arguments, options or {}, self.waits)


class _Lists(TorchFunctionMode):
    """Tensors made from lists and lists made of tensors, where torch asks no dispatch mode."""

    def __torch_function__(self, function, types, arguments=(), options=None):
        options = options or {}
        if function not in LISTS:
            return function(*arguments, **options)
        if function in (torch.tensor, torch.as_tensor) and is_pretended(options.get("device")):
            device = options.pop("device")
            return function(*arguments, **options).to(device)
        if function in (Tensor.__getitem__, Tensor.__setitem__):
            indices = arguments[1] if isinstance(arguments[1], tuple) else (arguments[1],)
            indices = tuple(torch.tensor(i) if isinstance(i, list | range) else i for i in indices)
            arguments = (arguments[0], indices, *arguments[2:])
        elif function is Tensor.tolist:
            arguments = (arguments[0].cpu(),)
        return function(*arguments, **options)


@contextmanager
def devices() -> Iterator[Counter[str]]:
    """Devices `FIRST` and `SECOND` are there; yields how often the host waited, by operation."""
    waits: Counter[str] = Counter()
    with _Devices(waits), _Lists():
        yield waits


def is_pretended(device: Any) -> bool:
    """Whether a device (or its name, or None) is one of those that are not there."""
    return device is not None and torch.device(device).type == "lazy"


def place(module: nn.Module, device_of: Callable[[str], torch.device]) -> None:
    """Put a module's weights and buffers on devices, by the name of the part they belong to.

    Every part's inputs follow it to its device, as where transformers loads with a device map.
    """
    moved: dict[Any, nn.Parameter] = {}  # tied weights stay tied where they are together
    for name, part in module.named_modules():
        device = device_of(name)
        for key, weight in part._parameters.items():
            if weight is not None:
                known = (id(weight), device)
                moved.setdefault(known, nn.Parameter(weight.detach().to(device), False))
                part._parameters[key] = moved[known]
        for key, buffer in part._buffers.items():
            part._buffers[key] = None if buffer is None else buffer.to(device)
    for part in module.modules():
        homes = {x.device for x in (*part.parameters(), *part.buffers())}
        if len(homes) == 1:
            part.register_forward_pre_hook(partial(_follow, homes.pop()), with_kwargs=True)


def _follow(device: torch.device, part: nn.Module, arguments: Any, options: Any) -> Any:
    return tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, (arguments, options))


def run(operation: Any, arguments: Any, options: Any, waits: Counter[str]) -> Any:
    """An operation on the tensors within, if it could run on one device."""
    name, writes = _described(operation)
    tensors = _tensors((*arguments, *options.values()))
    pretended = [x for x in tensors if isinstance(x, Pretended)]
    if name not in COPIES and pretended and not _could_run(name, arguments, tensors, writes):
        shapes = ", ".join(f"{list(x.shape)} on {x.device}" for x in tensors)
        raise TwoDevicesError(f"{operation}: {shapes}")
    asked = options.get("device")
    target = torch.device(asked) if asked is not None else pretended[0].device if pretended else CPU
    if pretended and (name in SYNCHRONISING or _reaches_the_host(name, arguments, target)):
        waits[name] += 1
    inner_options = {key: _inner(x) for key, x in options.items()}
    if is_pretended(asked):
        inner_options["device"] = CPU
    out = operation(*map(_inner, arguments), **inner_options)
    if writes:  # in place, or into `out`
        return options.get("out", arguments[0])
    if not is_pretended(target):
        # `x.to(device)` of the tensor within is the tensor itself
        return out.clone() if any(out is x.inner for x in pretended) else out
    target = FIRST if target.index is None else target
    if isinstance(out, Tensor):
        return Pretended(out, target)
    return tree_map(lambda x: Pretended(x, target) if isinstance(x, Tensor) else x, out)


@cache
def _described(operation: Any) -> tuple[str, bool]:
    """Its name, and whether it writes into an argument."""
    return operation._schema.name.split("::")[1], operation._schema.is_mutable


def _could_run(name: str, arguments: Any, tensors: list[Tensor], writes: bool) -> bool:
    """Whether all is on one device, but for numbers and indices, which may be on the host."""
    into = arguments[0]
    if writes and isinstance(into, Tensor) and not isinstance(into, Pretended):
        return False
    if name in INDEXING and isinstance(into, Pretended):
        indices = [x for x in _tensors(arguments[1:2]) if not isinstance(x, Pretended)]
        tensors = [x for x in tensors if not any(x is index for index in indices)]
    homes = {x.device for x in tensors if isinstance(x, Pretended) or x.dim()}
    return len(homes) <= 1


def _reaches_the_host(name: str, arguments: Any, target: torch.device) -> bool:
    """Whether a copy ends on the host, or a mask on the device says how many numbers there are."""
    if name in COPIES:
        into = arguments[0].device if name == "copy_" else target
        return not is_pretended(into)
    masks = [x for x in _tensors(arguments[1:2]) if isinstance(x, Pretended)]
    return name in INDEXING and any(x.dtype == torch.bool for x in masks)


def _tensors(arguments: Any) -> list[Tensor]:
    """The tensors among arguments, and in lists among them."""
    lists = (x if isinstance(x, list | tuple) else (x,) for x in arguments)
    return [x for xs in lists for x in xs if isinstance(x, Tensor)]


def _inner(x: Any) -> Any:
    if isinstance(x, list | tuple):
        return [_inner(part) for part in x]
    return x.inner if isinstance(x, Pretended) else x

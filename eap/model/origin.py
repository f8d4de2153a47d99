"""Where a loaded model's weights come from, and whether they changed since they were read."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any
from weakref import ReferenceType

import torch
from torch import Tensor, nn

# Numbers that are summed together: small enough to see where in a tensor a change is.
CHUNK = 64


@dataclass(frozen=True)
class State:
    """Which tensors a module has and what they hold, to be compared with a later state.

    Attributes:
        tensors: name, place in memory, type, shape and number of writes of every weight.
        sums: checksum of the memory that they are in: sees writes through `.data`, too.
        n_hooks: forward hooks, which the engine would not run.
    """

    tensors: tuple[tuple[Any, ...], ...]
    sums: str
    n_hooks: int


def state_of(module: nn.Module, known: dict[int, bytes] | None = None) -> State:
    """The state of a module's weights now.

    Args:
        module: a model, or a bridge around one.
        known: checksums of memory that was read just now, by its address; is added to. To read
            500 MB takes 40 ms on one core.
    """
    known = {} if known is None else known
    tensors, storages = [], {}
    weights = getattr(module, "original_model", module)  # of a bridge
    named: Iterable[tuple[str, Tensor]] = chain(weights.named_parameters(), weights.named_buffers())
    for name, tensor in named:
        storage = tensor.untyped_storage()
        writes = 0 if tensor.is_inference() else tensor._version
        address, offset = storage.data_ptr(), tensor.storage_offset()
        tensors.append((name, address, offset, tensor.dtype, tuple(tensor.shape), writes))
        storages[address] = storage
    digest = hashlib.sha256()
    for address, storage in storages.items():
        if address not in known:
            known[address] = _sums(storage)
        digest.update(known[address])
    return State(tuple(tensors), digest.hexdigest(), _count_hooks(module))


def _count_hooks(module: nn.Module) -> int:
    points = getattr(module, "hook_dict", None)
    if points is not None:  # of a bridge, whose own modules have hooks of the library
        return sum(len(point.fwd_hooks) for point in points.values())
    parts = module.modules()
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in parts)


def _sums(storage: torch.UntypedStorage) -> bytes:
    held = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
    whole = len(held) - len(held) % (4 * CHUNK)
    chunks = held[:whole].view(torch.int32).view(-1, CHUNK)
    parts = (chunks.sum(-1, dtype=torch.int32).view(torch.uint8), held[whole:])
    return hashlib.sha256(b"".join(part.cpu().numpy().tobytes() for part in parts)).digest()


@dataclass(frozen=True, eq=False)
class Origin:
    """The modules that a model's weights were read from.

    Attributes:
        sources: sources of each, a weak reference, its state when it was read, and how to read it
            anew.
    """

    sources: tuple[tuple[ReferenceType[nn.Module], State, Callable[[], Any]], ...]

    def anew(self) -> Any:
        """The model read again if its weights changed; None if they did not."""
        known: dict[int, bytes] = {}
        for reference, state, read in self.sources:
            module = reference()
            if module is not None and state_of(module, known) != state:
                return read()
        return None

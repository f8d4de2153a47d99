"""Origin of a loaded model's weights, and detection of later changes."""

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any
from weakref import ReferenceType

import torch
import xxhash
from torch import Tensor, nn

CHUNK = 1024
"""Numbers in one checksum, on devices other than the CPU."""

PIECE = 2**22
"""Numbers for which products are in memory at once, a multiple of `CHUNK`."""

WORTH_THREADS = 2**24
"""Number of bytes that are hashed in the time that it takes to start threads."""


@dataclass(frozen=True)
class State:
    """Fingerprint of a module's weights, to be compared with a later one.

    Attributes:
        tensors: name, address, dtype, shape and number of in-place writes of every weight.
        content: hash of the memory of the weights, which detects writes through `.data`, too.
        n_hooks: number of forward hooks, which the engine would not run.
    """

    tensors: tuple[tuple[Any, ...], ...]
    content: str
    n_hooks: int


def state_of(module: nn.Module, known: dict[int, bytes] | None = None) -> State:
    """Current state of a module's weights.

    Args:
        module: model, or bridge around a model.
        known: hashes of memory that has just been read, by address; new hashes are added. Reading
            500 MB takes 70 ms on one core.
    """
    known = {} if known is None else known
    tensors, storages = [], {}
    weights = getattr(module, "original_model", module)  # the model inside a bridge
    named: Iterable[tuple[str, Tensor]] = chain(weights.named_parameters(), weights.named_buffers())
    for name, tensor in named:
        storage = tensor.untyped_storage()
        writes = 0 if tensor.is_inference() else tensor._version
        address, offset = storage.data_ptr(), tensor.storage_offset()
        tensors.append((name, address, offset, tensor.dtype, tuple(tensor.shape), writes))
        storages[address] = storage
    unread = {address: part for address, part in storages.items() if address not in known}
    if sum(part.nbytes() for part in unread.values()) < WORTH_THREADS:
        hashes = list(map(_hash, unread.values()))
    else:
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # xxhash works without the GIL
            hashes = list(pool.map(_hash, unread.values()))
    known.update(zip(unread, hashes, strict=True))
    digest = hashlib.sha256(b"".join(known[address] for address in storages))
    return State(tuple(tensors), digest.hexdigest(), _count_hooks(module))


def _count_hooks(module: nn.Module) -> int:
    points = getattr(module, "hook_dict", None)
    if points is not None:  # in a bridge, only hook points count: its modules have their own hooks
        return sum(len(point.fwd_hooks) for point in points.values())
    parts = module.modules()
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in parts)


def _hash(storage: torch.UntypedStorage) -> bytes:
    held = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
    if held.device.type == "cpu":
        return xxhash.xxh3_128_digest(held.numpy().data)
    return checksums(held)


def checksums(held: Tensor) -> bytes:
    """Hash of bytes on a device, of which little is copied: weighted sums of chunks.

    The weights are random and 62 bits wide. With equal weights, a change of two signs would cancel,
    because a sign is the highest bit; so would two numbers in exchanged places.
    """
    whole = len(held) - len(held) % (4 * CHUNK)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randint(2**62, (CHUNK,), generator=generator).to(held.device)
    pieces = held[:whole].view(torch.int32).split(PIECE)
    sums = [(piece.view(-1, CHUNK).long() * weights).sum(-1) for piece in pieces]
    parts = [*(part.view(torch.uint8) for part in sums), held[whole:]]
    return hashlib.sha256(b"".join(part.cpu().numpy().tobytes() for part in parts)).digest()


@dataclass(frozen=True, eq=False)
class Origin:
    """Modules that a model's weights were read from.

    Attributes:
        sources: weak reference to each module, with its state when it was read and a function that
            reads it again.
    """

    sources: tuple[tuple[ReferenceType[nn.Module], State, Callable[[], Any]], ...]

    def anew(self) -> Any:
        """The model, read again, if its weights have changed; None if not."""
        known: dict[int, bytes] = {}
        for reference, state, read in self.sources:
            module = reference()
            if module is not None and state_of(module, known) != state:
                return read()
        return None

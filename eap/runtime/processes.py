"""Number of this process among several (`torchrun --nproc_per_node N script.py ...`).

Does not import torch: a single process needs nothing more. Communication between processes is in
`eap.runtime.distributed`.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class ProcessError(RuntimeError):
    """Loss of contact between processes that work together. The message is one line."""


def expected() -> int:
    """Number of processes that `torchrun` started, whether or not they have joined."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def group() -> Any:
    """`torch.distributed` if this process has joined others, else None."""
    module = sys.modules.get("torch.distributed")
    return module if module is not None and module.is_initialized() else None


def rank() -> int:
    """Number of this process, from 0."""
    joined = group()
    return joined.get_rank() if joined else 0


def count() -> int:
    """Number of processes that work together."""
    joined = group()
    return joined.get_world_size() if joined else 1


def is_first() -> bool:
    """Whether this process is the one that writes files and prints."""
    return rank() == 0


def own_items(items: Sequence[T], costs: Sequence[int] | None = None) -> Sequence[T]:
    """Items of this process, in order; every process has equally many, or (`costs`) equal work.

    With costs, the most expensive items are assigned first, each to the process with the least work
    so far.
    """
    if costs is None or count() == 1:
        return items[rank() :: count()]
    loads, chosen = [0] * count(), []
    for item in sorted(range(len(items)), key=lambda item: -costs[item]):
        process = loads.index(min(loads))
        loads[process] += costs[item]
        if process == rank():
            chosen.append(item)
    return [items[item] for item in sorted(chosen)]

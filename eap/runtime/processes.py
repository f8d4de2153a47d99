"""Which of several processes this one is (`torchrun --nproc_per_node N script.py ...`).

Loads no torch: a process that is alone needs to know nothing more. What processes tell each other
is in `eap.runtime.distributed`.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class ProcessError(RuntimeError):
    """Processes that work together lost each other. The message is one line."""


def expected() -> int:
    """How many processes `torchrun` started, whether or not they have met."""
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
    """Whether this process is the one that writes files and speaks."""
    return rank() == 0


def own_share(items: Sequence[T], costs: Sequence[int] | None = None) -> Sequence[T]:
    """This process's items, in their order: every process has as many, or (`costs`) as much to do.

    The dearest items are dealt first, each to the process that has least so far.
    """
    if costs is None or count() == 1:
        return items[rank() :: count()]
    loads, share = [0] * count(), []
    for item in sorted(range(len(items)), key=lambda item: -costs[item]):
        process = loads.index(min(loads))
        loads[process] += costs[item]
        if process == rank():
            share.append(item)
    return [items[item] for item in sorted(share)]

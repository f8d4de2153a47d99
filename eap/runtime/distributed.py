"""Work shared by several processes (`torchrun --nproc_per_node N script.py ...`).

With one process nothing here does anything. With several, each works on its share of the batches,
and sums or lists are combined, so that every process ends with the numbers of one.
"""

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def start() -> None:
    """Join the other processes, if `torchrun` started more than one."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        # What is exchanged is on the CPU. A process may have to wait long for the others.
        dist.init_process_group("gloo", timeout=timedelta(days=7))


def stop() -> None:
    """Leave the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return rank() == 0


def own_share(items: Sequence[T], costs: Sequence[int] | None = None) -> Sequence[T]:
    """This process's items, in their order: every process has as many, or (`costs`) as much to do.

    The dearest items are dealt first, each to the process that has least so far.
    """
    if costs is None or count() == 1:
        return items[rank() :: count()]
    loads, own = [0] * count(), []
    for item in sorted(range(len(items)), key=lambda item: -costs[item]):
        process = loads.index(min(loads))
        loads[process] += costs[item]
        if process == rank():
            own.append(item)
    return [items[item] for item in sorted(own)]


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of a CPU tensor over all processes, in place."""
    if count() > 1:
        dist.all_reduce(tensor)
    return tensor


def smallest(number: int) -> int:
    """The smallest of the processes' numbers: what depends on free memory must be agreed on."""
    return -largest(-number)


def largest(number: int) -> int:
    """The largest of the processes' numbers."""
    if count() == 1:
        return number
    agreed = torch.tensor(number)
    dist.all_reduce(agreed, op=dist.ReduceOp.MAX)
    return int(agreed)


def is_first_to_fail() -> bool:
    """Whether no other process has failed before: an error that all meet is said once."""
    if not dist.is_initialized():
        return True
    try:
        return dist.distributed_c10d._get_default_store().add("failures", 1) == 1
    except RuntimeError:  # the first process, which keeps the count, is gone
        return False


def wait_for_all() -> None:
    """Until every process is here."""
    if count() > 1:
        dist.barrier()

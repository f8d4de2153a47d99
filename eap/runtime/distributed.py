"""Work shared by several processes (`torchrun --nproc_per_node N script.py ...`).

With one process nothing here does anything. With several, each works on its share of the batches,
and sums or lists are combined, so that every process ends with the numbers of one.
"""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from eap.runtime.processes import count, is_first, own_share, rank

__all__ = [
    "count", "is_first", "is_first_to_fail", "largest", "own_share", "rank", "smallest", "start",
    "stop", "sum_over_processes", "wait_for_all",
]  # fmt: skip


def start() -> None:
    """Join the other processes, if `torchrun` started more than one."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        # What is exchanged is on the CPU. A process may have to wait long for the others.
        dist.init_process_group("gloo", timeout=timedelta(days=7))


def stop() -> None:
    """Leave the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


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

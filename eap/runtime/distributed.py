"""Work shared by several processes (`torchrun --nproc_per_node N script.py ...`).

With one process, nothing here has an effect. With several, each process works on its share of the
batches, and sums or lists are combined, so that every process ends with the results of a single
process.

The processes first wait for each other: a process that does not come within five minutes is named
in the error, and any process can be ended by a signal while it waits. Every later collective
operation carries a tag that names it, so that processes at different steps stop instead of adding
up different things. Processes wait in Python code, where signals are noticed.
"""

import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from eap.runtime.errors import UserError
from eap.runtime.processes import ProcessError, count, expected, is_first, own_items, rank

__all__ = [
    "count", "decided_by_first", "is_first", "is_first_to_fail", "largest", "own_items", "rank",
    "smallest", "start", "stop", "sum_over_processes", "wait_for_all",
]  # fmt: skip

T = TypeVar("T")

# How long to wait for the other processes to start, and, once all are here, for their work.
MEETING = timedelta(minutes=5)
WORKING = timedelta(days=7)

# Variables that torchrun sets, besides WORLD_SIZE.
MEETING_PLACE = ("RANK", "MASTER_ADDR", "MASTER_PORT")

# Length of a tag in bytes.
TAG = 200


# ---- start and stop ------------------------------------------------------------------------------


def start(patience: timedelta = MEETING) -> None:
    """Join the other processes, if `torchrun` started more than one.

    Raises:
        ProcessError: a process did not come; the message says which.
    """
    if expected() == 1 or dist.is_initialized():
        return
    missing = [name for name in MEETING_PLACE if name not in os.environ]
    if missing:
        raise ProcessError(
            f"WORLD_SIZE is {expected()}, and {missing[0]} is not set: start several processes "
            "with torchrun, or unset WORLD_SIZE"
        )
    number = int(os.environ["RANK"])
    with _ended_by_signals():
        store = _meet(number, patience)
        # Exchanged tensors are on the CPU. A process may have to wait long for the others' work.
        dist.init_process_group(
            "gloo", store=store, rank=number, world_size=expected(), timeout=WORKING
        )


def _meet(number: int, patience: timedelta) -> dist.Store:
    """Store shared by all processes, returned once all of them have come."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # torchrun keeps the store itself; of processes started by hand, the first keeps it.
    keeps_store = number == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    waited = f"waited {patience.total_seconds():.0f} s at {host}:{port}"
    try:
        shared = dist.TCPStore(
            host, port, is_master=keeps_store, timeout=patience, wait_for_workers=False
        )
    except RuntimeError:
        raise ProcessError(f"{waited}: no process keeps the meeting place") from None
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"eap/{attempt}", shared)
    places = [f"here/{other}" for other in range(expected())]
    begun = time.monotonic()
    try:
        store.set(places[number], "yes")
        while not store.check(places):
            if time.monotonic() - begun > patience.total_seconds():
                raise ProcessError(f"{waited}: {_absent(store, places)} did not come")
            time.sleep(0.05)
    except dist.DistError:
        raise ProcessError("the process that kept the meeting place has ended") from None
    return store


def _absent(store: dist.Store, places: list[str]) -> str:
    absent = [place.removeprefix("here/") for place in places if not store.check([place])]
    return f"process {', '.join(absent)} of {len(places)}"


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Context in which SIGTERM and Ctrl-C end the process at once, as no Python code is running."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, signal.SIG_DFL) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def stop() -> None:
    """Leave the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


# ---- collective operations -----------------------------------------------------------------------


def sum_over_processes(tensor: Tensor, what: str = "sum") -> Tensor:
    """Sum a CPU tensor over all processes, in place; `what` names the sum in error messages."""
    if count() > 1:
        _agree(f"{what} {tensor.dtype} {list(tensor.shape)}")
        _finish(lambda: dist.all_reduce(tensor, async_op=True))
    return tensor


def smallest(number: int, what: str = "smallest") -> int:
    """Smallest number of all processes, for settings that depend on each one's free memory."""
    return -largest(-number, what)


def largest(number: int, what: str = "largest") -> int:
    """Largest number of all processes."""
    if count() == 1:
        return number
    _agree(what)
    agreed = torch.tensor(number)
    _finish(lambda: dist.all_reduce(agreed, op=dist.ReduceOp.MAX, async_op=True))
    return int(agreed)


def decided_by_first(decide: Callable[[], T], what: str) -> T:
    """Result of `decide` in the first process, for all processes, because files can change.

    A `UserError` or an `OSError` in the first process is raised in all of them.
    """
    if count() == 1:
        return decide()
    outcome: tuple[T | None, Exception | None] = (None, None)
    if is_first():
        try:
            outcome = (decide(), None)
        except (UserError, OSError) as error:
            outcome = (None, error)
    result, failure = _from_first(outcome, what)
    if failure is not None:
        raise failure
    return result


def wait_for_all(what: str = "wait") -> None:
    """Wait until every process is here."""
    if count() > 1:
        _agree(what)


def is_first_to_fail() -> bool:
    """Whether no other process has failed before, so that a common error is printed only once."""
    if not dist.is_initialized():
        return True
    try:
        return dist.distributed_c10d._get_default_store().add("failures", 1) == 1
    except RuntimeError:  # the process that kept the count has ended
        return False


def _from_first(value: Any, what: str) -> Any:
    """A Python object of the first process (of this same run: nothing is read from a file)."""
    _agree(what)
    content = pickle.dumps(value) if is_first() else b""
    length = torch.tensor(len(content))
    _finish(lambda: dist.broadcast(length, src=0, async_op=True))
    buffer = torch.empty(int(length), dtype=torch.uint8)
    if is_first():
        buffer = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    _finish(lambda: dist.broadcast(buffer, src=0, async_op=True))
    return pickle.loads(buffer.numpy().tobytes())


def _agree(what: str) -> None:
    """Wait for all processes, and check that they are at the same step.

    Raises:
        ProcessError: they are not; the message says where each is.
    """
    mine = torch.frombuffer(bytearray(what.encode()[:TAG].ljust(TAG)), dtype=torch.uint8)
    tags = [torch.empty_like(mine) for _ in range(count())]
    _finish(lambda: dist.all_gather(tags, mine, async_op=True))
    names = [bytes(tag.tolist()).decode(errors="replace").strip() for tag in tags]
    if len(set(names)) > 1:
        paths = "; ".join(f"{number}: {name}" for number, name in enumerate(names))
        raise ProcessError(f"the processes are at different steps ({paths[:200]}); restart them")


def _finish(begin: Callable[[], Any]) -> None:
    """Run a collective operation, waiting in Python code so that a signal can end the wait.

    Raises:
        ProcessError: another process has ended.
    """
    try:
        work, pause = begin(), 0.0005
        while not work.is_completed():
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        work.wait()
    except RuntimeError as error:
        raise ProcessError("another process ended, so this run cannot go on") from error

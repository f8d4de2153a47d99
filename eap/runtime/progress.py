"""Progress of a run: a bar in a terminal or a notebook, and a few lines elsewhere."""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeVar

from tqdm import tqdm

from eap.runtime import processes

T = TypeVar("T")

# Without a terminal, at most one line is printed in this many seconds, for all bars together.
SECONDS_PER_LINE = 30.0
LONG = 10.0
"""Seconds after which work without a bar prints that it is still running."""
_last_line = -SECONDS_PER_LINE


def say(message: str = "") -> None:
    """Print a message, from the first process only."""
    if processes.is_first():
        print(message, flush=True)


def duration(seconds: float) -> str:
    """Duration in words, with a suitable unit."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def progress_bar(
    items: Sequence[T],
    what: str,
    *,
    quiet: bool,
    done: int = 0,
    note: Callable[[], str] | None = None,
) -> Iterable[T]:
    """Iterate over `items`, with progress, rate and remaining time on standard error.

    Nothing is printed if `quiet`, or in any process but the first.

    Args:
        items: items to iterate over.
        what: name of the items.
        quiet: whether to print nothing.
        done: number of items that an earlier run has finished before these.
        note: function that returns further text (such as the loss), called at every print.
    """
    if quiet or not processes.is_first() or sys.stderr is None:
        return items
    make_bar = _bar_of(sys.stderr)
    if make_bar is None:
        return _with_lines(items, what, done, note)
    bar = make_bar(
        items,
        desc=what,
        initial=done,
        total=done + len(items),
        file=sys.stderr,
        dynamic_ncols=True,
        leave=None,  # the outermost bar stays; bars inside it are removed
    )
    return bar if note is None else _with_note(bar, note)


@contextmanager
def said_when_long(what: str) -> Iterator[None]:
    """Print that work goes on, and how long it took, if it takes more than `LONG` seconds."""

    def tell(words: str) -> None:
        if sys.stderr is not None:
            print(f"{what}: {words}", file=sys.stderr, flush=True)

    begun = time.monotonic()
    timer = threading.Timer(LONG, tell, ["still at work"])
    timer.daemon = True
    if processes.is_first():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
    if processes.is_first() and time.monotonic() - begun >= LONG:
        tell(f"done in {duration(time.monotonic() - begun)}")


def _bar_of(stream: Any) -> "type[tqdm[Any]] | None":
    """Class of the bar for a stream; in a notebook, a widget if widgets are installed."""
    if stream.isatty():
        return tqdm
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if type(shell).__name__ != "ZMQInteractiveShell":
        return None
    if find_spec("ipywidgets") is None:
        return tqdm
    widget: type[tqdm[Any]] = import_module("tqdm.notebook").tqdm  # this import takes a second
    return widget


def _with_note(bar: "tqdm[T]", note: Callable[[], str]) -> Iterator[T]:
    """Iterate over a bar, and show a note after every item."""
    for item in bar:
        yield item
        bar.set_postfix_str(note(), refresh=False)


def _with_lines(
    items: Sequence[T], what: str, done: int, note: Callable[[], str] | None
) -> Iterator[T]:
    """Iterate with progress in plain lines, for logs."""
    global _last_line
    begun, total, spoken = time.monotonic(), done + len(items), False
    for number, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        long = now - begun >= SECONDS_PER_LINE / 2  # short work prints nothing
        ends = spoken and number == len(items)
        if ends or (long and now - _last_line >= SECONDS_PER_LINE):
            rate = number / max(now - begun, 1e-9)
            speed = f"{rate:.1f} per second" if rate >= 1 else f"{1 / rate:.1f} s each"
            remaining = (len(items) - number) / rate
            end = f"{duration(remaining)} left" if remaining else f"in {duration(now - begun)}"
            at = f"{done + number:,}/{total:,} ({(done + number) / total:.0%})"
            more = "" if note is None else f", {note()}"
            print(f"{what}: {at}, {speed}, {end}{more}", file=sys.stderr, flush=True)
            _last_line, spoken = now, True

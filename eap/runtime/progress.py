"""Progress bars: on a terminal or in a log, with a rate and an end time; silent if asked."""

import sys
from collections.abc import Iterable, Sequence
from typing import TypeVar

from tqdm import tqdm

from eap.runtime import processes

T = TypeVar("T")


def progress_bar(items: Sequence[T], what: str, *, quiet: bool, done: int = 0) -> Iterable[T]:
    """`items`, with a bar on standard error unless `quiet` or in another process than the first.

    `done` items came before these, in an earlier run.
    """
    return tqdm(
        items,
        desc=what,
        initial=done,
        total=done + len(items),
        disable=quiet or not processes.is_first(),
        file=sys.stderr,
        dynamic_ncols=True,
    )

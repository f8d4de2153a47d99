"""Progress bars: on a terminal or in a log, with a rate and an end time; silent if asked."""

import sys
from collections.abc import Iterable, Sized
from typing import Any, TypeVar

from tqdm import tqdm

from eap import processes

T = TypeVar("T")


def progress_bar(items: Iterable[T], what: str, *, quiet: bool, **options: Any) -> Iterable[T]:
    """`items`, with a bar on standard error unless `quiet` or in another process than the first."""
    total = len(items) if isinstance(items, Sized) else None
    return tqdm(
        items,
        desc=what,
        total=total,
        disable=quiet or not processes.is_first(),
        file=sys.stderr,
        dynamic_ncols=True,
        **options,
    )

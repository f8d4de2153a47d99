"""Resources of a run, passed together: batch size, memory and whether to be quiet."""

from dataclasses import dataclass
from typing import TypedDict

from eap.runtime.ranges import whole


class ResourceOptions(TypedDict, total=False):
    """Keyword arguments that every verb takes (see `Resources`)."""

    batch_size: int | None
    memory_budget: int | None
    quiet: bool


@dataclass(frozen=True)
class Resources:
    """Resources that a run may use.

    Attributes:
        batch_size: number of examples at a time; None: as many as the budget allows, and at most
            this process's share of the data set.
        memory_budget: memory budget in bytes, not counting the weights; None: half of the free
            memory.
        quiet: whether to hide the progress bar.

    Raises:
        UserError: a number out of range.
    """

    batch_size: int | None = None
    memory_budget: int | None = None
    quiet: bool = True

    def __post_init__(self) -> None:
        for name in ("batch_size", "memory_budget"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, whole(name, value))

"""Progress of a long run, kept on disk so that the run can be stopped at any moment and go on.

A checkpoint is one file: the sums so far, how many units of work they hold, and what the run is.
Units are worked on in one fixed order and sums are kept in float64, so a continued run ends with
the very numbers of an undisturbed one.
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import Float64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from eap.errors import UserError
from eap.runtime import distributed
from eap.runtime.atomic import write_atomically


@dataclass
class Checkpoint:
    """Where progress is kept and what it belongs to.

    Attributes:
        path: of the file; each process has its own, with its rank in the name.
        identity: what the run is (model, task, data, settings, versions); must be JSON.
        seconds: how often to write at most.
    """

    path: Path
    identity: dict[str, Any]
    seconds: float = 10.0
    _written: float = field(default_factory=time.monotonic)

    @property
    def own_path(self) -> Path:
        """The file of this process."""
        if distributed.count() == 1:
            return self.path
        name = f"{self.path.stem}-{distributed.rank()}of{distributed.count()}{self.path.suffix}"
        return self.path.with_name(name)

    def setting(self, name: str) -> int | None:
        """A number of the interrupted run (on any process): what depended on its free memory."""
        path = self.own_path
        number = self._read(path)[0]["identity"].get(name, 0) if path.exists() else 0
        return distributed.largest(number) or None

    def resume(self, totals: Float64[Tensor, "..."]) -> int:
        """Fill `totals` from the file and return how many units it holds; 0 if there is none.

        Raises:
            UserError: the file belongs to another run; says what differs.
        """
        path = self.own_path
        if not path.exists():
            return 0
        header, saved = self._read(path)
        if header["identity"] != self._identity():
            mine, other = self._identity(), header["identity"]
            keys = sorted(key for key in {*mine, *other} if mine.get(key) != other.get(key))
            differing = ", ".join(
                f"{key} {other.get(key)!r} (now {mine.get(key)!r})" for key in keys
            )
            raise UserError(
                f"{path} holds the progress of another run: {differing}; finish it, or delete "
                "the file to start this one anew"
            )
        totals.copy_(saved)
        return header["done"]

    @staticmethod
    def _read(path: Path) -> tuple[dict[str, Any], Tensor]:
        """What the file is of, and its sums."""
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads(file.metadata()["progress"])
                return header, file.get_tensor("totals")
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} is not a checkpoint ({error}); delete it to start anew"
            ) from None

    def save(self, totals: Float64[Tensor, "..."], done: int) -> None:
        """Write the progress, unless the last time was less than `seconds` ago."""
        if time.monotonic() - self._written < self.seconds:
            return
        header = {"identity": self._identity(), "done": done}
        with write_atomically(self.own_path) as temporary:
            temporary.write_bytes(
                save({"totals": totals}, metadata={"progress": json.dumps(header)})
            )
        self._written = time.monotonic()

    def delete(self) -> None:
        """Remove the file: the run is complete and its results are written."""
        self.own_path.unlink(missing_ok=True)

    def _identity(self) -> dict[str, Any]:
        # As it comes back from a file (tuples become lists).
        return json.loads(json.dumps({**self.identity, "processes": distributed.count()}))

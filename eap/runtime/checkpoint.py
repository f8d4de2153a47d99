"""Checkpoints: progress of a long run on disk, so that the run can stop and resume at any time.

A checkpoint is one file with the sums so far, the number of units of work in the sums, the identity
of the run, and a hash of these. Units are processed in a fixed order and sums are kept in float64,
so a resumed run gives exactly the numbers of an uninterrupted one.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import Float64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from eap.runtime import distributed
from eap.runtime.atomic import write_atomically
from eap.runtime.errors import UserError

UNREADABLE = (SafetensorError, OSError, KeyError, TypeError, ValueError)
ANEW = "delete it, or give --overwrite, to start again"


def checkpoint_file(folder: Path, name: str, identity: Mapping[str, Any]) -> Path:
    """Path `<folder>/<name>-<hash of the identity>.part.safetensors`, different for every run."""
    text = json.dumps(identity, sort_keys=True, default=str)
    return folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.part.safetensors"


@dataclass
class Checkpoint:
    """File that keeps the progress of a run, with the identity of the run.

    Attributes:
        path: path of the file; each process has its own file, with its rank in the name.
        identity: identity of the run (model, task, data, settings, versions) as JSON values.
        seconds: shortest time between two writes.
        overwrite: whether to remove a damaged file, instead of raising an error.
    """

    path: Path
    identity: dict[str, Any]
    seconds: float = 10.0
    overwrite: bool = False
    _written: float = field(default_factory=time.monotonic)

    @property
    def own_path(self) -> Path:
        """Path of the file of this process."""
        if distributed.count() == 1:
            return self.path
        name = f"{self.path.stem}-{distributed.rank()}of{distributed.count()}{self.path.suffix}"
        return self.path.with_name(name)

    def setting(self, name: str) -> int | None:
        """Setting of the interrupted run (in any process) that depended on free memory, or None."""
        header = self._header()
        number = 0 if header is None else header["identity"].get(name, 0)
        return distributed.largest(number, f"setting {name}") or None

    def resume(self, totals: Float64[Tensor, "..."], n_units: int | None = None) -> int:
        """Fill `totals` from the file and return the number of units in them; 0 without a file.

        Args:
            totals: sums over units, on the CPU.
            n_units: number of all units.

        Raises:
            UserError: the file is damaged, or belongs to another run; the message says what
                differs.
        """
        path, header = self.own_path, self._header()
        if header is None:
            return 0
        if header["identity"] != self._identity():
            mine, other = self._identity(), header["identity"]
            keys = sorted(key for key in {*mine, *other} if mine.get(key) != other.get(key))
            differing = ", ".join(
                f"{key} {repr(other.get(key))[:50]} (now {repr(mine.get(key))[:50]})"
                for key in keys
            )
            raise UserError(
                f"{path} holds the progress of another run: {differing[:250]}; finish it, or "
                "delete the file to start this run again"
            )
        saved = self._totals()
        problem = None
        if saved is None or saved.shape != totals.shape or header["sha256"] != _hash(header, saved):
            problem = "its contents are not what was written"
        elif not 0 <= header["done"] <= (header["done"] if n_units is None else n_units):
            problem = f"{header['done']} of {n_units} units done"
        elif not saved.isfinite().all():
            problem = "it holds numbers that are not finite"
        if saved is None or problem is not None:
            self._refuse(str(problem))
            return 0
        totals.copy_(saved)
        return header["done"]

    def save(self, totals: Float64[Tensor, "..."], done: int) -> None:
        """Write the progress, unless the last write was less than `seconds` ago.

        Raises:
            UserError: another run keeps its progress in the file, or a sum is not finite.
        """
        if time.monotonic() - self._written < self.seconds:
            return
        if not totals.isfinite().all():
            raise UserError(
                f"after {done} units of work some sums are not finite: the metric or the weights "
                "give infinity or NaN"
            )
        if self._is_of_another():
            raise UserError(
                f"{self.own_path} is written to by another run; give this one another --output"
            )
        header = {"identity": self._identity(), "done": done}
        header["sha256"] = _hash(header, totals)
        with write_atomically(self.own_path) as temporary:
            temporary.write_bytes(
                save({"totals": totals}, metadata={"progress": json.dumps(header)})
            )
        self._written = time.monotonic()

    def delete(self) -> None:
        """Remove the file of a finished run, unless it belongs to another run."""
        if not self._is_of_another():
            self.own_path.unlink(missing_ok=True)

    # ---- the file --------------------------------------------------------------------------------

    def _header(self) -> dict[str, Any] | None:
        """Header of the file; None if there is no file."""
        if not self.own_path.exists():
            return None
        reason = "its header is another"
        try:
            header = self._read_header()
            kinds = [(header["identity"], dict), (header["done"], int), (header["sha256"], str)]
            if all(type(value) is kind for value, kind in kinds):
                return header
        except UNREADABLE as error:
            reason = f"{type(error).__name__}: {error}"
        self._refuse(reason)
        return None

    def _read_header(self) -> Any:
        with safe_open(self.own_path, framework="pt") as file:
            return json.loads(file.metadata()["progress"])

    def _totals(self) -> Tensor | None:
        try:
            with safe_open(self.own_path, framework="pt") as file:
                return file.get_tensor("totals")
        except (SafetensorError, OSError, ValueError):
            return None

    def _refuse(self, reason: str) -> None:
        """Raise an error about a damaged file; with `overwrite`, remove the file instead."""
        if self.overwrite and self.own_path.is_file():
            self.own_path.unlink()
            return
        raise UserError(f"{self.own_path} is not a checkpoint ({reason[:150]}); {ANEW}")

    def _is_of_another(self) -> bool:
        """Whether another run keeps its progress in the file, now or to resume later.

        The comparison ignores keys of the file that this run does not set.
        """
        try:
            said = self._read_header()["identity"]
            return any(said.get(key) != value for key, value in self._identity().items())
        except (*UNREADABLE, AttributeError):
            return False

    def _identity(self) -> dict[str, Any]:
        # Compare in the form that a file gives back (tuples become lists).
        return json.loads(json.dumps({**self.identity, "processes": distributed.count()}))


def _hash(header: Mapping[str, Any], totals: Tensor) -> str:
    """Hash of the run's identity, its progress and its sums."""
    text = json.dumps([header["identity"], header["done"], list(totals.shape)], sort_keys=True)
    digest = hashlib.sha256(text.encode())
    digest.update(totals.contiguous().numpy().data)
    return digest.hexdigest()

"""Atomic writing: files are written whole or not at all, and errors name the file."""

import errno
import hashlib
import os
import platform
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from eap.runtime.errors import UserError, quoted

# .<name>.<machine>.<process>.<random>.tmp: hidden, and with a suffix that no reader looks for.
_TEMPORARY = re.compile(r"\..*\.(?P<machine>[0-9a-f]{8})\.(?P<process>\d+)\.[^.]*\.tmp")


@contextmanager
def write_atomically(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block ends without an error.

    Missing parent folders are created. After an error or Ctrl-C, the temporary file is removed, and
    an earlier `path` is untouched. Temporary files of killed processes in the same folder are
    removed, too. The block must write to the temporary path itself: a file that it renames there
    (as safetensors' `save_file` does) could be left behind under an unknown name.

    Raises:
        OSError: the disk is full, the folder is read-only, or `path` is a folder; the error names
            `path`.
    """
    path = Path(path)
    if "\0" in str(path) or re.match(r"[a-z][a-z0-9+.-]+:/", str(path)):
        raise UserError(f"{quoted(str(path))} cannot be written: it is not a path in a file system")
    with _naming(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(path.parent)
        prefix = f".{path.name[:80]}.{_machine()}.{os.getpid()}."
        handle, name = tempfile.mkstemp(prefix=prefix, suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with _naming(path, temporary):
            yield temporary
            with temporary.open("rb") as file:  # reach the disk before the file gets its name
                os.fsync(file.fileno())
            # mkstemp makes files private; results are meant to be shared like any other file.
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_stale(folder: Path) -> None:
    """Remove the temporary files in a folder whose processes, on this machine, have ended."""
    for path in folder.glob(".*.tmp"):
        match = _TEMPORARY.fullmatch(path.name)
        if match and match["machine"] == _machine() and not _alive(int(match["process"])):
            with suppress(OSError):
                path.unlink()


@contextmanager
def _naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Make errors of the operating system name the file that could not be written.

    An error that already names a file other than the temporary one is left unchanged.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None and str(error.filename) != str(temporary):
            raise
        reason = error.strerror or str(error)
        raise OSError(error.errno or errno.EIO, reason, str(path)) from error


@cache
def _machine() -> str:
    """Identity of the place where process numbers are valid: host, boot and process namespace."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        parts.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # the process belongs to another user
        return True
    return True

"""Files are written whole or not at all, and what cannot be written is named."""

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

# .<name>.<machine>.<process>.<random>.tmp: hidden, and with an ending that no reader looks for.
_TEMPORARY = re.compile(r"\..*\.(?P<machine>[0-9a-f]{8})\.(?P<process>\d+)\.[^.]*\.tmp")


@contextmanager
def write_atomically(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block ends without an error.

    Missing parent directories are made. After an error or Ctrl-C the temporary file is removed and
    an earlier `path` is untouched. What a killed process left in the folder is removed. The block
    must write to the path itself: what it renames there (as safetensors' `save_file` does) could be
    left behind under a name that nobody knows.

    Raises:
        OSError: the disk is full, the folder read-only, `path` a directory; it names `path`.
    """
    path = Path(path)
    if "\0" in str(path) or re.match(r"[a-z][a-z0-9+.-]+:/", str(path)):
        raise UserError(f"{quoted(str(path))} cannot be written: it is no path of a file system")
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
            with temporary.open("rb") as file:  # on the disk before it has its name
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
    """Remove the temporary files in a folder whose processes, on this machine, are gone."""
    for path in folder.glob(".*.tmp"):
        match = _TEMPORARY.fullmatch(path.name)
        if match and match["machine"] == _machine() and not _alive(int(match["process"])):
            with suppress(OSError):
                path.unlink()


@contextmanager
def _naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Let errors of the system say which file could not be written.

    An error that already names another file than the temporary one is left as it is.
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
    """Where the numbers of processes mean something: host, boot and process namespace."""
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
    except OSError:  # it is another person's
        return True
    return True

"""How Ctrl-C and a plain `kill` end a run: temporary files are removed on the way out."""

import os
import signal
import threading
from types import FrameType

LATER = 0.02
"""Seconds until a signal that came during an import is tried again."""


def end_between_imports() -> None:
    """Let SIGINT raise KeyboardInterrupt and SIGTERM SystemExit(143), but not while importing.

    An exception that is raised while a C++ library starts aborts the whole process.
    """
    for number, error in (
        (signal.SIGINT, KeyboardInterrupt()),
        (signal.SIGTERM, SystemExit(143)),
    ):
        signal.signal(number, _raising(error))


def _raising(error: BaseException) -> "signal._HANDLER":
    def end(number: int, frame: FrameType | None) -> None:
        if not _is_importing(frame):
            raise error
        again = threading.Timer(LATER, os.kill, [os.getpid(), number])
        again.daemon = True
        again.start()

    return end


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_globals.get("__name__") == "importlib._bootstrap":
            return True
        frame = frame.f_back
    return False

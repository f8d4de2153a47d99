"""Handling of Ctrl-C and `kill`: a run that is ended removes its temporary files."""

import os
import signal
import threading
from types import FrameType

LATER = 0.02
"""Seconds after which a signal that came during an import is sent again."""


def end_between_imports() -> None:
    """Make SIGINT raise KeyboardInterrupt and SIGTERM raise SystemExit(143), except in imports.

    An exception that is raised while a C++ library loads would abort the whole process.
    """
    for number, error in ((signal.SIGINT, KeyboardInterrupt()), (signal.SIGTERM, SystemExit(143))):
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

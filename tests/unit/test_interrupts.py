"""A signal ends a run between imports, not in one, where C++ libraries would abort."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

SLOW = "import os, signal, time; os.kill(os.getpid(), {number}); time.sleep(0.1); whole = True"
MAIN = """
import sys
from eap.runtime.interrupts import end_between_imports
end_between_imports()
try:
    import slow
    import time
    time.sleep(60)
finally:
    print("whole" if hasattr(sys.modules.get("slow"), "whole") else "cut")
"""


@pytest.mark.parametrize(
    ("number", "statuses"), [(signal.SIGTERM, (143,)), (signal.SIGINT, (130, -signal.SIGINT))]
)
def test_an_import_is_ended_before_the_run_is(tmp_path, number, statuses):
    (tmp_path / "slow.py").write_text(SLOW.format(number=int(number)))
    done = subprocess.run(
        [sys.executable, "-c", MAIN], cwd=tmp_path, capture_output=True, text=True, timeout=50,
        check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "whole"
    assert done.returncode in statuses


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
def test_elsewhere_it_ends_at_once(number, error):
    from eap.runtime.interrupts import end_between_imports

    before = [signal.getsignal(own) for own in (signal.SIGTERM, signal.SIGINT)]
    try:
        end_between_imports()
        with pytest.raises(error):
            signal.raise_signal(number)
    finally:
        for own, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
            signal.signal(own, handler)

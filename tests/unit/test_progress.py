"""Bars on a real terminal, and plain lines where there is none."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from itertools import pairwise

import pytest
from running import ROOT

import eap
from eap.runtime import progress

NESTED = """
from eap.runtime.progress import progress_bar, say
for _ in progress_bar(range(3), "outer", quiet=False):
    for _ in progress_bar(range(4), "inner", quiet=False):
        for _ in progress_bar(range(5), "innermost", quiet=False):
            pass
say("done")
"""


def on_a_terminal(code: str, columns: int = 80) -> list[str]:
    """What a terminal shows when some Python has run on it, line by line."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, stdout=its, stderr=its, env=environment)
    os.close(its)
    written = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # how Linux says that the other end is closed
            part = b""
        if not part:
            break
        written += part
    os.close(ours)
    assert process.wait() == 0
    return render(written.decode())


def render(written: str) -> list[str]:
    """A terminal's lines: of its language, carriage return, line feed and cursor up."""
    lines, row, column = [""], 0, 0
    rest = written.replace("\x1b[A", "\x00")
    for letter in rest:
        if letter == "\x00":
            row -= 1
        elif letter == "\r":
            column = 0
        elif letter == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        else:
            lines[row] = lines[row].ljust(column)[:column] + letter + lines[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]


def test_nested_bars_leave_one_line_on_a_terminal():
    lines = [line for line in on_a_terminal(NESTED) if line]
    assert len(lines) == 2, lines
    assert lines[0].startswith("outer: 100%")
    assert "3/3" in lines[0]
    assert "it/s" in lines[0]
    assert lines[1] == "done"


@pytest.mark.parametrize("seconds", [1.0, 7.0, 40.0])
def test_lines_are_at_least_thirty_seconds_apart(seconds, monkeypatch, capsys):
    now, spoken = [1000.0], []
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "_last_line", -progress.SECONDS_PER_LINE)
    for _ in progress.progress_bar(range(4), "outer", quiet=False):
        for _ in progress.progress_bar(range(30), "inner", quiet=False):
            now[0] += seconds
            if said := capsys.readouterr().err:
                spoken.append((now[0], said))
    said = [text for _, texts in spoken for text in texts.splitlines()]
    assert len(said) >= 2
    assert all("left" in text or " in " in text for text in said)
    kept = [when for when, text in spoken if "left" in text]  # the others are ends
    assert all(later - earlier >= 30 for earlier, later in pairwise(kept))
    assert len(said) <= (now[0] - 1000) / 30 + 5  # a bar that has spoken says its end, too


def test_the_librarys_bars_are_only_on_terminals():
    code = (
        "import eap; model = eap.load_model('toy'); import transformers.utils.logging as logs;"
        "assert logs.is_progress_bar_enabled()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False,
        env={k: v for k, v in os.environ.items() if k != "HF_HUB_DISABLE_PROGRESS_BARS"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "%" not in done.stderr


def test_long_work_without_a_bar_says_that_it_goes_on_and_short_work_nothing(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LONG", 0.05)
    with progress.said_when_long("loading 'gpt2'"):
        time.sleep(0.2)
    said = capsys.readouterr().err.splitlines()
    assert said == ["loading 'gpt2': still at work", "loading 'gpt2': done in 0 s"]
    with progress.said_when_long("loading 'toy'"):
        pass
    time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_a_load_that_takes_long_says_so(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LONG", 0.0)
    eap.load_model("toy")
    assert "loading 'toy': done in" in capsys.readouterr().err

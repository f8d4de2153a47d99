"""benchmarks/gpu.py and large.py on the CPU and a tiny shape: every row is there, with numbers."""

from __future__ import annotations

import re

import torch
from running import call

from eap.methods import METHODS


def test_every_row_is_measured(capfd):
    options = ("--shapes", "tiny", "--device", "cpu", "--pairs", 2, "--repeats", 1)
    assert call("benchmarks/gpu.py", *options) == 0
    rows = dict(re.findall(r"^\| (.+?) \| ([\d.e+]+) \(", capfd.readouterr().out, re.MULTILINE))
    assert set(rows) == {
        *(set(METHODS) - {"exact"}),
        *("one circuit", "a circuit of 20", "exact, an edge", "MAttr, a step"),
    }
    assert all(float(ratio) > 0 for ratio in rows.values())


def test_without_a_gpu_it_says_so(capfd, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert call("benchmarks/gpu.py") == 2
    assert "no CUDA device is here; give --device cpu" in capfd.readouterr().err


def test_memory_that_was_seen_stands_beside_what_was_promised(capfd):
    options = ("--shapes", "tiny", "--dtypes", "float32", "--budgets", 0.5, "--pairs", 2)
    assert call("benchmarks/large.py", *options) == 0
    pattern = r"^\| (.+?) \| 0\.5 \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$"
    rows = re.findall(pattern, capfd.readouterr().out, re.MULTILINE)
    names = [name for name, *_ in rows]
    assert names[:4] == ["EAP", "EAP-IG, 5 points", "one circuit", "20 circuits"]
    assert names[4].endswith("exact edges")
    assert names[5:] == ["one step of a learned ranking"]
    assert all(0 < float(promised) <= 0.5 for *_, promised, _ in rows)


def test_a_budget_that_is_too_small_is_a_row_of_its_own(capfd):
    options = "--shapes tiny --dtypes float32 --budgets 0.0002 --pairs 2".split()
    assert call("benchmarks/large.py", *options) == 0
    assert "| EAP | 0.0002 | refused: a memory budget of" in capfd.readouterr().out

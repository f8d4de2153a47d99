"""The campaign of kills itself, in the small: it passes, and it sees what is wrong."""

from __future__ import annotations

import chaos
import running


def test_a_script_survives_three_kills(capsys, monkeypatch):
    monkeypatch.setattr(chaos, "launch", running.start)  # `make chaos` kills imports, too
    assert chaos.main(["--n", "3", "--only", "pareto_big.py"]) == 0
    out = capsys.readouterr().out
    assert "| pareto_big.py | 1 |" in out
    assert "nothing found" in out


def test_what_is_left_or_differs_is_found(tmp_path):
    expected = {"a.json": b"{}", "b.csv": b"x\n1\n"}
    found = {"a.json": b"{ }", "c.tmp": b""}
    assert chaos.differences(found, expected) == [
        "b.csv is missing",
        "c.tmp is left behind",
        "a.json differs",
    ]
    (tmp_path / "half.json").write_text('{"a": ')
    (tmp_path / "half.csv").write_text("x\n1")
    (tmp_path / "whole.csv").write_text("x\n1\n")
    assert sorted(chaos.broken(tmp_path)) == ["half.csv", "half.json"]

"""Figures of tables load no model library, and a figure script's --help no torch at all."""

from __future__ import annotations

import subprocess
import sys

from models import fabricated
from running import FIGURES, ROOT

SCRIPTS = """
import contextlib, io, runpy, sys
for script in {scripts!r}:
    path = {root!r} + "/" + script
    sys.argv, sys.path[0] = [path, *{options!r}], path.rsplit("/", 1)[0]
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as end:
            assert not end.code, script
    loaded = {{"torch", "transformers", "transformer_lens"}} & {{*sys.modules}}
    assert not loaded, (script, loaded)
"""


UNSAVED = """
from matplotlib.figure import Figure
Figure.savefig = lambda self, path, **_: path.touch()
"""
"""Figures are made, but not rendered, which loads nothing of ours and takes most of the time."""


def run(scripts, options, before=""):
    code = SCRIPTS.format(scripts=scripts, root=str(ROOT), options=options)
    path = f"{before}import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", path + code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_help_loads_no_torch():
    run([script for script in FIGURES if "paper" not in script], ["--help"])


def test_drawing_tables_loads_no_torch(tmp_path):
    fabricated.fabricate_curves(tmp_path, "small")
    fabricated.fabricate_ig_test(tmp_path, "small", ["ioi", "greater-than"])
    fabricated.fabricate_cross_task(tmp_path, "small")
    drawn = ("pareto/", "real_pareto", "ig_test", "cross-task", "first_figure", "report")
    scripts = [script for script in FIGURES if any(part in script for part in drawn)]
    run(scripts, ["--model", "small", "--output", str(tmp_path)], before=UNSAVED)

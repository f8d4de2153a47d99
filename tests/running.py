"""Running the scripts as a person does: in this process (quick), in a fork, or in their own."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import forked

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = (
    "pareto.py",
    "pareto_big.py",
    "get_real_values.py",
    "overlap_heatmaps.py",
    "all_cross_task_faithfulness.py",
    "test_ig_iterations.py",
    "positions.py",
    "stability.py",
    "parts.py",
)
FIGURES = tuple(
    sorted(
        str(path.relative_to(ROOT))
        for path in (ROOT / "results").rglob("*.py")
        if path.name != "manual_overlap.py"  # shared by the two scripts beside it
    )
)


def call(script: str, *arguments: object) -> int:
    """Run a script in this process, as `python script ...` would; its exit status."""
    path = ROOT / script
    before = sys.argv, list(sys.path)
    sys.argv = [str(path), *map(str, arguments)]
    sys.path.insert(0, str(path.parent))
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv, sys.path[:] = before
    return 0


def start(script: object, *arguments: object, cwd: Path) -> forked.Forked:
    """Start a script in a fork: `start("pareto.py", "--task", "ioi", cwd=...)`."""
    return forked.start(ROOT / str(script), *arguments, cwd=cwd)


def start_together(n: int, script: object, *arguments: object, cwd: Path) -> forked.Forked:
    """Start a script in `n` forks, as `torchrun` does."""
    return forked.start(*_torchrun(n), ROOT / str(script), *arguments, cwd=cwd)


def launch(*command: object, cwd: Path) -> subprocess.Popen[str]:
    """Start a script in a process of its own, with all its imports."""
    return _launch([], *command, cwd=cwd)


def torchrun(n: int, *command: object, cwd: Path) -> subprocess.Popen[str]:
    """Start a script in `n` processes, with all their imports."""
    return _launch(_torchrun(n), *command, cwd=cwd)


def _torchrun(n: int) -> list[str]:
    return ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n)]


def _launch(
    before: list[str], script: object, *arguments: object, cwd: Path
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *before, str(ROOT / str(script)), *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Started by a shell in the background, tests would hand down a Ctrl-C that is turned off.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def files_below(folder: Path) -> set[str]:
    """Names of all files below a folder, hidden and temporary ones included."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}

"""Run one script of the workflow, and record the files that it wrote.

    python workflow/step.py <written files>... <stamp> -- <script> <arguments>...

The script ends with the workflow, even if the workflow is killed. The stamp has the command and a
hash of every written file, so that a file that was changed later is detected and made again.
"""

import ctypes
import hashlib
import json
import runpy
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PR_SET_PDEATHSIG = 1


def main() -> None:
    """Run the script that the command line names."""
    end_with_parent()
    split = sys.argv.index("--")
    *written, stamp = map(Path, sys.argv[1:split])
    command = sys.argv[split + 1 :]
    script = REPOSITORY / command[0]
    sys.argv = [str(script), *command[1:]]
    sys.path[:1] = [str(script.parent), str(REPOSITORY)]
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
    if missing := [str(path) for path in written if not path.is_file()]:
        sys.exit(f"error: {command[0]} did not write {', '.join(missing)}")
    stamp.parent.mkdir(parents=True, exist_ok=True)
    text = {"command": command, "wrote": {str(path): _state(path) for path in written}}
    stamp.write_text(json.dumps(text, indent=1) + "\n", encoding="utf8")


def forget_changed(stamps: Iterable[str]) -> None:
    """Delete the stamps of jobs whose files, below the working directory, have been changed."""
    for stamp in map(Path, stamps):
        try:
            wrote = json.loads(stamp.read_text(encoding="utf8"))["wrote"]
            changed = any(_state(Path(path)) != state for path, state in wrote.items())
        except FileNotFoundError:
            continue
        except (ValueError, KeyError, TypeError):
            changed = True
        if changed:
            stamp.unlink()


def end_with_parent() -> None:
    """Ask the system (Linux only) to end this process when its parent process ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _state(path: Path) -> str | None:
    """Hash of a file (times are no use, because Snakemake resets them); None if it is missing."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


if __name__ == "__main__":
    main()

"""Paths of all files; the only module that turns a model or a task into a folder or file name.

    graphs/<model>/<name>.json             (.safetensors for graphs of over half a million edges)
    results/<study>/<model>/csv/<name>.csv
    results/<study>/<model>/{png,pdf}/<name>
    results/<model>/model.json             identity of the model

<model> is the part of the model's name after the last slash, without `.gguf`; for a directory, the
name of the directory. Loads no torch.
"""

import json
import os
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eap.runtime.atomic import write_atomically
from eap.runtime.errors import UserError, quoted
from eap.runtime.home import from_home
from eap.runtime.identity import NOT_OF_A_MODEL

_ABOVE_PACKAGE = Path(__file__).resolve().parents[2]
IN_CHECKOUT = (_ABOVE_PACKAGE / "pyproject.toml").is_file()

ROOT = _ABOVE_PACKAGE if IN_CHECKOUT else Path.cwd()
"""Default of `--output`: the checkout if there is one, otherwise the working directory."""

LONGEST = 100

# A graph with more edges is saved as safetensors, because the JSON file would exceed 50 MB.
JSON_EDGES = 500_000


# ---- names ---------------------------------------------------------------------------------------


def model_name(model: str) -> str:
    """Folder name of a model: the part of its name after the last slash.

    Relative paths such as `.` and `..` give the name of the directory that they point to.

    Raises:
        UserError: the name is not valid for a folder.
    """
    if not model.strip():
        return _component(model, "model", model)
    try:
        path = from_home(model)
        name = path.resolve().name if path.name in ("", ".", "..") else path.name
    except (OSError, RuntimeError, ValueError):
        name = model
    return _component(name.removesuffix(".gguf"), "model", model)


def task_name(task: str) -> str:
    """Return the name of a task if it is valid in file names.

    Raises:
        UserError: the name is empty or too long, begins with a dot, or contains a slash or a
            control character.
    """
    return _component(task, "task", task)


def _component(name: str, what: str, given: str) -> str:
    """Return `name` if it is a valid path component."""
    shown = repr(given if len(given) <= 60 else f"{given[:57]}...")
    if not name.strip():
        wrong = "is empty"
    elif len(os.fsencode(name.encode("utf8", "replace"))) > LONGEST:
        wrong = f"is longer than {LONGEST} bytes"
    elif name.startswith("."):
        wrong = "begins with a dot"
    elif any(letter in "/\\" for letter in name):
        wrong = "holds a slash"
    elif any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in name):
        wrong = "holds a control character"
    else:
        return name
    raise UserError(f"the {what} {shown} cannot name files: its name {wrong}")


# ---- files ---------------------------------------------------------------------------------------


def graph_file(output: Path, model: str, name: str, *, n_edges: int = 0) -> Path:
    """`graphs/<model>/<name>.json`, or `.safetensors` for more than `JSON_EDGES` edges."""
    suffix = ".safetensors" if n_edges > JSON_EDGES else ".json"
    return output / "graphs" / model_name(model) / f"{name}{suffix}"


def study_folder(output: Path, study: str, model: str) -> Path:
    """`results/<study>/<model>`, the folder of csv/, png/ and pdf/."""
    return output / "results" / study / model_name(model)


def table_file(output: Path, study: str, model: str, name: str) -> Path:
    """`results/<study>/<model>/csv/<name>.csv`."""
    return study_folder(output, study, model) / "csv" / f"{name}.csv"


def check_folders(output: Path, model: str | None = None) -> None:
    """Check that results can be written, before any are computed.

    Args:
        output: folder that has or will have results/ and graphs/.
        model: name of a model whose folders are also checked.

    Raises:
        UserError: a needed folder exists as a file, or is not writable.
    """
    for name in ("results", "graphs"):
        folders = [output / name]
        if model is not None:
            folders += [output / name / model_name(model)]
            studies = folders[0].iterdir() if name == "results" and folders[0].is_dir() else ()
            folders += [study / model_name(model) for study in studies if study.is_dir()]
        for path in folders:
            if os.path.lexists(path) and not path.is_dir():
                raise UserError(f"{shown(path)} is no folder, but results must be written below it")
            if path.is_dir() and not os.access(path, os.W_OK | os.X_OK):
                raise UserError(f"{shown(path)} is a folder that cannot be written to")


def shown(path: Path) -> str:
    """A path for messages: relative to the working directory if it is below that directory."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (OSError, RuntimeError, ValueError):
        return str(path)


# ---- whose results these are ---------------------------------------------------------------------


def claim(output: Path, model: str, identity: Mapping[str, Any], *, write: bool = True) -> None:
    """Reserve a model's folders: compare the model with `results/<model>/model.json`, or write it.

    A directory whose weights have changed counts as the same model after further training, and its
    results are recomputed.

    Args:
        output: folder that has results/ and graphs/.
        model: name as passed to `eap.load_model`.
        identity: identity of the model's weights (`Model.source`).
        write: whether to write the file; False: only compare.

    Raises:
        UserError: the folders have results of another model with the same folder name.
    """
    path = output / "results" / model_name(model) / "model.json"
    directory = from_home(model)
    source = str(directory.resolve()) if model != "toy" and directory.exists() else model
    # The location of the weights does not identify them.
    hashes = {key: value for key, value in identity.items() if key not in NOT_OF_A_MODEL}
    claimed = {"model": source, **hashes}
    try:
        earlier = json.loads(path.read_text(encoding="utf8")) if path.is_file() else None
    except (OSError, ValueError):
        earlier = None
    if isinstance(earlier, dict):
        if {**earlier, "model": source} == claimed:
            return  # the same weights, wherever they are stored
        if earlier.get("model") != source:
            other = quoted(str(earlier.get("model")))[1:-1]
            raise UserError(
                f"{shown(path.parent)} is of another model, {other}; "
                "give another --output, or another name to one of the two (if those results are "
                f"gone, delete {shown(path)})"
            )
    if write and earlier != claimed:
        with write_atomically(path) as temporary:
            temporary.write_text(json.dumps(claimed, indent=1) + "\n", encoding="utf8")

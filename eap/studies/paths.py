"""Where files go: the one place that makes a folder's or a file's name of a model or a task.

    graphs/<model>/<name>.json             (.safetensors for graphs of over half a million edges)
    results/<study>/<model>/csv/<name>.csv
    results/<study>/<model>/{png,pdf}/<name>
    results/<model>/model.json             whose results these are

<model> is the name after its last slash, without `.gguf`; of a directory, that directory's own
name. Loads no torch.
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

_ABOVE_PACKAGE = Path(__file__).resolve().parents[2]
IN_CHECKOUT = (_ABOVE_PACKAGE / "pyproject.toml").is_file()

ROOT = _ABOVE_PACKAGE if IN_CHECKOUT else Path.cwd()
"""Where results go unless `--output` says otherwise: the checkout, else the working directory."""

LONGEST = 100

# A graph with more edges than this is kept as safetensors: its JSON would be over 50 MB.
JSON_EDGES = 500_000


# ---- names ---------------------------------------------------------------------------------------


def model_name(model: str) -> str:
    """What folders of results call a model: its name after the last slash.

    `.`, `..` and the like have the name of the directory that they mean.

    Raises:
        UserError: no folder can have that name.
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
    """The name of a task, if a file can be called so.

    Raises:
        UserError: it is empty, too long, begins with a dot, or holds a separator or a control
            character.
    """
    return _component(task, "task", task)


def _component(name: str, what: str, given: str) -> str:
    """`name`, if it can be one part of a path."""
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
    """`graphs/<model>/<name>.json`, or `.safetensors` for a graph of so many edges."""
    suffix = ".safetensors" if n_edges > JSON_EDGES else ".json"
    return output / "graphs" / model_name(model) / f"{name}{suffix}"


def study_folder(output: Path, study: str, model: str) -> Path:
    """`results/<study>/<model>`: below it are csv/, png/ and pdf/."""
    return output / "results" / study / model_name(model)


def table_file(output: Path, study: str, model: str, name: str) -> Path:
    """`results/<study>/<model>/csv/<name>.csv`."""
    return study_folder(output, study, model) / "csv" / f"{name}.csv"


def check_folders(output: Path, model: str | None = None) -> None:
    """Whether results can be written, before there are any.

    Args:
        output: where results/ and graphs/ are or will be.
        model: model whose folders are looked at too.

    Raises:
        UserError: a file stands where a folder is needed, or the folder cannot be written to.
    """
    for name in ("results", "graphs"):
        folders = [output / name]
        if model is not None:
            folders += [output / name / model_name(model)]
            studies = folders[0].iterdir() if name == "results" and folders[0].is_dir() else ()
            folders += [study / model_name(model) for study in studies if study.is_dir()]
        for path in folders:
            if os.path.lexists(path) and not path.is_dir():
                raise UserError(f"{shown(path)} is no folder, and results are written below it")
            if path.is_dir() and not os.access(path, os.W_OK | os.X_OK):
                raise UserError(f"{shown(path)} is a folder that cannot be written to")


def shown(path: Path) -> str:
    """A path as a person wants to read it: relative to the working directory if below it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (OSError, RuntimeError, ValueError):
        return str(path)


# ---- whose results these are ---------------------------------------------------------------------


def claim(output: Path, model: str, identity: Mapping[str, Any], *, write: bool = True) -> None:
    """Keep the folders of a model for it: compare with `results/<model>/model.json`, or write it.

    Args:
        output: where results/ and graphs/ are.
        model: name as it was passed to `eap.load_model`.
        identity: what identifies its weights (`Model.source`).
        write: False: compare only.

    Raises:
        UserError: the folders hold results of another model of the same last name. The same
            directory with other weights is the same model, trained on: its results are made anew.
    """
    path = output / "results" / model_name(model) / "model.json"
    directory = from_home(model)
    where = str(directory.resolve()) if model != "toy" and directory.exists() else model
    # What a name says of where weights lie does not identify them.
    hashes = {
        key: value for key, value in identity.items() if key not in ("directory", "file", "name")
    }
    claimed = {"model": where, **hashes}
    try:
        earlier = json.loads(path.read_text(encoding="utf8")) if path.is_file() else None
    except (OSError, ValueError):
        earlier = None
    if isinstance(earlier, dict):
        if {**earlier, "model": where} == claimed:
            return  # these very weights, wherever they lie
        if earlier.get("model") != where:
            other = quoted(str(earlier.get("model")))[1:-1]
            raise UserError(
                f"{shown(path.parent)} is of another model, {other}; "
                "give another --output, or another name to one of the two (if those results are "
                f"gone, delete {shown(path)})"
            )
    if write and earlier != claimed:
        with write_atomically(path) as temporary:
            temporary.write_text(json.dumps(claimed, indent=1) + "\n", encoding="utf8")

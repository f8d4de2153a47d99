"""Names of columns: those that are read, and what other tools call them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from eap.data.tasks.task import Task
from eap.runtime.errors import UserError, quoted

SIDES = ("clean", "corrupted")
ANSWERS = ("correct", "incorrect")

OTHER_NAMES = {
    "clean_prefix": "clean",  # feature-circuits
    "patch_prefix": "corrupted",
    "clean_answer": "correct",
    "patch_answer": "incorrect",
    "corrupt": "corrupted",  # auto-circuit
    "answers": "correct",
    "wrong_answers": "incorrect",
    "label": "correct_idx",  # EAP-IG's table of greater-than
}
"""What other tools call a column; read where the column itself is missing."""

ANSWER_TEXTS = (*ANSWERS, "clean_answer", "patch_answer", "answers", "wrong_answers")
"""Columns of answers as text, by any name."""

KNOWN = {*OTHER_NAMES, *(name + end for name in (*SIDES, *ANSWERS) for end in ("", "_idx"))}
"""Names by which the header of a table is recognised."""


def standard_names(task: Task | None, columns: Iterable[str]) -> dict[str, str]:
    """What to call each column: our name for another tool's, or for one in capitals, if it is free.

    Args:
        task: task whose schema the data have; None: a task of one's own.
        columns: columns of the data.
    """
    declared = () if task is None else task.columns
    names = {column: column for column in columns}
    for column in names:
        name = column.strip().lower()
        if name in (*KNOWN, *declared) and name not in names.values():
            names[column] = name
    for other, name in OTHER_NAMES.items():
        is_read = name in (*SIDES, *ANSWERS, *declared) and other not in declared
        is_there = {name, f"{name}_idx"} & set(names.values())
        if is_read and not is_there:
            names |= {column: name for column, known in names.items() if known == other}
    return names


def check_columns(task: Task | None, columns: Sequence[str], source: str) -> None:
    """Whether a table has what a task, or a task of one's own, needs.

    Raises:
        UserError: a column is missing.
    """
    names = set(standard_names(task, columns).values())
    missing = [] if {"clean", "clean_idx"} & names else ["clean"]
    if task is not None and not has_answers(task, names):
        missing += [column for column in task.columns if column not in names]
    elif task is None and not {"correct", "correct_idx"} & names:
        missing += ["correct"]
    if missing:
        has = ", ".join(
            name if name.isprintable() and name == name.strip() else quoted(name, 60)
            for name in columns
        )
        hint = (
            "; answers are in columns correct and incorrect as text, or correct_idx and "
            "incorrect_idx as token ids"
            if missing[-1] == "correct"
            else ""
        )
        raise UserError(f"{source} has no column {', '.join(missing)}; it has {has[:200]}{hint}")


def has_answers(task: Task | None, columns: Iterable[str]) -> bool:
    """Whether answers are read from columns of their own, not by the task's rule."""
    return task is None or set(ANSWERS) <= set(columns)


def renamed(row: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A row with its columns so called."""
    return {names[name]: cell for name, cell in row.items()}

"""Names of columns: those that this package reads, and their names in other tools."""

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
    "label": "correct_idx",  # EAP-IG's table for greater-than
}
"""Names of columns in other tools; such a column is read if the column itself is missing."""

ANSWER_TEXTS = (*ANSWERS, "clean_answer", "patch_answer", "answers", "wrong_answers")
"""Columns of answers as text, by all of their names."""

KNOWN = {*OTHER_NAMES, *(name + end for name in (*SIDES, *ANSWERS) for end in ("", "_idx"))}
"""Names by which the header of a table is recognised."""


def standard_names(task: Task | None, columns: Iterable[str]) -> dict[str, str]:
    """Standard name of each column, from names in other tools or in capitals, where it is free.

    Args:
        task: task whose columns the data have; None: a task of the user.
        columns: names of the columns of the data.
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
    """Check that a table has the columns that its task needs.

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
    """Whether answers are read from their own columns, and not found by the task's rule."""
    return task is None or set(ANSWERS) <= set(columns)


def renamed(task: Task | None, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows with the standard names of their columns."""
    names = standard_names(task, dict.fromkeys(name for row in rows for name in row))
    return [{names[name]: cell for name, cell in row.items()} for row in rows]

"""Tasks by name: every file in this folder that has a `TASK`.

To add a task, add one such file. In a notebook, `register` adds a `Task`. Data of your own need no
task at all (`load_dataset(name, tokenizer, data=...)`).
"""

import pkgutil
from collections.abc import Iterable
from importlib import import_module

from eap.data.tasks.task import AnswerSets, Row, Task
from eap.runtime.errors import UserError, quoted

TASKS: dict[str, Task] = {}
"""All tasks, with the six tasks of the paper's main figures first."""


def register(task: Task) -> None:
    """Add a task to `TASKS`, in its order.

    Raises:
        UserError: another task has the same name.
    """
    if TASKS.get(task.name, task) is not task:
        raise UserError(f"there is a task {quoted(task.name)} already; give yours another name")
    TASKS[task.name] = task
    ordered = sorted(TASKS.values(), key=lambda known: (known.order, known.name))
    TASKS.clear()
    TASKS.update({known.name: known for known in ordered})


def discover(folders: Iterable[str]) -> None:
    """Register the `TASK` of each module in folders of this package (its `__path__`)."""
    for module in pkgutil.iter_modules(folders, prefix=f"{__name__}."):
        task = getattr(import_module(module.name), "TASK", None)
        if task is not None:
            register(task)


discover(__path__)

PARETO_TASKS: tuple[str, ...] = tuple(task.name for task in TASKS.values() if task.main)
"""The six tasks of the main figures; the other two are in the cross-task study."""


def get_task(name: str) -> Task:
    """Look up a task by name.

    Raises:
        UserError: an unknown name; the message lists the known names.
    """
    if not isinstance(name, str) or name not in TASKS:
        raise UserError(f"unknown task {quoted(name)}; known are {', '.join(TASKS)}")
    return TASKS[name]


def base_task(name: str) -> str:
    """Name of the task that a task is a variant of, or its own; variants are not independent."""
    return (TASKS[name].variant_of if name in TASKS else "") or name


__all__ = [
    "PARETO_TASKS",
    "TASKS",
    "AnswerSets",
    "Row",
    "Task",
    "base_task",
    "get_task",
    "register",
]

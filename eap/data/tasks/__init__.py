"""The tasks, by name. A new one is a file like those here, added to `TASKS`, or a CSV of your own."""

from eap.data.tasks import (
    fact_retrieval,
    gender_bias,
    greater_than,
    greater_than_price,
    greater_than_sequence,
    hypernymy,
    ioi,
    sva,
)
from eap.data.tasks.task import AnswerSets, Row, Task
from eap.errors import UserError

TASKS: dict[str, Task] = {
    module.TASK.name: module.TASK
    for module in (
        ioi,
        greater_than,
        gender_bias,
        fact_retrieval,
        sva,
        hypernymy,
        greater_than_price,
        greater_than_sequence,
    )
}
"""Every task, the six of the paper's main figures first."""

PARETO_TASKS: tuple[str, ...] = (
    "ioi",
    "greater-than",
    "gender-bias",
    "fact-retrieval-comma",
    "sva",
    "hypernymy-comma",
)
"""The six tasks of the main figures; the other two appear in the cross-task study."""


def get_task(name: str) -> Task:
    """A task by name; a `UserError` lists the known ones."""
    if name not in TASKS:
        raise UserError(f"unknown task {name!r}; known are {', '.join(TASKS)}")
    return TASKS[name]


__all__ = ["PARETO_TASKS", "TASKS", "AnswerSets", "Row", "Task", "get_task"]

"""The jobs of a whole paper for one model: the table of steps with its templates filled in.

Nothing here imports torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

from eap.data.tasks import TASKS
from eap.studies.catalogue import METRICS, POINTS, STEPS, Run, Step

EVERYTHING = Run()


@dataclass(frozen=True)
class Job:
    """A step for one model: what is run, what it reads and what it writes (below the output)."""

    name: str
    step: Step
    tasks: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]

    @property
    def arguments(self) -> tuple[str, ...]:
        """The script and its tasks; model, output and settings come from the caller."""
        given = (self.step.option, *self.tasks) if self.step.option else ()
        return (self.step.script, *given)


def jobs(
    model: str,
    tasks: Sequence[str],
    *,
    run: Run = EVERYTHING,
    only: Mapping[str, Sequence[str]] | None = None,
    verified: bool = False,
) -> list[Job]:
    """All that is run for a model, in an order in which it can run.

    Args:
        model: the last part of its name.
        tasks: those to work on.
        run: what kind of run it is.
        only: tasks of a step, by the step's name, where not all; steps that read what it would have
            written for the others leave them out, too.
        verified: exact values are of a choice of edges (`--verify`) instead of all.
    """
    planned: list[Job] = []
    for step in STEPS:
        chosen = step.tasks(tuple(tasks))
        made = {path for job in planned for path in job.writes}
        asked = (only or {}).get(step.name, chosen)
        chosen = tuple(
            task
            for task in chosen
            if task in asked and made.issuperset(_paths(step.reads, model, (task,), verified))
        )
        if not step.when(run) or not chosen:
            continue
        each = step.option == "--task"
        for group in [(task,) for task in chosen] if each else [chosen]:
            filled = partial(_paths, model=model, tasks=group, verified=verified)
            reads = (*filled(step.reads), *(p for p in filled(step.also_reads) if p in made))
            if step.name == "report":
                shown = (path for job in planned for path in job.writes)
                reads = tuple(path for path in shown if path.endswith((".png", ".csv")))
            name = f"{step.name}_{group[0]}".replace("-", "_") if each else step.name
            planned.append(Job(name, step, group, reads, filled(step.writes)))
    return planned


def _paths(
    templates: Sequence[str], model: str, tasks: Sequence[str], verified: bool
) -> tuple[str, ...]:
    """Templates filled in, for each task that they name; each path once."""
    filled = (path for template in templates for path in _fill(template, model, tasks, verified))
    return tuple(dict.fromkeys(filled))


def _fill(template: str, model: str, tasks: Sequence[str], verified: bool) -> Iterator[str]:
    for task in tasks if "{task}" in template or "{metric}" in template else tasks[:1]:
        metric = TASKS[task].metric if task in TASKS else "logit_diff"
        exact = [f"{of}_real" for of in METRICS]
        if verified:
            exact = [f"{metric}_verified", "kl_verified"]
        for graph, points in product(
            exact if "{exact}" in template else ("",), POINTS if "{points}" in template else ("",)
        ):
            yield template.format(
                model=model, task=task, tasks="_".join(tasks), metric=metric, exact=graph,
                points=points,
            )  # fmt: skip

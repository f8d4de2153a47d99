"""The jobs of the whole paper for one model: the steps with their path templates filled in.

Nothing here imports torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

from eap.studies.catalogue import METRICS, POINTS, STEPS, Run, Step
from eap.studies.settings import default_metric

EVERYTHING = Run()


@dataclass(frozen=True)
class Job:
    """A step for one model, with the paths below the output folder that it reads and writes."""

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
    """All jobs for a model, in an order in which they can run.

    Args:
        model: last part of the model's name.
        tasks: requested tasks.
        run: scope of the run.
        only: tasks of a step by the step's name, for steps that run on some tasks only; later steps
            that need the results for the other tasks leave these tasks out.
        verified: whether exact values are measured for some edges only (`--verify`).
    """
    planned: list[Job] = []
    for step in STEPS:
        chosen = step.tasks(tuple(tasks))
        written = {path for job in planned for path in job.writes}
        asked = (only or {}).get(step.name, chosen)
        chosen = tuple(
            task
            for task in chosen
            if task in asked and written.issuperset(_paths(step.reads, model, (task,), verified))
        )
        if not step.when(run) or not chosen:
            continue
        each = step.option == "--task"
        for group in [(task,) for task in chosen] if each else [chosen]:
            filled = partial(_paths, model=model, tasks=group, verified=verified)
            reads = (*filled(step.reads), *(p for p in filled(step.also_reads) if p in written))
            if step.name == "report":
                shown = (path for job in planned for path in job.writes)
                reads = tuple(path for path in shown if path.endswith((".png", ".csv")))
            name = f"{step.name}_{group[0]}".replace("-", "_") if each else step.name
            planned.append(Job(name, step, group, reads, filled(step.writes)))
    return planned


def _paths(
    templates: Sequence[str], model: str, tasks: Sequence[str], verified: bool
) -> tuple[str, ...]:
    """Templates filled in for every task, without duplicate paths."""
    filled = (path for template in templates for path in _fill(template, model, tasks, verified))
    return tuple(dict.fromkeys(filled))


def _fill(template: str, model: str, tasks: Sequence[str], verified: bool) -> Iterator[str]:
    for task in tasks if "{task}" in template or "{metric}" in template else tasks[:1]:
        metric = default_metric(task)
        exact = [f"{scored_by}_real" for scored_by in METRICS]
        if verified:
            exact = [f"{metric}_verified", "kl_verified"]
        for graph, points in product(
            exact if "{exact}" in template else ("",), POINTS if "{points}" in template else ("",)
        ):
            yield template.format(
                model=model, task=task, tasks="_".join(tasks), metric=metric, exact=graph,
                points=points,
            )  # fmt: skip

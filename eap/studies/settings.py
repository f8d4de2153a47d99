"""What a person asks of an experiment, as the library takes it: no command line, no torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eap.data.tasks import TASKS, get_task
from eap.methods import METHODS, RULES
from eap.runtime.errors import UserError, quoted
from eap.runtime.ranges import BYTES, COUNT, SEED, STEPS, whole
from eap.studies.paths import ROOT, model_name, task_name

PAPER_CURVES = {
    "EAP": ("vanilla", "EAP", None),
    "EAP-IG": ("task", "EAP-IG", None),
    "EAP-IG-KL": ("kl", "EAP-IG", "kl"),
}
"""The Pareto study's curves in the paper: suffix of the file, method, and metric if not the task's.
"""

EXACT_CURVES = {
    "EAP-IG": ("{metric}_ig", "EAP-IG", None),
    "EAP-IG-KL": ("kl_ig", "EAP-IG", "kl"),
    "EAP": ("{metric}_vanilla", "EAP", None),
}
"""The same for the estimates beside exact values, in their order there."""

CURVES = (*PAPER_CURVES, *(name for name in METHODS if name not in (*PAPER_CURVES, "exact")))
"""All curves that the Pareto study can have; exact values have a study of their own."""


def file_suffix(method: str) -> str:
    """What a method is called in names of files: AtP*-QK -> AtP-QK."""
    return re.sub(r"[^\w.-]", "", method)


@dataclass(frozen=True)
class Settings:
    """Everything that the experiments have in common.

    Attributes:
        model: `toy`, a Hugging Face directory, a GGUF file, or a hub name.
        tasks: what is studied; most experiments have one.
        data: a file of pairs of one's own, instead of the task's.
        drop_unfit: rows of it that do not fit the tokenizer are left out; otherwise they are an
            error.
        revision: branch, tag or commit of a model of the hub; None: its main branch.
        prepend_bos: whether to begin prompts with the BOS token; None: if the saved tokenizer has
            one.
        head: number of pairs of a task; None: all.
        seed: seed of drawn data and random circuits.
        device, device_map, dtype: device, device map and dtype as `eap.load_model` has them.
        batch_size: pairs at a time; None: what the memory allows.
        memory: bytes beside the weights; None: half of what is free.
        expanded_kv: one k and v per query head where key/value heads are shared.
        ig_steps, ig_rule: ig steps and ig rule of EAP-IG.
        output: folder in which results/ and graphs/ are.
        overwrite: do not use finished graphs, but make them anew.

    Raises:
        UserError: a name that cannot name files, or a number outside of what is possible.
    """

    model: str = "toy"
    tasks: tuple[str, ...] = ("ioi",)
    data: Path | None = None
    drop_unfit: bool = False
    revision: str | None = None
    prepend_bos: bool | None = None
    head: int | None = None
    seed: int = 0
    device: str | None = None
    device_map: str | None = None
    dtype: str = "float32"
    batch_size: int | None = None
    memory: int | None = None
    expanded_kv: bool = False
    ig_steps: int = 5
    ig_rule: str = "paper"
    output: Path = ROOT
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked before a model is loaded."""
        self._check_kinds()
        model_name(self.model)
        if not self.tasks:
            raise UserError(f"give at least one task; known are {', '.join(TASKS)}")
        if twice := sorted({task for task in self.tasks if self.tasks.count(task) > 1}):
            raise UserError(f"{', '.join(twice)[:100]} is asked for twice")
        for task in self.tasks:
            task_name(task)
            if self.data is None:
                get_task(task)
        if self.drop_unfit and self.data is None:
            raise UserError("--drop_unfit is about rows of --data, and there is no --data")

    def _check_kinds(self) -> None:
        """Texts, whole numbers, names of tasks: what a command line cannot get wrong."""
        texts = {"model": self.model, "dtype": self.dtype, "ig_rule": self.ig_rule}
        if self.revision is not None:
            texts["revision"] = self.revision
        if not isinstance(self.tasks, tuple):
            raise UserError(f"tasks is {quoted(self.tasks)}; it must be a tuple of names")
        texts |= {f"task {place}": task for place, task in enumerate(self.tasks)}
        for name, value in texts.items():
            if not isinstance(value, str):
                raise UserError(f"{name} is {quoted(value)}; it must be a text")
        if self.ig_rule not in RULES:
            raise UserError(f"ig_rule is {quoted(self.ig_rule)}; rules are {', '.join(RULES)}")
        ranges = {"head": COUNT, "batch_size": COUNT, "memory": BYTES}
        ranges = {
            name: limits for name, limits in ranges.items() if getattr(self, name) is not None
        }
        for name, limits in (ranges | {"seed": SEED, "ig_steps": STEPS}).items():
            object.__setattr__(self, name, whole(name, getattr(self, name), limits))
        for name, folder in {"output": self.output, "data": self.data}.items():
            if folder is not None and not isinstance(folder, Path):
                raise UserError(f"{name} is {quoted(folder)}; it must be a pathlib.Path")

    @property
    def task(self) -> str:
        """The task of an experiment that has one."""
        (task,) = self.tasks
        return task

    @property
    def resources(self) -> Mapping[str, Any]:
        """How much at a time, as the verbs have it: batch_size and memory_budget."""
        return {"batch_size": self.batch_size, "memory_budget": self.memory}


def default_metric(task: str) -> str:
    """The metric of the Pareto study for a task; a task of one's own has `logit_diff`."""
    return TASKS[task].metric if task in TASKS else "logit_diff"

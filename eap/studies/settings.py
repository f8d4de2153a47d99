"""Settings of an experiment, independent of the command line. Loads no torch."""

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
"""Curves of the paper's Pareto study: file suffix, method, and metric (None: the task's metric)."""

EXACT_CURVES = {
    "EAP-IG": ("{metric}_ig", "EAP-IG", None),
    "EAP-IG-KL": ("kl_ig", "EAP-IG", "kl"),
    "EAP": ("{metric}_vanilla", "EAP", None),
}
"""The same entries for the estimates that are compared with exact values, in plotting order."""

CURVES = (*PAPER_CURVES, *(name for name in METHODS if name not in (*PAPER_CURVES, "exact")))
"""All curves of the Pareto study; exact values have a separate study."""


def file_suffix(method: str) -> str:
    """Name of a method in file names, such as AtP-QK for AtP*-QK."""
    return re.sub(r"[^\w.-]", "", method)


@dataclass(frozen=True)
class Settings:
    """Settings that the experiments have in common.

    Attributes:
        model: `toy`, a Hugging Face directory, a GGUF file, or a hub name.
        tasks: names of the tasks; most experiments have one task.
        data: file of pairs that replaces the task's own pairs.
        drop_unfit: whether to skip rows of `data` that do not fit the tokenizer; otherwise such
            rows are an error.
        revision: branch, tag or commit of a hub model; None: the main branch.
        prepend_bos: whether to begin prompts with the BOS token; None: only if the saved tokenizer
            has a BOS token.
        head: number of pairs per task; None: all.
        seed: random seed of generated data and random circuits.
        device, device_map, dtype: arguments of `eap.load_model`.
        batch_size: number of pairs per batch; None: as many as memory allows.
        memory: memory budget in bytes, besides the weights; None: half of the free memory.
        expanded_kv: whether each query head has its own k and v where heads share them.
        ig_steps, ig_rule: number of points and integration rule of EAP-IG.
        output: folder of results/ and graphs/.
        overwrite: whether to recompute finished graphs instead of reusing them.

    Raises:
        UserError: a name is not valid in file names, or a number is out of range.
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
        """Check the settings, as far as possible without a model."""
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
            raise UserError("--drop_unfit needs --data")

    def _check_kinds(self) -> None:
        """Check types and ranges that the command line already guarantees."""
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
        """The task of an experiment with exactly one task."""
        (task,) = self.tasks
        return task

    @property
    def resources(self) -> Mapping[str, Any]:
        """Arguments batch_size and memory_budget of the functions that run a model."""
        return {"batch_size": self.batch_size, "memory_budget": self.memory}


def default_metric(task: str) -> str:
    """The metric of the Pareto study for a task; `logit_diff` for user-defined tasks."""
    return TASKS[task].metric if task in TASKS else "logit_diff"

"""The tasks of MIB's circuit track (Mueller et al. 2025, arXiv 2504.13151), from its own data sets.

A row has a `prompt`, several counterfactuals that each have a `prompt` of their own, and says what
is right: by names (`metadata`), by a choice (`choices` and `answerKey`), or by a `label`. Of the
counterfactuals the one that the benchmark itself uses is the corrupted prompt; its answer is the
incorrect one. Rows whose prompts or answers do not fit the tokenizer are left out; an answer is one
token, the one that follows the prompt.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lazy_loader
import pandas as pd

from eap.data.dataset import Dataset, load_dataset
from eap.errors import UserError, first_line, quoted

hub = lazy_loader.load("datasets", error_on_import=False)

Row = Mapping[str, Any]
Answers = Callable[[Row, Row], tuple[str, str]]
"""The correct answer of a row, and the incorrect one, which is its counterfactual's."""

SPLITS = ("train", "validation", "test")


def _names(row: Row, counterfactual: Row) -> tuple[str, str]:
    names = row["metadata"]
    return f" {names['indirect_object']}", f" {names['subject']}"


def _choices(row: Row, counterfactual: Row) -> tuple[str, str]:
    correct, incorrect = (
        str(own["choices"]["label"][int(own["answerKey"])]) for own in (row, counterfactual)
    )
    return correct, incorrect


def _labels(row: Row, counterfactual: Row) -> tuple[str, str]:
    return str(row["label"]), str(counterfactual["label"])


@dataclass(frozen=True)
class MibTask:
    """One task of the benchmark.

    Attributes:
        name: as the leaderboard has it.
        path: of its data set on the hub.
        counterfactual: the column whose prompt is the corrupted one.
        answers: how a row says what is right.
        subset: of the data set; None: it has but one.
        operator: keep the rows of this operator alone.
        n_train: how many pairs of the train split edges are scored on.
    """

    name: str
    path: str
    counterfactual: str
    answers: Answers
    subset: str | None = None
    operator: str | None = None
    n_train: int = 100


MIB_TASKS: dict[str, MibTask] = {
    task.name: task
    for task in (
        MibTask("ioi", "mib-bench/ioi", "s2_io_flip_counterfactual", _names, n_train=1000),
        MibTask(
            "mcqa",
            "mib-bench/copycolors_mcqa",
            "symbol_counterfactual",
            _choices,
            subset="4_answer_choices",
        ),
        MibTask(
            "arithmetic-addition",
            "mib-bench/arithmetic_addition",
            "random_counterfactual",
            _labels,
            operator="+",
        ),
        MibTask(
            "arithmetic-subtraction",
            "mib-bench/arithmetic_subtraction",
            "random_counterfactual",
            _labels,
            operator="-",
        ),
        MibTask("arc-easy", "mib-bench/arc_easy", "symbol_counterfactual", _choices),
        MibTask("arc-challenge", "mib-bench/arc_challenge", "symbol_counterfactual", _choices),
    )
}


def get_mib_task(name: str) -> MibTask:
    """A task by name; a `UserError` lists the known ones."""
    if name not in MIB_TASKS:
        known = ", ".join(MIB_TASKS)
        raise UserError(f"unknown task {quoted(str(name))} of MIB; known are {known}")
    return MIB_TASKS[name]


def load_mib(
    task: str,
    tokenizer: Any,
    *,
    split: str = "train",
    source: str | Path | None = None,
    head: int | None = None,
) -> Dataset:
    """The pairs of a task of MIB as token ids, with BOS if the tokenizer has one.

    Args:
        task: a name of `MIB_TASKS`.
        tokenizer: the model's own.
        split: 'train', 'validation' or 'test'.
        source: None: the hub (needs `pip install datasets`); a folder with a copy of the data set
            (Parquet, JSON or JSON lines, with the split in the file's name or in its folder's); or
            a CSV with columns clean, corrupted, correct and incorrect.
        head: use only the first so many pairs that fit.

    Raises:
        UserError: an unknown task or split, data that is not there or is not of this shape, or no
            pair that fits the tokenizer.
    """
    known = get_mib_task(task)
    if split not in SPLITS:
        raise UserError(f"unknown split {quoted(str(split))}; known are {', '.join(SPLITS)}")
    if source is not None and Path(source).suffix.lower() == ".csv":
        dataset = load_dataset(task, tokenizer, data=str(source), drop_unfit=True)
    else:
        rows = _from_hub(known, split) if source is None else _from_folder(Path(source), split)
        shown = known.path if source is None else str(source)
        pairs = to_pairs(known, rows, shown)
        # A name of its own: pairs are given, so nothing of a task of the same name is asked for.
        dataset = load_dataset(f"mib-{task}", tokenizer, data=pairs, drop_unfit=True)
        provenance = dataset.provenance | {"source": f"{shown}, {split}"}
        dataset = replace(dataset, task=task, provenance=provenance)
    return dataset if head is None else dataset.head(head)


def to_pairs(task: MibTask, rows: Sequence[Row], shown: str) -> list[dict[str, str]]:
    """Rows of the benchmark's shape as clean, corrupted, correct and incorrect texts.

    Raises:
        UserError: a row lacks what the task needs, or none is left.
    """
    pairs = []
    for number, row in enumerate(rows, start=1):
        if task.operator is not None and row.get("operator", task.operator) != task.operator:
            continue
        counterfactual = row.get(task.counterfactual, {})
        if _is_missing(counterfactual) or _is_missing(counterfactual.get("prompt")):
            if task.counterfactual in row:  # some sums have none
                continue
            raise UserError(
                f"{shown}, row {number}: no column {task.counterfactual!r}; {task.name} needs it, "
                f"and the row has {quoted(', '.join(map(str, row)))}"
            )
        try:
            correct, incorrect = task.answers(row, counterfactual)
            pair = {"clean": str(row["prompt"]), "corrupted": str(counterfactual["prompt"])}
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise UserError(
                f"{shown}, row {number} is not one of {task.name}: {type(error).__name__}: {error}"
            ) from None
        pairs.append({**pair, "correct": correct, "incorrect": incorrect})
    if not pairs:
        raise UserError(f"{shown} has no row of {task.name}")
    return pairs


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def _from_hub(task: MibTask, split: str) -> list[Row]:
    try:
        return list(hub.load_dataset(task.path, task.subset, split=split))
    except ModuleNotFoundError:
        raise UserError(
            "MIB's data on the hub needs the package `datasets` (pip install datasets), or give a "
            "folder or CSV of your own"
        ) from None
    except Exception as error:  # of the hub, of the network, of the library
        first = (str(error).strip().splitlines() or [""])[0][:100]
        raise UserError(
            f"cannot load {task.path} ({split}) from the hub: {type(error).__name__}: {first}; a "
            "folder with a copy of it works offline"
        ) from error


READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".parquet": pd.read_parquet,
    ".jsonl": lambda path: pd.read_json(path, lines=True, dtype=False),
    ".json": lambda path: pd.read_json(path, dtype=False),
}


def _from_folder(folder: Path, split: str) -> list[Row]:
    """The rows of a copy of a data set: all files of the split."""
    if folder.is_file():
        files = [folder] if folder.suffix.lower() in READERS else []
    else:
        files = sorted(
            path
            for path in folder.rglob("*")
            if path.suffix.lower() in READERS
            and (path.name.lower().startswith(split) or path.parent.name.lower() == split)
        )
    if not files:
        kinds = ", ".join(f"{split}*{suffix}" for suffix in READERS)
        raise UserError(f"no data of the split {split!r} at {folder}: looked for {kinds}")
    rows: list[Row] = []
    for path in files:
        try:
            frame = READERS[path.suffix.lower()](path)
        except (ValueError, OSError) as error:
            raise UserError(f"{path} cannot be read: {first_line(error, 100)}") from None
        rows += [
            {str(name): value for name, value in row.items()} for row in frame.to_dict("records")
        ]
    return rows

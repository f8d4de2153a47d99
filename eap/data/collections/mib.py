"""Tasks of MIB's circuit track (Mueller et al. 2025, arXiv 2504.13151), from MIB's data sets.

A row has a `prompt` and several counterfactuals with a `prompt` each. The right answer is given by
names (`metadata`), by a choice (`choices` and `answerKey`), or by a `label`. The corrupted prompt
is that of the counterfactual that the benchmark uses, and its answer is the incorrect answer. Rows
whose prompts or answers do not fit the tokenizer are left out. An answer is one token, the token
that follows the prompt.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import lazy_loader

from eap.data.dataset import Dataset, load_dataset
from eap.data.reading import find_file, read_rows
from eap.runtime.errors import UserError, first_line, quoted

hub = lazy_loader.load("datasets", error_on_import=False)

Row = Mapping[str, Any]
Answers = Callable[[Row, Row], tuple[str, str]]
"""Function that gives the correct answer of a row, and the answer of its counterfactual."""

SPLITS = ("train", "validation", "test")
SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")


def _names(row: Row, counterfactual: Row) -> tuple[str, str]:
    names = row["metadata"]
    return f" {names['indirect_object']}", f" {names['subject']}"


def _choices(row: Row, counterfactual: Row) -> tuple[str, str]:
    return _choice(row), _choice(counterfactual)


def _choice(row: Row) -> str:
    labels, key = row["choices"]["label"], row["answerKey"]
    number = int(key) if isinstance(key, float) and key.is_integer() else key
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(labels):
        raise ValueError(
            f"answerKey is {quoted(key)}, not the number of a choice (0 .. {len(labels) - 1})"
        )
    return str(labels[number])


def _labels(row: Row, counterfactual: Row) -> tuple[str, str]:
    return str(row["label"]), str(counterfactual["label"])


@dataclass(frozen=True)
class MibTask:
    """Task of the benchmark.

    Attributes:
        name: name on the leaderboard.
        path: path of the data set on the hub.
        counterfactual: name of the column with the corrupted prompt.
        answers: function that reads the answers from a row and its counterfactual.
        subset: subset of the data set; None: the data set has only one.
        operator: operator of the rows to keep; None: all rows.
        n_train: number of pairs of the train split that edges are scored on.
    """

    name: str
    path: str
    counterfactual: str
    answers: Answers
    subset: str | None = None
    operator: str | None = None
    n_train: int = 100


_choice_task = partial(MibTask, counterfactual="symbol_counterfactual", answers=_choices)
_sum_task = partial(MibTask, counterfactual="random_counterfactual", answers=_labels)

MIB_TASKS: dict[str, MibTask] = {
    task.name: task
    for task in (
        MibTask("ioi", "mib-bench/ioi", "s2_io_flip_counterfactual", _names, n_train=1000),
        _choice_task("mcqa", "mib-bench/copycolors_mcqa", subset="4_answer_choices"),
        _sum_task("arithmetic-addition", "mib-bench/arithmetic_addition", operator="+"),
        _sum_task("arithmetic-subtraction", "mib-bench/arithmetic_subtraction", operator="-"),
        _choice_task("arc-easy", "mib-bench/arc_easy"),
        _choice_task("arc-challenge", "mib-bench/arc_challenge"),
    )
}


def get_mib_task(name: str) -> MibTask:
    """Look up a task by name.

    Raises:
        UserError: an unknown name; the message lists the known names.
    """
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
    """Load the pairs of a task of MIB as token ids, with BOS if the tokenizer has one.

    Args:
        task: name of a task in `MIB_TASKS`.
        tokenizer: tokenizer of the model.
        split: split of the data set: 'train', 'validation' or 'test'.
        source: origin of the data; None: the hub (needs `pip install datasets`). It may be a folder
            with a copy of the data set (Parquet, JSON or JSON lines, with the split in the name of
            the file or its folder), one such file, or a table of pairs with clean, corrupted,
            correct and incorrect. The split of rows in a single file is given by a column `split`,
            or by the beginning of the file's name.
        head: number of pairs to take from the start, among those that fit; None: all.

    Raises:
        UserError: an unknown task or split, data that are missing or in another form, or no pair
            that fits the tokenizer.
    """
    known = get_mib_task(task)
    if split not in SPLITS:
        raise UserError(f"unknown split {quoted(str(split))}; known are {', '.join(SPLITS)}")
    shown = known.path if source is None else str(source)
    rows: Sequence[Row] = (
        _from_hub(known, split) if source is None else _from_files(known, Path(source), split)
    )
    if not {"clean", "clean_idx"} & set(rows[0]):  # rows of the benchmark, not pairs
        rows = to_pairs(known, rows, shown)
    # A separate name, because pairs need none of the columns of a task with the same name.
    dataset = load_dataset(f"mib-{task}", tokenizer, data=rows, drop_unfit=True)
    provenance = dataset.provenance | {"source": f"{shown}, {split}"}
    dataset = replace(dataset, task=task, provenance=provenance)
    return dataset if head is None else dataset.head(head)


def to_pairs(task: MibTask, rows: Sequence[Row], shown: str) -> list[dict[str, str]]:
    """Convert rows of the benchmark to clean, corrupted, correct and incorrect texts.

    Raises:
        UserError: a row lacks what the task needs, or no rows are left.
    """
    pairs = []
    for number, row in enumerate(rows, start=1):
        if task.operator is not None and (row.get("operator") or task.operator) != task.operator:
            continue
        counterfactual = row.get(task.counterfactual)
        if not isinstance(counterfactual, Mapping) or counterfactual.get("prompt") is None:
            if task.counterfactual in row:  # some sums have no counterfactual
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


def _from_hub(task: MibTask, split: str) -> list[Row]:
    try:
        return list(hub.load_dataset(task.path, task.subset, split=split))
    except ModuleNotFoundError:
        raise UserError(
            "MIB's data on the hub needs the package `datasets` (pip install datasets), or give a "
            "folder or CSV of your own"
        ) from None
    except Exception as error:  # errors of the hub, the network or the library
        raise UserError(
            f"cannot load {task.path} ({split}) from the hub: {first_line(error, 100)}; a "
            "folder with a copy of it works offline"
        ) from error


def _from_files(task: MibTask, source: Path, split: str) -> list[Row]:
    """Rows of a split, from a file, or from a folder with a copy of a data set."""
    if not source.is_dir():
        return _of_split(read_rows(source).rows, source, split)
    files = [
        path
        for path in sorted(source.rglob("*"))
        if path.suffix.lower() in SUFFIXES and _split_of(path) == split
        and not any(part.startswith(".") for part in path.relative_to(source).parts)
    ]  # fmt: skip
    if task.subset is not None and any(task.subset in path.parts for path in files):
        files = [path for path in files if task.subset in path.parts]
    if not files:
        kinds = ", ".join(f"{split}*{suffix}" for suffix in SUFFIXES)
        raise UserError(f"no data of the split {split!r} at {source}: looked for {kinds}")
    folders = {str(path.parent.relative_to(source)) for path in files}
    if len(folders) > 1:
        wanted = f"the folder {task.subset}" if task.subset else "the folder of one"
        raise UserError(
            f"{source} has several data sets with a split {split!r}, in "
            f"{quoted(', '.join(sorted(folders)))[1:-1]}; give {wanted}"
        )
    if len({path.suffix.lower() for path in files}) > 1:
        twice = ", ".join(path.name for path in files)
        raise UserError(f"{files[0].parent} has the split {split!r} in two formats: {twice[:150]}")
    return [row for path in files for row in read_rows(path).rows]


def check_source(source: str | Path | None) -> None:
    """Check that a source has data for two splits.

    Raises:
        UserError: the source is a single file that does not say which rows are of which split.
    """
    if source is None or Path(source).is_dir():
        return
    path = find_file(source)
    if "split" not in read_rows(path).columns:
        raise UserError(
            f"{path} is one file for two splits, and circuits are not measured on what they were "
            "found on: call two files train.. and test.. in one folder, or add a column split"
        )


def _of_split(rows: Sequence[Row], path: Path, split: str) -> list[Row]:
    """Rows of a single file that belong to a split, by its column `split` or by its name."""
    of_file = _split_of(path)
    if "split" in rows[0]:
        rows = [row for row in rows if row["split"] == split]
    elif of_file not in (None, split):
        raise UserError(f"{path} is of the split {of_file!r}, not {split!r}; give a folder of both")
    if not rows:
        raise UserError(f"{path} has no row of the split {split!r}")
    return list(rows)


def _split_of(path: Path) -> str | None:
    """Split that the name of a file begins with, or that is the name of its folder."""
    first = re.split(r"[^a-z]", path.name.lower())[0]
    return next((split for split in SPLITS if split in (first, path.parent.name.lower())), None)

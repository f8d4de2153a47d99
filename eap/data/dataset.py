"""Rows of text -> token ids: where a task's data comes from, and the check that it always passes.

A task's pairs come from `data/<task>/<family>.csv` if there is a file for the model's tokenizer,
from a CSV of one's own, or are generated for the tokenizer at hand. Token ids are computed here,
with the model's own tokenizer; the BOS, if any, is added here and nowhere else.
"""

import ast
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd

from eap.data.tasks import TASKS, Row, Task, get_task
from eap.data.tasks.task import keep_all
from eap.data.vocabulary import Vocabulary
from eap.errors import UserError

DATA = Path(__file__).resolve().parents[2] / "data"

# Fewer pairs than this are no data set.
FEWEST = 10


@dataclass(frozen=True)
class Example:
    """One pair: token ids of both prompts, equally long, and the two sets of answer tokens."""

    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    correct: tuple[int, ...]
    incorrect: tuple[int, ...]


@dataclass(frozen=True)
class Dataset:
    """The pairs of a task, for one tokenizer.

    Attributes:
        task: its name.
        examples: the pairs.
        prepend_bos: whether the prompts begin with the BOS token.
        provenance: where they come from (file and hash, or seed), and what was dropped and why.
    """

    task: str
    examples: tuple[Example, ...]
    prepend_bos: bool = False
    provenance: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.examples)

    def head(self, n: int) -> "Dataset":
        """The first `n` pairs."""
        return replace(self, examples=self.examples[:n], provenance={**self.provenance, "head": n})

    def summary(self) -> str:
        """One line: how many pairs, from where, what was dropped."""
        dropped = ", ".join(f"{n} {why}" for why, n in self.provenance.get("dropped", {}).items())
        parts = [f"{self.task}: {len(self)} pairs from {self.provenance.get('source', 'memory')}"]
        parts += [f"dropped {dropped}"] if dropped else []
        parts += ["with BOS" if self.prepend_bos else "without BOS"]
        if self.provenance.get("unit_digit"):
            parts += ["asked about the last digit, as this tokenizer has one token per digit"]
        return "; ".join(parts)


@dataclass(frozen=True)
class Problem:
    """What is wrong with a row; `line` is its line in the file, the header being line 1."""

    line: int
    kind: str
    message: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}"


# ---- loading -------------------------------------------------------------------------------------


def load_dataset(
    task: str,
    tokenizer: Any,
    *,
    path: str | Path | None = None,
    head: int | None = None,
    seed: int = 0,
    prepend_bos: bool | None = None,
) -> Dataset:
    """The pairs of a task as token ids.

    Args:
        task: a name of `eap.data.tasks.TASKS`; with `path`, a name of your own will do.
        tokenizer: the model's own, from Hugging Face.
        path: a CSV of your own: in the task's schema, or with columns clean, corrupted, correct and
            incorrect, the answers separated by `|` (a leading space belongs to an answer).
        head: use only the first so many pairs.
        seed: of generated pairs, for a tokenizer without a file.
        prepend_bos: None: if the tokenizer has a BOS token.

    Raises:
        UserError: unknown task; a bad row in a CSV of your own; fewer than 10 pairs that fit the
            tokenizer (of a CSV of your own: none).
    """
    if tokenizer is None:
        raise UserError("the model has no tokenizer; make a Dataset of token ids yourself")
    vocabulary = vocabulary_of(tokenizer)
    bos = tokenizer.bos_token_id
    prepend_bos = (bos is not None) if prepend_bos is None else prepend_bos
    if prepend_bos and bos is None:
        raise UserError("prepend_bos: this tokenizer has no BOS token")
    known = TASKS.get(task) if path is not None else get_task(task)
    rows, provenance = _find_rows(known, vocabulary, path, seed)
    examples, problems = check_rows(known, rows, vocabulary)
    harmful = [problem for problem in problems if problem.kind != "repeated"]
    if path is not None and harmful:
        more = f" (and {len(harmful) - 1} more)" if len(harmful) > 1 else ""
        raise UserError(f"{path}: {harmful[0]}{more}")
    if len(examples) < (1 if path is not None else FEWEST):
        reasons = ", ".join(f"{n} {why}" for why, n in Counter(p.kind for p in harmful).items())
        raise UserError(f"{task}: only {len(examples)} pairs fit this tokenizer ({reasons})")
    if prepend_bos:
        examples = [
            replace(e, clean=(bos, *e.clean), corrupted=(bos, *e.corrupted)) for e in examples
        ]
    provenance |= {
        "pairs": len(examples),
        "dropped": dict(Counter(problem.kind for problem in harmful)),
        "prepend_bos": prepend_bos,
        # What is measured on: also where pairs are generated, or a tokenizer changes.
        "tokens_sha256": hashlib.sha256(repr(examples).encode()).hexdigest(),
    }
    if known is not None and task.startswith("greater-than") and vocabulary.digits_per_piece == 1:
        provenance["unit_digit"] = True
    dataset = Dataset(task, tuple(examples), prepend_bos, provenance)
    return dataset if head is None else dataset.head(head)


@lru_cache(maxsize=8)
def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """The `Vocabulary` of a tokenizer, made once (it remembers what it has looked up)."""
    return Vocabulary(tokenizer)


def _find_rows(
    task: Task | None, vocabulary: Vocabulary, path: str | Path | None, seed: int
) -> tuple[list[Row], dict[str, Any]]:
    """Rows from a CSV of one's own, the shipped one, or the generator; and where they come from."""
    if path is None and task is not None:
        family = find_family(vocabulary)
        shipped = DATA / task.name / f"{family}.csv"
        if family is None or not shipped.exists():
            rows: list[Row] = [*task.generate(Random(seed), vocabulary, keep_all)]
            return rows, {"source": f"the generator (seed {seed})"}
        path = shipped
        source = f"data/{task.name}/{path.name}"
    else:
        source = str(path)
    path = Path(str(path))
    rows = read_csv(path, task)
    return rows, {"source": source, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def find_family(vocabulary: Vocabulary) -> str | None:
    """Which shipped files were made for this tokenizer's vocabulary, if any."""
    known = DATA / "families.json"
    if not known.exists():
        return None
    return json.loads(known.read_text(encoding="utf8")).get(fingerprint(vocabulary))


def fingerprint(vocabulary: Vocabulary) -> str:
    """A hash of a tokenizer's tokens and ids (special ones apart: they vary between copies)."""
    special = set(vocabulary.tokenizer.all_special_tokens)
    tokens = sorted(
        item for item in vocabulary.tokenizer.get_vocab().items() if item[0] not in special
    )
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()[:16]


def read_csv(path: Path, task: Task | None) -> list[Row]:
    """The rows of a CSV as text, with the columns that are needed."""
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"no data at {path}") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from None
    except (pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        raise UserError(f"{path} is not a CSV with a header: {error}") from None
    own_answers = {"correct", "incorrect"} <= set(frame.columns)
    if own_answers or task is None:
        needed = ["clean", "corrupted", "correct", "incorrect"]
    else:
        needed = ["clean", "corrupted", *task.columns]
    missing = [column for column in needed if column not in frame.columns]
    if missing:
        has = ", ".join(map(str, frame.columns))
        raise UserError(f"{path} has no column {', '.join(missing)}; it has {has}")
    if frame.empty:
        raise UserError(f"{path} has a header but no rows")
    columns = [str(column) for column in frame.columns]
    return [dict(zip(columns, row, strict=True)) for row in frame.itertuples(index=False)]


# ---- the check -----------------------------------------------------------------------------------


def check_rows(
    task: Task | None, rows: Sequence[Row], vocabulary: Vocabulary
) -> tuple[list[Example], list[Problem]]:
    """The examples of all good rows, and what is wrong with the others (or repeated)."""
    prompts = vocabulary.encode_all([row[side] for row in rows for side in ("clean", "corrupted")])
    sets: dict[tuple[str, ...], tuple[int, ...]] = {}  # of answers that many rows share
    seen: set[tuple[str, str]] = set()
    examples, problems = [], []
    for number, row in enumerate(rows):
        clean, corrupted = prompts[2 * number], prompts[2 * number + 1]
        try:
            _check_prompts(row, clean, corrupted)
            texts = _answer_texts(task, row, vocabulary)
            first_token = task is not None and task.first_token
            for own in texts:
                if own not in sets:
                    sets[own] = _answer_ids(own, vocabulary, first_token=first_token)
            correct, incorrect = (sets[own] for own in texts)
            _check_answers(task, row, correct, incorrect, vocabulary)
        except _BadRowError as error:
            problems.append(Problem(number + 2, error.kind, str(error)))
            continue
        if (row["clean"], row["corrupted"]) in seen:
            problems.append(Problem(number + 2, "repeated", "the same pair as an earlier row"))
        seen.add((row["clean"], row["corrupted"]))
        examples.append(Example(clean, corrupted, correct, incorrect))
    return examples, problems


class _BadRowError(ValueError):
    """A row that cannot be used; `kind` is what is counted."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def _check_prompts(row: Row, clean: Sequence[int], corrupted: Sequence[int]) -> None:
    for side in ("clean", "corrupted"):
        if not row[side].strip():
            raise _BadRowError("empty prompts", f"the {side} prompt is empty")
        if row[side] != row[side].rstrip():
            raise _BadRowError(
                "trailing spaces", f"the {side} prompt ends in a space, which belongs to the answer"
            )
    if row["clean"] == row["corrupted"]:
        raise _BadRowError("equal prompts", "the clean and the corrupted prompt are the same")
    if len(clean) != len(corrupted):
        raise _BadRowError(
            "unequal lengths",
            f"the clean prompt has {len(clean)} tokens and the corrupted one {len(corrupted)}; "
            f"they must be equally long: {row['clean']!r}, {row['corrupted']!r}",
        )


def _answer_texts(
    task: Task | None, row: Row, vocabulary: Vocabulary
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if "correct" in row and "incorrect" in row:
        correct, incorrect = (
            tuple(answer for answer in row[side].split("|") if answer)
            for side in ("correct", "incorrect")
        )
        return correct, incorrect
    assert task is not None
    try:
        return task.answers(row, vocabulary)
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise _BadRowError("bad labels", str(error)) from None


def _answer_ids(
    texts: tuple[str, ...], vocabulary: Vocabulary, *, first_token: bool
) -> tuple[int, ...]:
    if not texts:
        raise _BadRowError("without answers", "an answer set is empty")
    ids = []
    for text in texts:
        tokens = vocabulary.continuation(text)
        if len(tokens) != 1 and not first_token:
            raise _BadRowError(
                "answers of several tokens",
                f"the answer {text!r} is {len(tokens)} tokens; a single one is needed",
            )
        ids.append(tokens[0])
    return tuple(dict.fromkeys(ids))


def _check_answers(
    task: Task | None,
    row: Row,
    correct: Sequence[int],
    incorrect: Sequence[int],
    vocabulary: Vocabulary,
) -> None:
    if shared := set(correct) & set(incorrect):
        words = [vocabulary.tokenizer.decode([token]) for token in sorted(shared)]
        raise _BadRowError(
            "answers on both sides", f"{words[0]!r} is both a correct and an incorrect answer"
        )
    for column, side in ({} if task is None else task.answer_ids).items():
        if not row.get(column, "").strip():
            continue
        try:
            stated = ast.literal_eval(row[column])
            ids = {int(i) for i in (stated if isinstance(stated, list) else [stated])}
        except (ValueError, SyntaxError, TypeError):
            raise _BadRowError(
                "bad ids", f"{column} is {row[column]!r}, not a token id or a list of them"
            ) from None
        if ids != set(correct if side == "correct" else incorrect):
            raise _BadRowError(
                "ids of another tokenizer",
                f"{column} is {row[column]}, but with this tokenizer the {side} answer is "
                f"{list(correct if side == 'correct' else incorrect)}",
            )


def first_difference(example: Example) -> int:
    """First position in which the prompts differ; the last position if they are equal."""
    pairs = zip(example.clean, example.corrupted, strict=True)
    differing = (i for i, (clean, corrupted) in enumerate(pairs) if clean != corrupted)
    return next(differing, len(example.clean) - 1)


def statistics(examples: Sequence[Example]) -> Mapping[str, Any]:
    """Lengths, first differences and answer-set sizes of examples: {what: {value: count}}."""
    return {
        "tokens": Counter(len(e.clean) for e in examples),
        "first difference": Counter(first_difference(e) for e in examples),
        "differing positions": Counter(
            sum(a != b for a, b in zip(e.clean, e.corrupted, strict=True)) for e in examples
        ),
        "correct answers": Counter(len(e.correct) for e in examples),
    }

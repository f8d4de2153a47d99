"""The check that all rows pass: rows -> examples, and what is wrong with the others."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from eap.data.followers import Followers, Prompt, UnfitRowError
from eap.data.tasks.task import Task
from eap.data.vocabulary import Vocabulary
from eap.errors import UserError, quoted

SIDES = ("clean", "corrupted")
ANSWERS = ("correct", "incorrect")

_Texts = tuple[tuple[str, ...] | None, tuple[str, ...] | None]


@dataclass(frozen=True)
class Example:
    """One pair: token ids of both prompts, equally long, and the two sets of answer tokens.

    `incorrect` may be empty: some metrics need none. `spans` are the first tokens of the prompt's
    spans, if its data set names any (see `eap.data.spans`).
    """

    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    correct: tuple[int, ...]
    incorrect: tuple[int, ...]
    spans: tuple[int, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Problem:
    """What is wrong with a row; `place` is where it stands, `kind` what is counted."""

    place: str
    kind: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


@dataclass(frozen=True)
class _Draft:
    """A row on its way: its prompts as they stand, with the BOS, and its answers as text or ids."""

    row: Mapping[str, Any]
    place: str
    prompts: tuple[Prompt, Prompt]
    ids: tuple[tuple[int, ...], tuple[int, ...]]
    answers: _Texts
    answer_ids: tuple[tuple[int, ...], tuple[int, ...]]


def check_columns(task: Task | None, columns: Sequence[str], source: str) -> None:
    """Whether a table has what a task, or a task of one's own, needs.

    Raises:
        UserError: a column is missing.
    """
    missing = [side for side in SIDES if not {side, f"{side}_idx"} & set(columns)]
    if task is not None and not _has_answers(task, columns):
        missing += [column for column in task.columns if column not in columns]
    elif task is None and not {"correct", "correct_idx"} & set(columns):
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


def check_rows(
    task: Task | None,
    rows: Sequence[Mapping[str, Any]],
    vocabulary: Vocabulary,
    *,
    places: Sequence[str] | None = None,
    prepend_bos: bool = False,
    roles: Callable[[Mapping[str, Any], str, Sequence[int]], tuple[int, ...]] | None = None,
) -> tuple[list[Example], list[Problem]]:
    """The examples of all good rows, and what is wrong with the others (or repeated).

    Args:
        task: whose schema the rows have; None: a task of one's own.
        rows: of text, or of lists of token ids.
        vocabulary: of the tokenizer.
        places: what each row is called (default: its line in a file with a header).
        prepend_bos: begin each prompt with the BOS, unless it does already.
        roles: finds the first token of every span of a row (see `eap.data.spans.Roles`).
    """
    places = places or [f"line {number}" for number in range(2, len(rows) + 2)]
    problems: list[Problem] = []
    drafts = []
    prompts = _Prompts(vocabulary, rows, prepend_bos=prepend_bos)
    for row, place in zip(rows, places, strict=True):
        try:
            drafts.append(_draft(task, row, place, prompts))
        except UnfitRowError as error:
            problems.append(Problem(place, error.kind, str(error)))
    followers = Followers(vocabulary, first_token=task is not None and task.first_token)
    if task is None or not task.pieces:
        followers.prepare((d.prompts, [texts or () for texts in d.answers]) for d in drafts)
    examples = []
    seen: dict[tuple[tuple[int, ...], ...], tuple[str, Example]] = {}
    shared: dict[tuple[int, ...], tuple[int, ...]] = {}  # one object of each answer set
    for draft in drafts:
        try:
            example = _example(task, draft, followers, shared)
            if roles is not None:
                spans = roles(draft.row, draft.prompts[0][0], draft.ids[0])
                example = replace(example, spans=spans)
            earlier = seen.setdefault(draft.ids, (draft.place, example))
            _check_repetition(example, *earlier)
        except UnfitRowError as error:
            problems.append(Problem(draft.place, error.kind, str(error)))
            continue
        if earlier[1] is not example:
            message = f"the same pair as {earlier[0]}"
            problems.append(Problem(draft.place, "repeated", message))
        examples.append(example)
    return examples, problems


class _Prompts:
    """Ids of the prompts of all rows, encoded at once."""

    def __init__(
        self, vocabulary: Vocabulary, rows: Sequence[Mapping[str, Any]], *, prepend_bos: bool
    ) -> None:
        self.vocabulary = vocabulary
        self.begin = () if vocabulary.bos is None or not prepend_bos else (vocabulary.bos,)
        texts = [row[s] for row in rows for s in SIDES if isinstance(row.get(s), str)]
        texts = [text for text in dict.fromkeys(texts) if text]
        self._ids = dict(zip(texts, vocabulary.encode_all(texts), strict=True))

    def read(self, row: Mapping[str, Any], side: str) -> tuple[Prompt, tuple[int, ...]]:
        """A prompt as it stands (of ids: with empty text), and its ids with the BOS."""
        value = row.get(side, "")
        stated = row.get(f"{side}_idx", "")
        if isinstance(value, list) or (value == "" and stated != ""):
            cell = value if isinstance(value, list) else stated
            text, ids = "", parse_ids(cell, f"{side} prompt", self.vocabulary)
        elif isinstance(value, str):
            text, ids = value, self._ids.get(value, ())
        else:
            raise UnfitRowError(
                "bad prompts", f"the {side} prompt is {quoted(value)}, neither text nor token ids"
            )
        if not ids:
            raise UnfitRowError("empty prompts", f"the {side} prompt is empty")
        if text and self.vocabulary.lacks(text, ids):
            raise UnfitRowError(
                "unknown words", f"the vocabulary lacks a word of the {side} prompt {quoted(text)}"
            )
        if self.vocabulary.bos is not None and ids[:2] == (self.vocabulary.bos,) * 2:
            raise UnfitRowError("two BOS tokens", f"the {side} prompt begins with two BOS tokens")
        return (text, ids), ids if ids[:1] == self.begin else (*self.begin, *ids)


def _draft(task: Task | None, row: Mapping[str, Any], place: str, prompts: _Prompts) -> _Draft:
    (clean, clean_ids), (corrupted, corrupted_ids) = (prompts.read(row, side) for side in SIDES)
    if clean[0] and clean[0] == corrupted[0]:
        raise UnfitRowError("equal prompts", "the clean and the corrupted prompt are the same")
    if len(clean_ids) != len(corrupted_ids):
        raise UnfitRowError(
            "unequal lengths",
            f"the clean prompt has {len(clean_ids)} tokens and the corrupted one "
            f"{len(corrupted_ids)}; they must be equally long: "
            f"{quoted(clean[0] or clean_ids, 60)}, {quoted(corrupted[0] or corrupted_ids, 60)}",
        )
    if clean_ids == corrupted_ids:
        raise UnfitRowError(
            "equal prompts",
            "the clean and the corrupted prompt are the same tokens in this vocabulary: "
            f"{quoted(clean[0] or clean_ids, 60)}, {quoted(corrupted[0] or corrupted_ids, 60)}",
        )
    answers, ids = _read_answers(task, row, prompts.vocabulary)
    has_text = any(texts is not None for texts in answers)
    if has_text and not (clean[0] and corrupted[0]):
        raise UnfitRowError(
            "answers as text",
            "the prompts are token ids, so the answers must be too: columns correct_idx and "
            "incorrect_idx",
        )
    for text in (clean[0], corrupted[0]):
        first = next((a for texts in answers for a in texts or () if a.startswith(" ")), None)
        if text.endswith(" ") and first is not None:
            raise UnfitRowError(
                "trailing spaces",
                f"the prompt ends in a space and the answer {quoted(first)} begins with one",
            )
    return _Draft(row, place, (clean, corrupted), (clean_ids, corrupted_ids), answers, ids)


# ---- answers -------------------------------------------------------------------------------------


def _has_answers(task: Task | None, columns: Sequence[str]) -> bool:
    """Whether answers are read from columns of their own, not by the task's rule."""
    return task is None or set(ANSWERS) <= set(columns)


def _read_answers(
    task: Task | None, row: Mapping[str, Any], vocabulary: Vocabulary
) -> tuple[_Texts, tuple[tuple[int, ...], tuple[int, ...]]]:
    """For each side, the answers as text, or None and their ids."""
    if task is not None and not _has_answers(task, list(row)):
        texts = {name: v if isinstance(v, str) else repr(v) for name, v in row.items()}
        try:
            return task.answers(texts, vocabulary), ((), ())
        except UserError:
            raise
        except ValueError as error:
            raise UnfitRowError("bad labels", str(error)) from None
    correct, incorrect = (_read_side(row, side, vocabulary) for side in ANSWERS)
    return (correct[0], incorrect[0]), (correct[1], incorrect[1])


def _read_side(
    row: Mapping[str, Any], side: str, vocabulary: Vocabulary
) -> tuple[tuple[str, ...] | None, tuple[int, ...]]:
    value, stated = row.get(side, ""), row.get(f"{side}_idx", "")
    if value == "" and stated != "":
        return None, _distinct(stated, f"{side}_idx", vocabulary)
    if isinstance(value, str):
        return tuple(answer for answer in value.split("|") if answer), ()
    if isinstance(value, list) and all(isinstance(answer, str) for answer in value):
        return tuple(answer for answer in value if answer), ()
    return None, _distinct(value, side, vocabulary)


def _distinct(cell: Any, what: str, vocabulary: Vocabulary) -> tuple[int, ...]:
    return tuple(dict.fromkeys(parse_ids(cell, what, vocabulary)))


def parse_ids(cell: Any, what: str, vocabulary: Vocabulary | None = None) -> tuple[int, ...]:
    """The token ids of a cell: a number, or a list of numbers as Python and JSON write it.

    Raises:
        UnfitRowError: it is neither, or the vocabulary has no such token.
    """
    if isinstance(cell, str):
        text = cell.strip()
        inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
        parts = [part.strip() for part in inner.split(",")] if inner.strip() else []
        # Whole numbers beside missing ones are written with a point by pandas.
        good = [re.fullmatch(r"(\d{1,9})(\.0)?", part) for part in parts]
        ids = [int(match.group(1)) for match in good if match is not None]
        wrong = len(ids) < len(parts) or (len(ids) > 1 and inner is text)
    else:
        ids = list(cell) if isinstance(cell, list) else [cell]
        wrong = not all(type(i) is int and i >= 0 for i in ids)
    if wrong:
        raise UnfitRowError(
            "bad ids", f"{what} is {quoted(cell)}, not a token id or a list of them"
        )
    if vocabulary is not None and ids and max(ids) >= vocabulary.size:
        raise UnfitRowError(
            "ids out of range",
            f"{what} has token {max(ids)}, but the vocabulary's last one is {vocabulary.size - 1}",
        )
    return tuple(ids)


def _example(
    task: Task | None,
    draft: _Draft,
    followers: Followers,
    shared: dict[tuple[int, ...], tuple[int, ...]],
) -> Example:
    sides = []
    for texts, ids in zip(draft.answers, draft.answer_ids, strict=True):
        tokens = ids
        if texts and task is not None and task.pieces:
            tokens = followers.pieces(texts)
        elif texts:
            tokens = followers.ids(draft.prompts, texts)
        sides.append(shared.setdefault(tokens, tokens))
    correct, incorrect = sides
    if not correct:
        raise UnfitRowError("without answers", "the row has no correct answer")
    if not set(correct).isdisjoint(incorrect):
        both = set(correct) & set(incorrect)
        word = followers.vocabulary.tokenizer.decode([min(both)])
        raise UnfitRowError(
            "answers on both sides", f"{quoted(word)} is both a correct and an incorrect answer"
        )
    _check_stated_ids(task, draft.row, correct, incorrect)
    return Example(*draft.ids, correct, incorrect)


def _check_stated_ids(
    task: Task | None, row: Mapping[str, Any], correct: Sequence[int], incorrect: Sequence[int]
) -> None:
    """Columns of ids beside those that say the answers must agree with them."""
    columns = {} if task is None or _has_answers(task, list(row)) else task.answer_ids
    for column, side in columns.items():
        cell = row.get(column, "")
        if isinstance(cell, str) and not cell.strip():
            continue
        answers = list(correct if side == "correct" else incorrect)
        if set(parse_ids(cell, column)) != set(answers):
            raise UnfitRowError(
                "ids of another tokenizer",
                f"{column} is {quoted(cell)}, but with this tokenizer the {side} answer is "
                f"{quoted(answers)}",
            )


def _check_repetition(example: Example, place: str, earlier: Example) -> None:
    if earlier is example:
        return
    opposite = set(example.correct) & set(earlier.incorrect)
    if opposite or set(example.incorrect) & set(earlier.correct):
        raise UnfitRowError("contradictions", f"the same pair as {place}, with the opposite answer")


# ---- what examples are like ----------------------------------------------------------------------


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

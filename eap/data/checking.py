"""Checks of rows: examples from the rows that fit, and problems with the others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eap.data.cells import (
    UnfitRowError,
    answer_ids,
    answer_texts,
    as_label,
    as_text,
    is_id_list,
    is_missing,
)
from eap.data.columns import ANSWERS, SIDES, has_answers, renamed
from eap.data.example import Example
from eap.data.followers import Followers, Prompt
from eap.data.prompts import Prompts, with_ids
from eap.data.spans import Roles
from eap.data.tasks.task import Task
from eap.data.vocabulary import Vocabulary
from eap.runtime.errors import UserError, quoted

_Answers = tuple[tuple[str, ...], tuple[int, ...]]
"""Answers of one side: as texts, or (if there are no texts) as ids."""


@dataclass(frozen=True)
class Problem:
    """Problem with a row: its place, the kind under which it is counted, and a message."""

    place: str
    kind: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


@dataclass(frozen=True)
class _Draft:
    """Row during its checks: prompts as given, ids with the BOS token, and answers of both sides.

    Without a corrupted prompt there is one prompt, and the ids of the other are empty.
    """

    row: Mapping[str, Any]
    place: str
    prompts: tuple[Prompt, ...]
    ids: tuple[tuple[int, ...], tuple[int, ...]]
    answers: tuple[_Answers, ...]


def check_rows(
    task: Task | None,
    rows: Sequence[Mapping[str, Any]],
    vocabulary: Vocabulary,
    *,
    places: Sequence[str] | None = None,
    prepend_bos: bool = False,
    roles: Roles | None = None,
) -> tuple[list[Example], list[Problem]]:
    """Examples of all rows that fit, and problems with the others (or with repeated rows).

    Args:
        task: task whose columns the rows have; None: a task of the user.
        rows: rows from `eap.data.reading`. If no row has a corrupted prompt, none needs one.
        vocabulary: vocabulary of the tokenizer.
        places: name of each row in messages; None: its line in a file with a header.
        prepend_bos: whether to begin each prompt with the BOS token, unless it does already.
        roles: function that finds the first token of every span of a row (see
            `eap.data.spans.Roles`); None: no spans.
    """
    places = places or [f"line {number}" for number in range(2, len(rows) + 2)]
    problems: list[Problem] = []
    drafts = []
    rows = [with_ids(row) for row in renamed(task, rows)]
    sides = SIDES if any(_has_pair(row) for row in rows) else SIDES[:1]
    prompts = Prompts(vocabulary, rows, prepend_bos=prepend_bos)
    for row, place in zip(rows, places, strict=True):
        try:
            drafts.append(_draft(task, row, place, prompts, sides))
        except UnfitRowError as error:
            problems.append(Problem(place, error.kind, str(error)))
    followers = Followers(vocabulary, first_token=task is not None and task.first_token)
    if task is None or not task.pieces:
        followers.prepare((d.prompts, [texts for texts, _ in d.answers]) for d in drafts)
    examples = []
    seen: dict[tuple[tuple[int, ...], ...], list[tuple[str, Example]]] = {}
    shared: dict[tuple[int, ...], tuple[int, ...]] = {}  # one object for each answer set
    for draft in drafts:
        try:
            example = _example(task, draft, followers, shared, roles)
            earlier = seen.setdefault(draft.ids, [])
            for place, other in earlier:
                _check_repetition(example, place, other)
        except UnfitRowError as error:
            problems.append(Problem(draft.place, error.kind, str(error)))
            continue
        if earlier:
            message = f"the same pair as {earlier[0][0]}"
            problems.append(Problem(draft.place, "repeated", message))
        if example not in (other for _, other in earlier):
            earlier.append((draft.place, example))
        examples.append(example)
    return examples, problems


def _has_pair(row: Mapping[str, Any]) -> bool:
    return not (is_missing(row.get("corrupted")) and is_missing(row.get("corrupted_idx")))


def _draft(
    task: Task | None, row: Mapping[str, Any], place: str, prompts: Prompts, sides: Sequence[str]
) -> _Draft:
    read = [prompts.read(row, side) for side in sides]
    as_given, ids = tuple(prompt for prompt, _ in read), [tokens for _, tokens in read]
    if len(sides) == len(SIDES):
        _check_pair(as_given, ids)
    answers = _read_answers(task, row, prompts.vocabulary)
    texts = [side for side, _ in answers]
    if any(texts) and not all(text for text, _ in as_given):
        raise UnfitRowError(
            "answers as text",
            "the prompts are token ids, so the answers must be too: columns correct_idx and "
            "incorrect_idx",
        )
    spaced = next((a for side in texts for a in side if a.startswith(" ")), None)
    if spaced is not None and any(text.endswith(" ") for text, _ in as_given):
        raise UnfitRowError(
            "trailing spaces",
            f"the prompt ends in a space and the answer {quoted(spaced)} begins with one",
        )
    corrupted = ids[1] if len(ids) > 1 else ()
    return _Draft(row, place, as_given, (ids[0], corrupted), answers)


def _check_pair(as_given: Sequence[Prompt], ids: Sequence[tuple[int, ...]]) -> None:
    """Check that two prompts are a pair: equally long, and not the same."""
    shown = ", ".join(quoted(text or default, 60) for text, default in as_given)
    lengths = [len(tokens) for tokens in ids]
    if as_given[0][0] and as_given[0][0] == as_given[1][0]:
        raise UnfitRowError("equal prompts", "the clean and the corrupted prompt are the same")
    if lengths[0] != lengths[1]:
        raise UnfitRowError(
            "unequal lengths",
            f"the clean prompt has {lengths[0]} tokens and the corrupted one {lengths[1]}; they "
            f"must be equally long: {shown}",
        )
    if ids[0] == ids[1]:
        raise UnfitRowError(
            "equal prompts",
            f"the clean and the corrupted prompt are the same tokens in this vocabulary: {shown}",
        )


# ---- answers -------------------------------------------------------------------------------------


def _read_answers(
    task: Task | None, row: Mapping[str, Any], vocabulary: Vocabulary
) -> tuple[_Answers, ...]:
    """Correct and incorrect answers."""
    if task is None or has_answers(task, row):
        return tuple(_read_side(row, side, vocabulary) for side in ANSWERS)
    cells = {name: _task_cell(name, cell) for name, cell in row.items()}
    try:
        sides = task.answers({**dict.fromkeys(SIDES, ""), **cells}, vocabulary)
    except UserError:
        raise
    except ValueError as error:
        raise UnfitRowError("bad labels", str(error)) from None
    return tuple((texts, ()) for texts in sides)


def _task_cell(name: str, cell: Any) -> str:
    """Cell in the form that a task's rule reads; other types are of columns it does not read."""
    try:
        return as_text(cell, name) if name in SIDES else as_label(cell, name)
    except UnfitRowError:
        return repr(cell)


def _read_side(row: Mapping[str, Any], side: str, vocabulary: Vocabulary) -> _Answers:
    cell, what = row.get(side), side
    if is_missing(cell) and not is_missing(row.get(f"{side}_idx")):
        cell, what = row[f"{side}_idx"], f"{side}_idx"
    elif not (is_id_list(cell) and _prompts_are_ids(row)):
        return answer_texts(cell, side), ()
    ids = answer_ids(cell, what)
    vocabulary.check_ids(ids, what)
    bos = vocabulary.bos
    if bos is not None and bos in ids and bos != vocabulary.tokenizer.eos_token_id:
        raise UnfitRowError(
            "BOS tokens as answers",
            f"{what} is {quoted(cell)}, which has the BOS token {bos}: leave it out, as "
            "tokenizer(answer, add_special_tokens=False) does",
        )
    return (), ids


def _prompts_are_ids(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("clean"), list | dict) or is_missing(row.get("clean"))


def _example(
    task: Task | None,
    draft: _Draft,
    followers: Followers,
    shared: dict[tuple[int, ...], tuple[int, ...]],
    roles: Roles | None,
) -> Example:
    sides = []
    for texts, tokens in draft.answers:
        if texts and task is not None and task.pieces:
            tokens = followers.pieces(texts)
        elif texts:
            tokens = followers.ids(draft.prompts, texts)
        sides.append(shared.setdefault(tokens, tokens))
    correct, incorrect = sides
    if not correct:
        raise UnfitRowError("without answers", "the row has no correct answer")
    if common := set(correct).intersection(incorrect):
        word = followers.vocabulary.tokenizer.decode([min(common)])
        raise UnfitRowError(
            "answers on both sides", f"{quoted(word)} is both a correct and an incorrect answer"
        )
    _check_stated_ids(task, draft.row, correct, incorrect)
    spans = () if roles is None else roles(draft.row, draft.prompts[0], draft.ids[0])
    return Example.of_ids(*draft.ids, correct, incorrect, spans)


def _check_stated_ids(
    task: Task | None, row: Mapping[str, Any], correct: Sequence[int], incorrect: Sequence[int]
) -> None:
    """Check that columns of ids agree with the columns that give the answers."""
    columns = {} if task is None or has_answers(task, row) else task.answer_ids
    for column, side in columns.items():
        cell = row.get(column)
        if is_missing(cell) or (isinstance(cell, str) and not cell.strip()):
            continue
        answers = list(correct if side == "correct" else incorrect)
        if set(answer_ids(cell, column)) != set(answers):
            raise UnfitRowError(
                "ids of another tokenizer",
                f"{column} is {quoted(cell)}, but with this tokenizer the {side} answer is "
                f"{quoted(answers)}",
            )


def _check_repetition(example: Example, place: str, earlier: Example) -> None:
    opposite = set(example.correct) & set(earlier.incorrect)
    if opposite or set(example.incorrect) & set(earlier.correct):
        raise UnfitRowError("contradictions", f"the same pair as {place}, with the opposite answer")

"""Spans of the prompt: named runs of positions, such as the roles of a task.

Spans tile a prompt from its first to its last token: each begins where the previous one ends, and
some may be empty, so they are stored as their first tokens. Spans are found in the clean prompt,
and stand for the same positions of the corrupted prompt. A task finds its roles as characters of
the text; `first_tokens` finds the tokens of these characters with the tokenizer. A row whose roles
are not found does not fit; spans are never guessed.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

from eap.data.cells import UnfitRowError, prompt_ids
from eap.data.followers import Prompt
from eap.data.tasks.task import Task
from eap.data.vocabulary import Vocabulary
from eap.runtime.errors import UserError, quoted

COLUMN = "span:"
"""Prefix of the names of columns that hold a span, in user data."""

KINDS = ("roles", "auto", "tokens")
"""Values of `load_dataset(spans=...)`."""

AUTO = ("before", "difference", "after", "last")

Roles = Callable[[Mapping[str, Any], Prompt, Sequence[int]], tuple[int, ...]]
"""Function that finds the first token of every span, from cells, clean prompt and its ids."""


def roles_of(
    task: Task | None, columns: Sequence[str], vocabulary: Vocabulary
) -> tuple[tuple[str, ...], Roles]:
    """Names of the spans of a table, and the function that finds them in a row.

    Columns `span:<name>` take precedence over the roles of a task. Among the roles of a task, the
    last token is a span of its own, whatever word it belongs to.

    Raises:
        UserError: neither such columns nor a task with roles.
    """
    names = tuple(column.removeprefix(COLUMN) for column in columns if column.startswith(COLUMN))
    if names:
        return names, lambda row, prompt, ids: _of_columns(names, row, prompt, ids, vocabulary)
    if task is None or task.roles is None:
        raise UserError(
            f"{'these data' if task is None else task.name} have no roles: give columns "
            f"{COLUMN}<name> with the parts of the clean prompt, or spans='auto' or 'tokens'"
        )
    find = task.roles

    def of_task(row: Mapping[str, Any], prompt: Prompt, ids: Sequence[int]) -> tuple[int, ...]:
        text, _ = prompt
        if not text:
            raise UnfitRowError("without roles", "roles are found in text, and the prompt is ids")
        try:
            characters = find({name: str(cell) for name, cell in row.items()})
        except ValueError as error:
            raise UnfitRowError("without roles", str(error)) from None
        starts = first_tokens(text, characters, ids, vocabulary)
        last = len(ids) - 1
        return (0, *(min(start, last) for start in starts), last)

    return task.role_names, of_task


def first_tokens(
    text: str, characters: Sequence[int], ids: Sequence[int], vocabulary: Vocabulary
) -> tuple[int, ...]:
    """Indices of the tokens at which parts of a text begin, given the characters where they begin.

    A token begins at a character if the text before it, with or without trailing spaces, is encoded
    as the first tokens of the whole text.

    Args:
        text: text of the prompt.
        characters: indices of characters, in ascending order.
        ids: token ids of the prompt, including a BOS token.
        vocabulary: vocabulary of the tokenizer.

    Raises:
        UnfitRowError: a part begins within a token.
    """
    before = [(text[:character], text[:character].rstrip()) for character in characters]
    parts = [part for pair in before for part in pair]
    whole, *encoded = vocabulary.encode_all([text, *parts])
    tokens = {**dict(zip(parts, encoded, strict=True)), "": ()}
    n_special = len(ids) - len(whole)  # number of BOS tokens, which the text does not have
    starts = []
    for character, pair in zip(characters, before, strict=True):
        lengths = [len(tokens[part]) for part in pair if whole[: len(tokens[part])] == tokens[part]]
        if not lengths:
            raise UnfitRowError(
                "roles within tokens",
                f"no token begins at {quoted(text[character:], 40)} in {quoted(text, 100)}",
            )
        starts.append(n_special + lengths[0])
    return tuple(starts)


def _of_columns(
    names: Sequence[str],
    row: Mapping[str, Any],
    prompt: Prompt,
    ids: Sequence[int],
    vocabulary: Vocabulary,
) -> tuple[int, ...]:
    text, as_given = prompt
    cells = [row.get(f"{COLUMN}{name}", "") for name in names]
    if not text:
        n_special = len(ids) - len(as_given)
        try:
            starts = prompt_ids(cells, "spans")
        except UnfitRowError:
            starts = (-1,)
        if not _tile(starts, len(ids) - n_special):
            raise UnfitRowError(
                "bad spans",
                f"spans of a prompt of ids are numbers of their first tokens that ascend from 0 to "
                f"at most {len(ids) - n_special}, not {quoted(cells, 60)}",
            )
        return (0, *(start + n_special for start in starts[1:]))
    parts = [cell if isinstance(cell, str) else "" for cell in cells]
    if "".join(parts) != text:
        raise UnfitRowError(
            "bad spans",
            f"the columns {COLUMN}... joined are {quoted(''.join(parts), 100)}; they must be the "
            f"clean prompt {quoted(text, 100)}",
        )
    characters = list(accumulate(len(part) for part in parts[:-1]))
    return (0, *first_tokens(text, characters, ids, vocabulary))


def _tile(starts: Sequence[int], n_tokens: int) -> bool:
    return starts[0] == 0 and all(a <= b for a, b in pairwise((*starts, n_tokens)))


def auto_spans(clean: Sequence[int], corrupted: Sequence[int]) -> tuple[int, ...]:
    """First tokens of the spans in `AUTO`, from the first and last difference of two prompts."""
    last = len(clean) - 1
    differing = [i for i, (a, b) in enumerate(zip(clean, corrupted, strict=False)) if a != b]
    first, end = (differing[0], differing[-1] + 1) if differing else (last, last)
    return 0, min(first, last), min(end, last), last


def token_spans(lengths: set[int]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names ('0', '1', ..) and first tokens of spans of one token, for prompts of one length.

    Raises:
        UserError: the prompts have several lengths.
    """
    if len(lengths) > 1:
        raise UserError(
            f"spans='tokens' needs prompts of one length; these have {min(lengths)} to "
            f"{max(lengths)} tokens"
        )
    (n_tokens,) = lengths
    return tuple(map(str, range(n_tokens))), tuple(range(n_tokens))


def check_spans(names: Sequence[str], spans: Sequence[tuple[Sequence[int], int]]) -> None:
    """Check the spans of a data set.

    Args:
        names: names of the spans.
        spans: first tokens of the spans, and number of tokens, of every example.

    Raises:
        UserError: there are no names, two spans have one name, or the spans of an example do not
            tile its prompt.
    """
    if not names:
        raise UserError(
            "this data set has no spans: load it with load_dataset(..., spans='roles'), 'auto' or "
            "'tokens', or give dataset.with_spans(...)"
        )
    if len(set(names)) < len(names):
        raise UserError(f"two spans have one name: {quoted(', '.join(names), 200)}")
    for number, (starts, n_tokens) in enumerate(spans):
        if len(starts) != len(names) or not _tile(starts, n_tokens):
            raise UserError(
                f"example {number}: its {len(names)} spans begin at tokens that ascend from 0 to "
                f"at most {n_tokens}, not at {quoted(list(starts), 100)}"
            )


def bracketed(pieces: Sequence[str], names: Sequence[str], starts: Sequence[int]) -> str:
    """Text of a prompt with its spans in brackets: `[before: The] [noun: war] ...`."""
    ends = (*starts[1:], len(pieces))
    return " ".join(
        f"[{name}: {'·'.join(pieces[start:end])}]"
        for name, start, end in zip(names, starts, ends, strict=True)
        if start < end
    )

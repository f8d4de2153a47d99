"""Prompts of rows: token ids from text or ids, without padding and with the BOS token."""

from collections.abc import Mapping, Sequence
from typing import Any

from eap.data.cells import (
    PRINTED,
    UnfitRowError,
    as_text,
    count_padding,
    is_id_list,
    is_missing,
    masked,
    prompt_ids,
)
from eap.data.columns import SIDES
from eap.data.followers import Prompt
from eap.data.vocabulary import Vocabulary
from eap.runtime.errors import quoted

Row = Mapping[str, Any]


def with_ids(row: Row) -> Row:
    """Row in which prompts that are lists of ids as text in a CSV are replaced by lists.

    Text in brackets counts as such a list if the answers are ids, too; beside answers as text, it
    is text.
    """
    prompts = [side for side in SIDES if not is_missing(row.get(side))]
    if not prompts or not (_has_stated_ids(row) or is_id_list(row.get("correct"))):
        return row
    if not all(isinstance(row[side], str) and is_id_list(row[side]) for side in prompts):
        return row
    return {**row, **{side: list(prompt_ids(row[side], side)) for side in prompts}}


def _has_stated_ids(row: Row) -> bool:
    return is_missing(row.get("correct")) and not is_missing(row.get("correct_idx"))


class Prompts:
    """Ids of the prompts of all rows, encoded at once.

    Args:
        vocabulary: vocabulary of the tokenizer.
        rows: rows whose prompts are texts, or lists of token ids.
        prepend_bos: whether to begin each prompt with the BOS token, unless it does already.
    """

    def __init__(self, vocabulary: Vocabulary, rows: Sequence[Row], *, prepend_bos: bool) -> None:
        self.vocabulary = vocabulary
        self.begin = () if vocabulary.bos is None or not prepend_bos else (vocabulary.bos,)
        cells = [row.get(side) for row in rows for side in SIDES]
        texts = dict.fromkeys(filter(None, (_text_or_nothing(cell) for cell in cells)))
        self._ids = dict(zip(texts, vocabulary.encode_all(list(texts)), strict=True))
        self._unsure = {side for side in SIDES if self._has_unsure_starts(rows, side)}

    def read(self, row: Row, side: str) -> tuple[Prompt, tuple[int, ...]]:
        """Prompt as given (with empty text if it is ids), and its ids with the BOS token.

        Raises:
            UnfitRowError: the prompt is empty, neither text nor ids, or has tokens that the
                vocabulary lacks or that may be padding.
        """
        cell, stated = row.get(side), row.get(f"{side}_idx")
        if isinstance(cell, list | dict) or (is_missing(cell) and not is_missing(stated)):
            text, ids = "", self._read_ids(row, side, stated if is_missing(cell) else cell)
        else:
            text = as_text(cell, f"the {side} prompt")
            ids = self._ids.get(text, ())
            padding, is_text = self.vocabulary.padding
            if ids and not is_text and padding in (ids[0], ids[-1]):
                raise UnfitRowError(
                    "padded prompts",
                    f"the {side} prompt {quoted(text, 60)} begins or ends with the padding token; "
                    "leave padding out of texts",
                )
            if _has_stated_ids(row) and PRINTED.fullmatch(text):
                raise UnfitRowError(
                    "printed ids",
                    f"the {side} prompt is {quoted(text, 60)}, token ids as a library prints them; "
                    f"give them as a list, [5, 6], in a column {side}_idx",
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

    def _read_ids(self, row: Row, side: str, cell: Any) -> tuple[int, ...]:
        """Ids that a tokenizer returned, without padding."""
        mask = row.get(f"{side}_attention_mask", row.get("attention_mask"))
        if isinstance(cell, dict) and "input_ids" in cell:  # output of a tokenizer
            cell, mask = cell["input_ids"], cell.get("attention_mask", mask)
        if isinstance(cell, list) and any(isinstance(item, str | dict) for item in cell):
            raise UnfitRowError(
                "bad prompts",
                f"the {side} prompt is a list of texts, {quoted(cell, 60)}; give one text (of a "
                "chat: tokenizer.apply_chat_template(.., tokenize=False)) or token ids",
            )
        ids = prompt_ids(cell, f"the {side} prompt")
        self.vocabulary.check_ids(ids, f"the {side} prompt")
        return self._unpadded(ids, side) if is_missing(mask) else masked(ids, mask, side)

    def _unpadded(self, ids: tuple[int, ...], side: str) -> tuple[int, ...]:
        """Ids without the padding tokens at both ends.

        Raises:
            UnfitRowError: tokens that may be padding or text.
        """
        padding, is_text = self.vocabulary.padding
        if padding is None or padding not in ids:
            return ids
        first, last = count_padding(ids, padding)
        bos = self.vocabulary.bos
        if first and padding != bos and ids[first : first + 1] == (bos,):  # nothing precedes a BOS
            ids, first = ids[first:], 0
        if not is_text:
            return ids[first : len(ids) - last]
        if last or first > 1 or (first and side in self._unsure):
            token = self.vocabulary.tokenizer.convert_ids_to_tokens(padding)
            raise UnfitRowError(
                "padded prompts",
                f"the {side} prompt {'ends' if last else 'begins'} with {last or first} of "
                f"{quoted(token)}, which may be padding or text: leave padding out, or give a "
                "column attention_mask",
            )
        return ids

    def _has_unsure_starts(self, rows: Sequence[Row], side: str) -> bool:
        """Whether only some of the prompts, if all have one length, begin with a padding token."""
        padding, is_text = self.vocabulary.padding
        prompts = [row.get(side) or row.get(f"{side}_idx") for row in rows]
        lists = [ids for ids in prompts if isinstance(ids, list) and ids]
        same_length = len({len(ids) for ids in lists}) == 1
        starts = {ids[0] == padding for ids in lists} if same_length and is_text else set()
        return len(starts) == 2 and padding != self.vocabulary.bos


def _text_or_nothing(cell: Any) -> str:
    """Text of a prompt, or an empty string if it is not text, which `Prompts.read` reports."""
    try:
        return "" if isinstance(cell, list | dict) else as_text(cell, "")
    except UnfitRowError:
        return ""

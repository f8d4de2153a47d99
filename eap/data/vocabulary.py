"""Vocabulary: ids of texts, tokens of answers, and how numbers are split by a tokenizer."""

import json
from collections.abc import Iterable
from functools import cached_property, lru_cache
from itertools import compress
from typing import Any

from eap.data.cells import UnfitRowError
from eap.runtime.errors import UserError

# Texts before an answer, tried in turn until the answer does not change the tokens of one.
PROBES = ("x", "the", "(", "\n", "0")
YEARS = range(1100, 1800)


class Vocabulary:
    """Tokenizer without special tokens; only `eap.data` adds the BOS token.

    The text of a special token within a prompt is encoded as that token, as in chat templates.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.token = lru_cache(maxsize=None)(self._token)

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a text."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: list[str]) -> list[tuple[int, ...]]:
        """Token ids of many texts."""
        if not texts:
            return []
        encoded = self.tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, verbose=False
        )
        return [tuple(ids) for ids in encoded["input_ids"]]

    @cached_property
    def size(self) -> int:
        """Largest id plus one."""
        return max(self.tokenizer.get_vocab().values(), default=-1) + 1

    @cached_property
    def bos(self) -> int | None:
        """Id of the BOS token, or None."""
        return self.tokenizer.bos_token_id

    @cached_property
    def padding(self) -> tuple[int | None, bool]:
        """Id of the padding token, and whether this token may also occur in text.

        Without a padding token, the EOS token is taken, which is the usual choice for padding then.
        """
        tokenizer = self.tokenizer
        number = tokenizer.pad_token_id
        number = tokenizer.eos_token_id if number is None else number
        return number, number in (tokenizer.bos_token_id, tokenizer.eos_token_id, self.unknown[0])

    def check_ids(self, ids: Iterable[int], what: str) -> None:
        """Check that the vocabulary has all of these tokens.

        Raises:
            UnfitRowError: a token is missing.
        """
        largest = max(ids, default=0)
        if largest >= self.size:
            raise UnfitRowError(
                "ids out of range",
                f"{what} has token {largest}, but the vocabulary's last one is {self.size - 1}",
            )

    @cached_property
    def unknown(self) -> tuple[int | None, str]:
        """Id and text of the token for unknown words."""
        token = self.tokenizer.unk_token
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if token is None and backend is not None:  # the backend may have one that is not declared
            model = json.loads(backend.to_str())["model"]
            token, number = model.get("unk_token"), model.get("unk_id")
            token = self.tokenizer.convert_ids_to_tokens(number) if number is not None else token
        return (None, "") if token is None else (self.tokenizer.get_vocab().get(token), token)

    def lacks(self, text: str, ids: Iterable[int]) -> bool:
        """Whether `ids`, the ids of `text`, have unknown tokens that are not in the text."""
        unknown, name = self.unknown
        return unknown is not None and tuple(ids).count(unknown) > text.count(name)

    def continuation(self, answer: str) -> tuple[int, ...]:
        """Ids of `answer` after other text (a leading space belongs to the answer).

        This is for words outside a prompt; `followers` finds the token that follows a given prompt.

        Raises:
            ValueError: the answer changes the tokens of every text that was tried before it.
        """
        for probe in PROBES:
            before, together = self.encode_all([probe, probe + answer])
            if before and together[: len(before)] == before:
                return together[len(before) :]
        raise ValueError(f"{answer!r} merges with the text before it")

    def _token(self, answer: str) -> int | None:
        try:
            ids = self.continuation(answer)
        except ValueError:
            return None
        return ids[0] if len(ids) == 1 and not self.lacks(answer, ids) else None

    def is_one_token(self, answer: str) -> bool:
        """Whether `answer` is a single token after other text."""
        return self.token(answer) is not None

    def one_token_words(self, words: tuple[str, ...]) -> list[str]:
        """Words that are a single token after a space."""
        return [word for word in words if self.is_one_token(f" {word}")]

    @cached_property
    def digits_per_piece(self) -> int:
        """Number of digits in the last token of most years: 2 (GPT-2, Pythia) or 1 (Llama).

        Llama 3 has tokens of up to three digits and splits 1732 into 173|2, so its last has one.

        Raises:
            UserError: neither, so that numbers cannot be asked for one token at a time.
        """
        fitting = {}
        for digits in (2, 1):
            pieces = [self.token(f"{n:0{digits}d}") for n in range(10**digits)]
            if None not in pieces and len(set(pieces)) == 10**digits:
                fitting[digits] = sum(self._split_numbers(YEARS, digits))
        best = max(fitting, key=lambda digits: fitting[digits], default=0)
        if not fitting.get(best):
            split = "|".join(self.tokenizer.decode([i]).strip() for i in self.encode("x 1732")[1:])
            raise UserError(
                "this tokenizer splits 1732 into "
                f"{split.strip('|')!r}: neither the last two digits of years nor the last one are "
                "tokens of their own, so the greater-than tasks cannot be posed"
            )
        return best

    def splits_numbers(self, numbers: Iterable[int]) -> set[int]:
        """Numbers whose last piece is a token of its own."""
        asked = list(numbers)
        return set(compress(asked, self._split_numbers(asked, self.digits_per_piece)))

    def _split_numbers(self, numbers: Iterable[int], digits: int) -> list[bool]:
        texts = [str(number) for number in numbers]
        whole = self.encode_all([f"x {text}" for text in texts])
        heads = self.encode_all([f"x {text[:-digits]}" for text in texts])
        return [
            len(text) > digits and ids == (*head, self.token(text[-digits:]))
            for text, ids, head in zip(texts, whole, heads, strict=True)
        ]

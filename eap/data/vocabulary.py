"""What a task asks of a tokenizer: ids of texts, single-token answers, how numbers are split."""

from functools import cached_property, lru_cache
from typing import Any

from eap.errors import UserError


class Vocabulary:
    """A tokenizer as text -> ids, without special tokens (`eap.data` alone adds the BOS)."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.token = lru_cache(maxsize=None)(self._token)

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of a text."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode_all(self, texts: list[str]) -> list[tuple[int, ...]]:
        """Ids of many texts."""
        if not texts:
            return []
        return [tuple(ids) for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]]

    def continuation(self, answer: str) -> tuple[int, ...]:
        """Ids of `answer` as it follows other text (a leading space belongs to it)."""
        before = self.encode("x")
        return self.encode("x" + answer)[len(before) :]

    def _token(self, answer: str) -> int | None:
        ids = self.continuation(answer)
        return ids[0] if len(ids) == 1 else None

    def is_one_token(self, answer: str) -> bool:
        """Whether `answer` is a single token after other text."""
        return self.token(answer) is not None

    def one_token_words(self, words: tuple[str, ...]) -> list[str]:
        """Those words that are one token after a space."""
        return [word for word in words if self.is_one_token(f" {word}")]

    @cached_property
    def digits_per_piece(self) -> int:
        """2 if "00" .. "99" are tokens of their own (GPT-2, Pythia), 1 if each digit is (Llama).

        Raises:
            UserError: neither; numbers cannot be asked for one token at a time.
        """
        for digits in (2, 1):
            pieces = [self.token(f"{n:0{digits}d}") for n in range(10**digits)]
            if None not in pieces and len(set(pieces)) == 10**digits:
                return digits
        raise UserError(
            "this tokenizer has neither all two-digit numbers nor all digits as tokens of their "
            "own; the greater-than tasks cannot be posed"
        )

    def splits_number(self, number: int) -> bool:
        """Whether the last piece of a number after a space is a token of its own."""
        text = str(number)
        head, tail = text[: -self.digits_per_piece], text[-self.digits_per_piece :]
        return self.encode(f"x {text}") == self.encode(f"x {head}") + self.continuation(tail)

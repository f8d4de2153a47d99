"""Tokens of answers: the token that follows *this* prompt.

`tokens(prompt + answer)` must begin with `tokens(prompt)`, for the clean and for the corrupted
prompt, and continue with the same token in both. Tokenizers often split the end of a prompt
differently once more text follows (GPT-2 does so for two newlines before a word, most tokenizers
for a space). Then no token is the answer, because the model never sees the prompt's last token in
such a text.
"""

import re
from collections.abc import Iterable, Sequence

from eap.data.cells import UnfitRowError
from eap.data.vocabulary import Vocabulary
from eap.runtime.errors import quoted

# Largest number of answers in a set that are all looked up after the whole prompt. In larger sets,
# which many rows share, only the first is; the others are looked up after the prompt's last word.
FEW = 8

Prompt = tuple[str, tuple[int, ...]]
"""Text of a prompt, and its token ids."""

Answers = tuple[str, ...]
"""Texts of an answer set."""


class Followers:
    """Cache of the ids of answers after prompts."""

    def __init__(self, vocabulary: Vocabulary, *, first_token: bool = False) -> None:
        self.vocabulary = vocabulary
        self.first_token = first_token
        self._ids: dict[str, tuple[int, ...]] = {}
        self._endings: dict[str, str] = {}
        self._after: dict[tuple[str, Answers], tuple[int, ...]] = {}

    def prepare(self, wanted: Iterable[tuple[Sequence[Prompt], Sequence[Answers]]]) -> None:
        """Encode all texts at once that `ids` will need for these prompts and answer sets."""
        pairs = [
            (prompt, answers)
            for prompts, sets in wanted
            for answers in dict.fromkeys(sets)
            for prompt in prompts
        ]
        self._find_endings(dict(prompt for prompt, answers in pairs if len(answers) > FEW))
        contexts = {context for pair in pairs for context in self._contexts(*pair)}
        self._encode(text + answer for text, answers in contexts for answer in answers)

    def pieces(self, answers: Answers) -> tuple[int, ...]:
        """Tokens of answers that are tokens on their own.

        Raises:
            UnfitRowError: an answer is not a single token.
        """
        tokens = {}
        for answer in answers:
            token = self.vocabulary.token(answer)
            if token is None:
                raise UnfitRowError(
                    "answers of several tokens",
                    f"the answer {quoted(answer)} is not a token of its own",
                )
            tokens[token] = answer
        return tuple(tokens)

    def ids(self, prompts: Sequence[Prompt], answers: Answers) -> tuple[int, ...]:
        """Token of each answer after all of `prompts`.

        Raises:
            UnfitRowError: an answer is no token or several tokens, differs between the prompts,
                changes the tokens of the prompt, or is not in the vocabulary.
        """
        first, *others = (
            [self._tokens(prompt, *context) for context in self._contexts(prompt, answers)]
            for prompt in prompts
        )
        if any(tokens != first for tokens in others):
            raise UnfitRowError(
                "answers that differ",
                f"an answer of {quoted('|'.join(answers))} is another token after the corrupted "
                "prompt than after the clean one",
            )
        if first[0][0] != first[-1][0]:
            raise _changed_prompt(prompts[0][0], answers[0])
        return first[-1]

    def _contexts(self, prompt: Prompt, answers: Answers) -> list[tuple[str, Answers]]:
        """Texts, with the answers that are looked up after each of them."""
        if len(answers) <= FEW:
            return [(prompt[0], answers)]
        return [(prompt[0], answers[:1]), (self._endings[prompt[0]], answers)]

    def _tokens(self, prompt: Prompt, text: str, answers: Answers) -> tuple[int, ...]:
        if (text, answers) not in self._after:
            tokens = (self._follower(prompt, text, answer) for answer in answers)
            self._after[text, answers] = tuple(dict.fromkeys(tokens))
        return self._after[text, answers]

    def _find_endings(self, prompts: dict[str, tuple[int, ...]]) -> None:
        """Find the last word of each prompt whose tokens end the prompt's, or the whole prompt."""
        endings = {text: _last_words(text) for text in prompts if text not in self._endings}
        self._encode(word for words in endings.values() for word in words)
        for text, words in endings.items():
            fitting = (w for w in words if _ends_in(prompts[text], self._ids[w]))
            self._endings[text] = next(fitting, text)

    def _encode(self, texts: Iterable[str]) -> None:
        new = [text for text in dict.fromkeys(texts) if text not in self._ids]
        self._ids |= dict(zip(new, self.vocabulary.encode_all(new), strict=True))

    def _follower(self, prompt: Prompt, text: str, answer: str) -> int:
        before = prompt[1] if text == prompt[0] else self._ids[text]
        together = self._ids[text + answer]
        if together[: len(before)] != before:
            raise _changed_prompt(prompt[0], answer)
        following = together[len(before) :]
        if not following or (len(following) > 1 and not self.first_token):
            raise UnfitRowError(
                "answers of several tokens" if following else "answers without a token",
                f"the answer {quoted(answer)} is {len(following)} tokens; a single one is needed",
            )
        if self.vocabulary.lacks(answer, following[:1]):
            raise UnfitRowError(
                "unknown words", f"the vocabulary has no token for the answer {quoted(answer)}"
            )
        return following[0]


def _last_words(text: str) -> tuple[str, ...]:
    """Last word with and without the space before it; empty for a prompt of one word."""
    match = re.search(r"\s(\S+\s*)$", text)
    return () if match is None else (match.group(0), match.group(1))


def _ends_in(ids: tuple[int, ...], last: tuple[int, ...]) -> bool:
    return bool(last) and ids[-len(last) :] == last


def _changed_prompt(text: str, answer: str) -> UnfitRowError:
    """Error for an answer that changes the tokens of its prompt, so that no token is the answer."""
    if text.endswith(" "):
        return UnfitRowError(
            "trailing spaces",
            "the prompt ends in a space, which belongs to the answer: write it before "
            f"{quoted(answer)} and not after the prompt",
        )
    end = text[len(text.rstrip()) :]
    if end:
        return UnfitRowError(
            "changed prompts",
            f"this tokenizer splits the prompt's end {end!r} differently once {quoted(answer)} "
            "follows, so no token is the answer; end it in another way (one newline)",
        )
    return UnfitRowError(
        "changed prompts",
        f"the answer {quoted(answer)} changes the tokens of the prompt that it follows "
        f"({quoted(text[-20:])}); if there is a space between them, write it before the answer",
    )

"""Corrupted prompts for rows without one, by exchanging a word for another of equal length."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from eap.data.cells import as_text, is_missing
from eap.data.checking import check_rows
from eap.data.columns import renamed
from eap.data.dataset import vocabulary_of
from eap.data.reading import read_rows
from eap.data.tasks.ioi import NAMES
from eap.data.vocabulary import Vocabulary
from eap.runtime.errors import UserError, quoted
from eap.runtime.kinds import checked
from eap.runtime.ranges import whole

NUMBER = re.compile(r"(?<![\w.,])\d+(?![\w]|[.,]\d)")

# Number of words that are tried in a row before the row is left out.
MOST_TRIED = 200


@dataclass(frozen=True)
class Counterparts:
    """Rows with corrupted prompts.

    Attributes:
        rows: rows for `load_dataset(.., data=counterparts.rows)`, in their original order.
        left_out: number of rows without a counterpart, by reason.
        exchanged: pair of words of each row: in the clean prompt, and in the corrupted prompt.
    """

    rows: list[dict[str, Any]]
    left_out: dict[str, int] = field(default_factory=dict)
    exchanged: list[tuple[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"<Counterparts {self.summary()}>"

    def summary(self) -> str:
        """One line with the number of rows that have a corrupted prompt, and why others do not."""
        n_left_out = sum(self.left_out.values())
        why = ", ".join(f"{n} {reason}" for reason, n in self.left_out.items())
        said = f"{len(self)} of {len(self) + n_left_out} rows have a corrupted prompt"
        return f"{said}; left out: {why}" if why else said


@checked
def corrupt(
    data: Any, tokenizer: Any, words: str | Sequence[str], *, seed: int = 0
) -> Counterparts:
    """Make corrupted prompts for rows without one, by exchanging one word of each clean prompt.

    The word is replaced everywhere in the prompt by the same other word, which must not be in the
    prompt, so that both prompts have equally many tokens and the answers keep their tokens. Whether
    the right answer changes with the word is for the user to judge.

    Args:
        data: data in a form that `load_dataset` accepts, with the columns clean and correct.
        tokenizer: tokenizer of the model.
        words: words to exchange: 'names' (first names), 'numbers' (whole numbers with equally many
            digits), or a list of words that may replace one another.
        seed: seed of the choice of words.

    Returns:
        The rows with a column `corrupted`, and the number of rows that were left out.

    Raises:
        UserError: data that cannot be read or that have corrupted prompts already, words in another
            form, or no row with a corrupted prompt.

    Example:
        rows = [{"clean": "Mary is tall. Her name is", "correct": " Mary"}]
        made = eap.data.corrupt(rows, model.tokenizer, "names")
        dataset = eap.load_dataset("names", model.tokenizer, data=made.rows)
    """
    listed = _listed(words)
    table = read_rows(data)
    rows = renamed(None, table.rows)
    if any(not is_missing(row.get("corrupted")) for row in rows):
        raise UserError(f"{table.shown} has corrupted prompts already")
    vocabulary = vocabulary_of(tokenizer)
    random = Random(whole("seed", seed))
    records: list[dict[str, Any]] = []
    exchanged: list[tuple[str, str]] = []
    left_out: Counter[str] = Counter()
    for row in rows:
        _, problems = check_rows(None, [row], vocabulary)
        if problems:
            left_out[problems[0].kind] += 1
            continue
        clean = as_text(row.get("clean"), "the clean prompt")
        places = _words_in(clean, listed)
        if not places:
            left_out[f"without one of the {words if isinstance(words, str) else 'words'}"] += 1
            continue
        fitting = _first_fitting(row, clean, places, listed, vocabulary, random)
        if fitting is None:
            left_out["without a word of as many tokens"] += 1
            continue
        records.append({**row, "corrupted": fitting[0]})
        exchanged.append(fitting[1])
    counterparts = Counterparts(records, dict(left_out), exchanged)
    if not records:
        raise UserError(f"{table.shown}: {counterparts.summary()}")
    return counterparts


def _listed(words: str | Sequence[str]) -> tuple[str, ...] | None:
    """Words that may replace one another; None: whole numbers."""
    if words == "numbers":
        return None
    if words == "names":
        return NAMES
    good = not isinstance(words, str | bytes) and isinstance(words, Sequence)
    listed = tuple(dict.fromkeys(words)) if good else ()
    if len(listed) < 2 or not all(isinstance(word, str) and word.strip() for word in listed):
        raise UserError(
            f"words is {quoted(words)}; give 'names', 'numbers', or a list of at least two words "
            "that may replace one another"
        )
    return tuple(word.strip() for word in listed)


def _pattern(word: str) -> str:
    """Regular expression for a word that is not part of another word, or of another number."""
    if word.isdigit():
        return NUMBER.pattern.replace(r"\d+", word, 1)
    return rf"(?<!\w){re.escape(word)}(?!\w)"


def _words_in(text: str, listed: tuple[str, ...] | None) -> list[str]:
    if listed is None:
        return list(dict.fromkeys(NUMBER.findall(text)))
    return [word for word in listed if re.search(_pattern(word), text)]


def _first_fitting(
    row: dict[str, Any],
    clean: str,
    places: list[str],
    listed: tuple[str, ...] | None,
    vocabulary: Vocabulary,
    random: Random,
) -> tuple[str, tuple[str, str]] | None:
    """First corrupted prompt, among random ones, with which the row fits; and the two words."""
    random.shuffle(places)
    n_tokens = len(vocabulary.encode(clean))
    for word in places:
        others = [other for other in _others(word, listed, random) if other not in places]
        texts = [re.sub(_pattern(word), other.replace("\\", r"\\"), clean) for other in others]
        for other, text, ids in zip(others, texts, vocabulary.encode_all(texts), strict=True):
            if len(ids) == n_tokens:
                _, problems = check_rows(None, [{**row, "corrupted": text}], vocabulary)
                if not problems:
                    return text, (word, other)
    return None


def _others(word: str, listed: tuple[str, ...] | None, random: Random) -> Iterator[str]:
    """Words that may replace a word, in random order."""
    if listed is not None:
        others = [other for other in listed if other != word]
        return iter(random.sample(others, min(len(others), MOST_TRIED)))
    low, high = (10 ** (len(word) - 1) if len(word) > 1 else 0), 10 ** len(word)
    numbers = dict.fromkeys(random.randrange(low, high) for _ in range(MOST_TRIED))
    return (str(number) for number in numbers if str(number) != word)

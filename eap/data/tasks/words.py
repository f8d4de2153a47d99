"""Lists of words that tasks are made of, from data/words/."""

import csv

from eap.runtime.shipped import data_folder

FOLDER = data_folder() / "words"


def words(file: str) -> tuple[str, ...]:
    """The words of a file, with spaces or line ends between them."""
    return tuple((FOLDER / file).read_text(encoding="utf8").split())


def word_pairs(file: str) -> list[tuple[str, str]]:
    """The rows of a table of two columns, without its header."""
    with (FOLDER / file).open(encoding="utf8", newline="") as table:
        return [(first, second) for first, second in list(csv.reader(table))[1:]]

"""Lists of words for tasks, from data/words/."""

import csv

from eap.runtime.shipped import data_folder

FOLDER = data_folder() / "words"


def words(file: str) -> tuple[str, ...]:
    """Words of a file, separated by spaces or line ends."""
    return tuple((FOLDER / file).read_text(encoding="utf8").split())


def word_pairs(file: str) -> list[tuple[str, str]]:
    """Rows of a table with two columns, without its header."""
    with (FOLDER / file).open(encoding="utf8", newline="") as table:
        return [(first, second) for first, second in list(csv.reader(table))[1:]]

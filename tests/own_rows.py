"""Two rows of one's own, what they become, and what is said of others."""

from __future__ import annotations

import pandas as pd
import pytest
from models.tokenizers import byte_tokenizer

from eap.data.dataset import load_dataset
from eap.runtime.errors import UserError

TOKENIZER = byte_tokenizer()
ROWS = [
    {"clean": "The hat is", "corrupted": "The cat is", "correct": "!", "incorrect": "?"},
    {"clean": "A mat, is", "corrupted": "A rat, is", "correct": "a|b", "incorrect": "c"},
]
COLUMNS = list(ROWS[0])
EXPECTED = load_dataset("own", TOKENIZER, data=ROWS).examples


def refusal(data, task="own", **arguments):
    with pytest.raises(UserError) as error:
        load_dataset(task, TOKENIZER, data=data, **arguments)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def frame():
    return pd.DataFrame(ROWS)

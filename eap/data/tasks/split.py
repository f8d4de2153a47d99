"""Split of pairs into those that the toy model is trained on and those kept for its evaluation.

The side of a pair is decided by a hash of its text. So training and evaluation share templates and
vocabulary but no pair, whatever the order and however often pairs are drawn. Facts, stereotypes and
classes have no side: the facts are in training, their pairing with a corrupted prompt is not.
"""

import hashlib
from collections.abc import Mapping

# Share of the possible pairs that are held out, by task.
HELD_OUT = {
    "ioi": 0.2,
    "greater-than": 0.2,
    "greater-than-price": 0.2,
    "greater-than-sequence": 0.2,
    "sva": 0.45,
}


def is_held_out(task: str, row: Mapping[str, str]) -> bool:
    """Whether a pair is for evaluation only; both directions of a pair are on the same side."""
    if task not in HELD_OUT:
        return True
    # In sva, a pair in both directions counts as one pair.
    key = "|".join(sorted((row["clean"], row["corrupted"]))) if task == "sva" else row["clean"]
    return hashlib.sha256(f"{task}|{key}".encode()).digest()[0] < 256 * HELD_OUT[task]

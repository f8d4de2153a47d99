"""Pairs of prompts with spans: ragged, empty ones everywhere, across the first difference."""

from __future__ import annotations

from dataclasses import replace

from models.tiny import random_examples

from eap.data.dataset import Dataset

NAMES = ("a", "b", "c", "d")
STARTS = [(0, 2, 2, 3), (0, 0, 4, 6), (0, 1, 3, 6), (0, 2, 2, 3), (0, 5, 6, 6), (0, 3, 5, 5)]
PAIRS = tuple(
    replace(example, spans=spans)
    for example, spans in zip(
        random_examples([4, 7, 6, 4, 7, 6], [1, 0, 3, 2, 6, None], seed=7), STARTS, strict=True
    )
)
"""Ragged lengths, empty spans in all places, spans before and across the first difference."""
DATA = Dataset("random", PAIRS, span_names=NAMES)
ONE_SPAN = Dataset("x", tuple(replace(pair, spans=(0,)) for pair in PAIRS), span_names=("all",))
"""The same pairs, each one span."""

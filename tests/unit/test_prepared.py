"""How examples are cut into batches where several processes work on them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from models.tiny import random_examples
from reference import twins
from reference.twins import dataset_of

from eap.ablation import get_ablation
from eap.engine import prepared
from eap.metrics.metric import METRICS
from eap.runtime.resources import Resources


@pytest.mark.parametrize(
    ("n_processes", "batch_size", "sizes"),
    [(1, None, [7]), (2, None, [4, 3]), (3, None, [3, 3, 1]), (9, None, [1] * 7), (2, 7, [7])],
)
def test_examples_of_one_length_are_work_for_every_process(
    monkeypatch, n_processes, batch_size, sizes
):
    """Unless a person says how many go together."""
    monkeypatch.setattr(prepared, "processes", SimpleNamespace(count=lambda: n_processes))
    model, config = twins.load("gpt2"), twins.load("gpt2").config
    examples = random_examples([6] * 7, [2] * 7)
    work = prepared.Work.plan(
        model, dataset_of(examples), [METRICS["logit_diff"]], get_ablation(None), config,
        Resources(batch_size=batch_size), prepared.demand_of_gradients("a soft circuit", config),
    )  # fmt: skip
    assert [len(rows) for rows in work.rows_of] == sizes

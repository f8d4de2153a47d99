"""Crossing scores equal one run for each key span, and sum to the scores of edges into v."""

from __future__ import annotations

import copy

import pytest
import torch
from models.tiny import FAMILIES, MAIN_FAMILIES, bridge_of, tiny_hf
from reference import oracle, twins
from reference.crossing_twin import crossing
from reference.span_data import DATA, NAMES, PAIRS
from reference.twins import assert_close

import eap
from eap.data.dataset import Dataset
from eap.runtime.errors import UserError


def crossed(family, data=DATA, **more):
    model = twins.load(family, torch.float64)
    with twins.precision(family, torch.float64):
        return eap.crossing_scores(model, data, **{"batch_size": 4} | more)


@pytest.mark.parametrize("family", MAIN_FAMILIES)
def test_keys_and_values_move_what_one_run_for_each_span_says(family):
    model = twins.hf_model(family)
    found = crossed(family)
    for number, (kind, tolerance) in enumerate((("k", 1e-9), ("v", 1e-6))):
        with oracle.float64():
            expected = torch.stack(
                [
                    crossing(
                        model, pair,
                        oracle.metric_of("logit_diff", pair.correct, pair.incorrect), kind,
                    )
                    for pair in PAIRS
                ]
            )  # fmt: skip
        assert_close(found.scores[number], expected.mean(0), tolerance)
        assert_close(
            found.standard_errors[number], expected.std(0) / len(PAIRS) ** 0.5, 10 * tolerance
        )


@pytest.mark.parametrize("ablation", ["resample", "zero"])
@pytest.mark.parametrize("family", FAMILIES)
def test_values_sum_to_the_scores_of_edges_into_v(family, ablation):
    found = crossed(family, ablation=ablation)
    with twins.precision(family, torch.float64):
        edges = eap.attribute(
            twins.load(family, torch.float64), DATA, method="EAP", ablation=ablation,
            expanded_kv=True, spans=True,
        )  # fmt: skip
    into_v = torch.stack(
        [edges.scores[:, :, edges.receiver_names.index(f"{head}<v>")] for head in found.heads]
    )
    assert_close(found.scores[1].sum(-1), into_v.sum(-1), 1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_models_in_half_precision_give_nearly_the_same_scores(family, dtype):
    half = tiny_hf(family).to(dtype)
    found, expected = (
        eap.crossing_scores(eap.from_bridge(bridge_of(hf), name="tiny"), DATA, batch_size=4)
        for hf in (half, copy.deepcopy(half).float())
    )
    assert found.scores.dtype == torch.float32
    for number in range(2):
        assert_close(found.scores[number], expected.scores[number], 0.05)


def test_nothing_is_moved_back_and_batches_change_nothing():
    found = crossed("llama")
    back = torch.ones(len(NAMES), len(NAMES), dtype=torch.bool).tril(-1)
    assert (found.scores[..., back] == 0).all()
    assert_close(crossed("llama", batch_size=1).scores, found.scores, 1e-12)
    frame = found.to_frame()
    assert len(frame) == 2 * len(found.heads) * 10
    first = frame.iloc[0]
    place = (
        "kv".index(first["input"]), found.heads.index(first["head"]),
        NAMES.index(first["from"]), NAMES.index(first["to"]),
    )  # fmt: skip
    assert first["score"] == float(found.scores[place])
    assert frame["score"].abs().is_monotonic_decreasing
    assert found.provenance["spans"] == list(NAMES)


def test_data_without_spans_and_metrics_without_gradient_are_refused():
    with pytest.raises(UserError, match="no spans"):
        crossed("gpt2", Dataset("x", PAIRS))
    with pytest.raises(UserError, match="where crossing scores take it; use another metric"):
        crossed("gpt2", metric="kl")

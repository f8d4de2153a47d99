"""The memory budget: one sum for batch size and stacked runs, and what is really alive."""

from __future__ import annotations

import re
from functools import partial
from itertools import accumulate
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models.tiny import random_examples
from reference import twins
from reference.twins import dataset_of

import eap
from eap.model.shapes import shapes_of
from eap.runtime import cost, memory
from eap.runtime.memory import Budget, Extent, Shapes

GPT2 = Shapes(12, 12, 12, 768, 64, 3072, 50257, gated=False, parallel=False)
NEEDS = {
    "attribution": lambda extent: memory.attribution_need(GPT2, extent, 50, GPT2.d_vocab),
    "evaluation": lambda extent: memory.evaluation_need(GPT2, extent, 50, GPT2.d_vocab),
    "patching": lambda extent: memory.patching_need(GPT2, extent, GPT2.d_vocab),
}


@given(
    st.lists(
        st.tuples(st.integers(1, 200), st.integers(1, 80), st.integers(0, 80)),
        min_size=1,
        max_size=4,
    ),
    st.integers(20, 16_000),
    st.sampled_from(sorted(NEEDS)),
)
def test_batch_and_stacked_runs_come_out_of_one_sum(rows, mebibytes, what):
    """Whatever is chosen, the sum stays within the budget; one run more would leave it."""
    budget = Budget(mebibytes * 2**20, enough_tokens=2048, reserved=2**20)
    extents = [Extent(n, positions, positions + prefix) for n, positions, prefix in rows]
    try:
        batch_size = budget.batch_size(extents, NEEDS[what], what)
    except eap.UserError:  # not one run fits
        return
    for extent in extents:
        batch = Extent(min(batch_size, extent.n_rows), extent.n_positions, extent.n_keys)
        need = NEEDS[what](batch)
        n_runs = budget.runs_at_once(batch, need, what)
        assert budget.bytes_of(batch, need, n_runs) <= budget.n_bytes
        tokens = (n_runs + 1) * batch.n_rows * batch.n_positions
        assert tokens > 2048 or budget.bytes_of(batch, need, n_runs + 2) > budget.n_bytes


def test_more_points_are_not_stacked_where_memory_is_short():
    """The smaller the budget, the fewer points at a time; a batch of one leaves no room for 50."""
    extent = Extent(1, 6, 16)
    need = NEEDS["attribution"](extent)
    counts = [
        Budget(mebibytes * 2**20, 2048).runs_at_once(extent, need, "attribution")
        for mebibytes in (64, 128, 256, 100_000)
    ]
    assert counts == sorted(counts)
    assert counts[0] < 5
    assert counts[-1] == 2048 // 6


def test_heads_wider_than_their_share_of_the_model_are_counted():
    wide = Shapes(12, 12, 12, 768, 256, 3072, 50257, gated=False, parallel=False)
    extent = Extent(1, 10, 20)
    for needs in (
        lambda shapes: memory.attribution_need(shapes, extent, 5, 2),
        lambda shapes: memory.patching_need(shapes, extent, 2),
        lambda shapes: memory.evaluation_need(shapes, extent, 1, 2),
    ):
        narrow_need, wide_need = needs(GPT2), needs(wide)
        assert wide_need.kept > narrow_need.kept
        assert wide_need.each > narrow_need.each


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox", "gemma2"])
def test_shapes_are_those_of_the_weights(family):
    model = twins.load(family)
    shapes = shapes_of(model)
    attention, mlp = model.blocks[0].attention, model.blocks[0].mlp
    assert shapes.d_heads == attention.W_Q.shape[0] * attention.W_Q.shape[2]
    assert shapes.d_kv == attention.W_K.shape[0] * attention.W_K.shape[2]
    assert shapes.d_mlp == mlp.W_in.shape[0]
    assert shapes.gated == (mlp.W_gate is not None)
    assert shapes.n_forward == model.config.n_forward


# ---- free memory ---------------------------------------------------------------------------------


def accelerator(free, reserved, allocated, devices=1):
    return SimpleNamespace(
        mem_get_info=lambda device: (free, 80 * 2**30),
        memory_reserved=lambda device: reserved,
        memory_allocated=lambda device: allocated,
        device_count=lambda: devices,
    )


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_what_an_allocator_holds_and_does_not_use_is_free(kind, monkeypatch):
    """Otherwise batches would shrink from call to call."""
    device = SimpleNamespace(type=kind)
    monkeypatch.setattr(torch, kind, accelerator(10 * 2**30, 6 * 2**30, 2 * 2**30))
    assert memory.free_bytes(device) == 14 * 2**30
    budget = Budget.of(device)
    assert budget.n_bytes == 7 * 2**30
    assert budget.enough_tokens == 32768
    assert not budget.is_given


def test_processes_share_what_is_free(monkeypatch):
    device = SimpleNamespace(type="cuda")
    monkeypatch.setattr(memory.distributed, "count", lambda: 5)
    monkeypatch.setattr(torch, "cuda", accelerator(8 * 2**30, 0, 0, devices=2))
    assert Budget.of(device).n_bytes == 4 * 2**30 // 3


def test_a_given_budget_is_kept_and_a_default_one_never_refuses_a_run():
    device = torch.device("cpu")
    assert Budget.of(device, 12345) == Budget(12345, 2048, held=memory.HELD["cpu"])
    extent = Extent(4, 6, 16)
    need = NEEDS["attribution"](extent)
    assert Budget(100, 2048, is_given=False).runs_at_once(extent, need, "attribution") == 1
    with pytest.raises(eap.UserError, match="is the least"):
        Budget(100, 2048).runs_at_once(extent, need, "attribution")


# ---- what is alive -------------------------------------------------------------------------------


def most_alive(run):
    """Bytes of tensors that are alive at most while something runs, beside those before."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        run()
    # The trace as JSON says the same, and takes most of the test's time to write and read.
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events))


VARIED = random_examples([24, 24, 8, 16], [20, 6, 2, 15], seed=7)
"""First differences that vary: a batch with few positions still looks at a long prompt."""


def check_budgets(run):
    """What is alive stays within the least budget that is not refused, and within twice that."""
    with pytest.raises(eap.UserError, match="too small") as error:
        run(memory_budget=1)
    (named,) = re.findall(r"takes ([\d.]+) MiB", str(error.value))
    least = int(float(named) * 2**20)
    run(memory_budget=least)  # what is made once and kept is not of a run
    for budget in (least, 2 * least):
        alive = most_alive(partial(run, memory_budget=budget))
        assert 0.05 * budget < alive <= budget


@pytest.mark.parametrize("n_points", [5, 20])
@pytest.mark.parametrize("examples", [VARIED, VARIED[1:2]], ids=["varied", "one"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_gradients_at_many_points_stay_within_the_budget(family, examples, n_points):
    model, data = twins.load(family), dataset_of(examples)
    check_budgets(partial(eap.attribute, model, data, metric="kl", steps=n_points))


@pytest.mark.parametrize(
    "method", ["EAP", "CEAP", "EAP-IG-activations", "AtP*-QK", "AtP*-GradDrop", "GIM", "IFR"]
)
def test_every_method_stays_within_the_budget(method):
    model, data = twins.load("gpt2"), dataset_of(VARIED)
    check_budgets(partial(eap.attribute, model, data, method=method))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_patched_edges_stay_within_the_budget(family):
    model, data = twins.load(family), dataset_of(VARIED)
    check_budgets(partial(eap.patch_edges, model, data, metrics=["logit_diff", "kl", "js"]))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_circuits_stay_within_the_budget(family):
    model, data = twins.load(family), dataset_of(VARIED)
    graph = eap.attribute(model, data, steps=1)
    circuits = [graph.greedy(n).prune() for n in (20, 40, graph.n_edges)]
    check_budgets(partial(eap.evaluate, model, circuits, data, metrics=["kl", "js"]))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_means_stay_within_the_budget(family):
    model, data = twins.load(family), dataset_of(VARIED * 8)
    check_budgets(partial(eap.Mean.over_dataset, model, data))
    whole, cut = (
        eap.Mean.over_dataset(model, data, **limits) for limits in ({}, {"batch_size": 3})
    )
    twins.assert_close(whole.outputs, cut.outputs, 1e-5)


@pytest.mark.parametrize("selection", ["top_n", "greedy"])
def test_resamples_stay_within_the_budget(selection):
    """All resamples' scores are alive at once, and the null task's beside them."""
    model, data = twins.load("gpt2"), dataset_of(VARIED)
    run = partial(
        eap.bootstrap, model, data, steps=1, n_resamples=100, sizes=[20], selection=selection
    )
    check_budgets(run)


def test_verdicts_stay_within_the_budget():
    model, data = twins.load("gpt2"), dataset_of(VARIED[:2])
    circuit = eap.attribute(model, data, steps=1).greedy(10).prune()
    run = partial(eap.judge, model, circuit, data, n_random=19, n_subsets=2)
    check_budgets(run)


# ---- operations ----------------------------------------------------------------------------------


def test_operations_are_those_of_pen_and_paper():
    """Two layers, one head of 3 in a model of 2, an MLP of 5; one query position, four keys."""
    shapes = Shapes(2, 1, 1, 2, 3, 5, 7, gated=True, parallel=False)
    extent = Extent(1, 1, 4)
    # k and v: 2 x 2 x 3; q and output: 2 x 3 x 2; scores and values: 2 x 3 x 4; MLP: 3 x 2 x 5.
    layer = 12 + 12 + 24 + 30
    assert cost.layer_operations(shapes, extent, n_queries=1) == layer
    assert cost.run_operations(shapes, extent) == 2 * layer

    def patched(number, kind):
        return cost.patching_operations(shapes, extent, number, kind, n_columns=7)

    assert patched(1, "logits") == 14
    assert patched(1, "mlp") == 14 + 30
    assert patched(0, "mlp") == 14 + 30 + layer
    assert patched(0, "q") == 14 + layer + 30 + (6 + 24 + 6)

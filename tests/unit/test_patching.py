"""Exact values of every edge equal one full run per edge."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models.tiny import FAMILIES, MAIN_FAMILIES, random_examples
from reference import micro, twins
from reference.oracle import float64
from reference.twins import EXAMPLES, FORMS, METRICS, RELATIVE, assert_close, dataset_of

import eap
from eap.metrics.metric import METRICS as PACKAGE_METRICS
from eap.runtime.checkpoint import Checkpoint
from eap.runtime.errors import UserError

TWO_METRICS = ("logit_diff", "kl")
"""A metric of the answers' logits, and one of all logits against those of the clean run."""


def patch(family, dtype, examples, **arguments):
    model = twins.load(family, dtype)
    with twins.precision(family, dtype):
        return eap.patch_edges(model, dataset_of(examples), **arguments)


def check_values(family, dtype, examples, metrics=METRICS, *, expanded=False, **more):
    """Means and standard errors of all edges for all metrics."""
    graphs = patch(family, dtype, examples, metrics=metrics, expanded_kv=expanded, **more)
    exact = twins.oracle_exact(family, examples, expanded=expanded)
    assert list(graphs) == list(metrics)
    for name, graph in graphs.items():
        expected = exact[METRICS.index(name)]
        assert_close(graph.scores, expected.mean(0), RELATIVE[dtype])
        assert torch.equal(graph.is_exact, graph.edge_exists)
        if len(examples) == 1:
            assert graph.standard_errors is None
        else:
            errors = expected.std(0, correction=1) / len(examples) ** 0.5
            assert_close(graph.standard_errors, errors, RELATIVE[torch.float32])
    return graphs


@pytest.mark.parametrize(("family", "expanded"), FORMS)
def test_all_edges_equal_one_run_per_edge(family, expanded):
    """All as one batch, which begins at the first token, and in batches with prefixes."""
    check_values(family, torch.float32, EXAMPLES, expanded=expanded, batch_size=4)
    check_values(family, torch.float64, EXAMPLES, expanded=expanded, batch_size=64)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_first_difference_equals_one_run_per_edge(family):
    """The first token, the last one, and all between; each from its own prefix on."""
    check_values(family, torch.float64, EXAMPLES, TWO_METRICS, batch_size=1)


@pytest.mark.parametrize("family", MAIN_FAMILIES)
def test_one_example_equals_one_run_per_edge(family):
    for example in EXAMPLES:
        check_values(family, torch.float64, (example,), TWO_METRICS)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 64])
@pytest.mark.parametrize("family", MAIN_FAMILIES)
def test_every_batch_size_equals_one_run_per_edge(family, batch_size):
    check_values(family, torch.float32, EXAMPLES, TWO_METRICS, batch_size=batch_size)


@pytest.mark.parametrize("family", FAMILIES)
def test_some_metrics_alone_equal_one_run_per_edge(family):
    """For `logit_diff` alone the logits of answers are all that is computed."""
    for metrics in (["logit_diff"], ["kl"], ["js", "logit_diff"]):
        check_values(family, torch.float64, twins.RAGGED, metrics)


@pytest.mark.parametrize("memory_budget", [1_200_000, 2_000_000, 4_000_000])
@pytest.mark.parametrize(
    ("family", "expanded"), [("gpt2", False), ("neox", False), ("llama", True)]
)
def test_a_small_memory_budget_changes_only_how_much_runs_at_a_time(
    family, expanded, memory_budget
):
    check_values(
        family,
        torch.float64,
        twins.RAGGED,
        TWO_METRICS,
        expanded=expanded,
        batch_size=2,
        memory_budget=memory_budget,
    )


@settings(max_examples=12)  # each has values of the oracle that no other test shares
@given(
    st.lists(st.tuples(st.integers(1, 7), st.integers(0, 6)), min_size=1, max_size=4),
    st.integers(0, 1000),
    st.sampled_from(MAIN_FAMILIES),
    st.integers(1, 5),
)
def test_any_examples_equal_one_run_per_edge(rows, seed, family, batch_size):
    lengths, firsts = zip(*((length, first % length) for length, first in rows), strict=True)
    examples = random_examples(lengths, firsts, seed=seed)
    check_values(family, torch.float64, examples, TWO_METRICS, batch_size=batch_size)


def test_values_of_the_micro_model_are_those_of_pen_and_paper():
    with float64():
        model = eap.from_bridge(micro.micro_bridge())
        graph = eap.patch_edges(model, dataset_of([micro.EXAMPLE]))["logit_diff"]
    scores = {edge.name: edge.score for edge in graph.edges()}
    expected = {name: micro.EXACT.get(name, 0.0) for name in scores}
    assert scores == pytest.approx(expected, abs=1e-9)


# ---- chosen edges --------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "expanded"), FORMS)
def test_chosen_edges_have_their_values_and_the_others_none(family, expanded):
    everything = twins.edges_of(family, expanded=expanded)
    generator = torch.Generator().manual_seed(0)
    for density in (0.05, 0.3, 0.8):
        edges = everything & (torch.rand(everything.shape, generator=generator) < density)
        graph = patch(family, torch.float64, twins.RAGGED, edges=edges, expanded_kv=expanded)[
            "logit_diff"
        ]
        expected = twins.oracle_exact(family, twins.RAGGED, expanded=expanded)[0].mean(0)
        assert_close(graph.scores[edges], expected[edges], 1e-9)
        assert graph.scores[everything & ~edges].isnan().all()
        assert (graph.scores[~everything] == 0).all()
        assert torch.equal(graph.is_exact, edges)
        assert torch.equal(graph.in_graph, everything)  # selection is another step


def test_each_single_edge_can_be_chosen():
    expected = twins.oracle_exact("neox", twins.RAGGED)[0].mean(0)
    for sender, receiver in twins.edges_of("neox").nonzero().tolist():
        edges = torch.zeros(expected.shape, dtype=torch.bool)
        edges[sender, receiver] = True
        graph = patch("neox", torch.float64, twins.RAGGED, edges=edges)["logit_diff"]
        error = abs(float(graph.scores[sender, receiver] - expected[sender, receiver]))
        assert error <= 1e-9 * float(expected.abs().max())


def test_a_selection_from_unfinished_scores_is_refused():
    edges = torch.zeros_like(twins.edges_of("gpt2"))
    edges[0, 0] = True
    graph = patch("gpt2", torch.float32, twins.RAGGED, edges=edges)["logit_diff"]
    with pytest.raises(eap.UserError, match="NaN"):
        graph.greedy(1)


# ---- invariants ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_prompts_have_zero_values(family):
    """Up to rounding: the two runs are rows of one batch, which a kernel may add up differently."""
    examples = random_examples([5, 7, 1], [None, None, None])
    for graph in patch(family, torch.float32, examples, metrics=METRICS).values():
        assert graph.scores.abs().max() < 1e-5


@pytest.mark.parametrize("family", MAIN_FAMILIES)
def test_two_runs_are_identical_and_saved_values_are_those_that_were_computed(family, tmp_path):
    one, other = (patch(family, torch.float32, EXAMPLES, metrics=METRICS) for _ in range(2))
    for name, graph in one.items():
        assert torch.equal(graph.scores, other[name].scores)
        for suffix in ("json", "safetensors"):
            path = tmp_path / f"graph.{suffix}"
            graph.save(path)
            loaded = eap.Graph.load(path)
            assert torch.equal(loaded.scores, graph.scores)
            assert torch.equal(loaded.is_exact, graph.is_exact)
            assert torch.equal(loaded.standard_errors, graph.standard_errors)


@pytest.mark.parametrize("family", FAMILIES)
def test_kl_and_js_only_grow(family):
    """Both are zero at the clean run and nowhere smaller."""
    graphs = patch(family, torch.float64, EXAMPLES, metrics=["kl", "js"])
    for graph in graphs.values():
        assert graph.scores.min() > -1e-12


def test_estimates_have_the_sign_of_exact_values():
    """On edges into the logits the final norm is all that is between; large ones must agree."""
    for family in MAIN_FAMILIES:
        exact = patch(family, torch.float64, EXAMPLES)["logit_diff"]
        with twins.precision(family, torch.float64):
            estimate = eap.attribute(
                twins.load(family, torch.float64), dataset_of(EXAMPLES), method="EAP"
            )
        into_logits, own = exact.scores[:, -1], estimate.scores[:, -1]
        assert torch.corrcoef(torch.stack([into_logits, own]))[0, 1] > 0.8


def test_any_differentiable_or_other_metric_can_be_patched():
    """Accuracy has no gradient, but it has values."""
    own = eap.Metric("mine", PACKAGE_METRICS["logit_diff"].function, higher_is_better=True)
    graphs = patch("gpt2", torch.float64, EXAMPLES, metrics=["accuracy", own, "logit_diff"])
    assert_close(graphs["mine"].scores, graphs["logit_diff"].scores, 1e-12)
    assert (graphs["accuracy"].scores * len(EXAMPLES)).frac().abs().max() < 1e-9


# ---- stopped and continued -----------------------------------------------------------------------


class StoppedError(Exception):
    pass


def checkpoint_at(path, identity="this run"):
    return Checkpoint(path, {"run": identity}, seconds=0.0)


@pytest.mark.parametrize("n_units", [1, 2, 7, 14])
def test_a_stopped_run_goes_on_and_ends_with_the_same_numbers(tmp_path, monkeypatch, n_units):
    arguments = {"metrics": METRICS, "batch_size": 4}
    undisturbed = patch("llama", torch.float32, EXAMPLES, **arguments)
    save, saved = Checkpoint.save, []

    def stop_after(self, totals, done, **more):
        save(self, totals, done, **more)
        saved.append(done)
        if len(saved) == n_units:
            raise StoppedError

    path = tmp_path / "part.safetensors"
    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "save", stop_after)
        with pytest.raises(StoppedError):
            patch("llama", torch.float32, EXAMPLES, checkpoint=checkpoint_at(path), **arguments)
    assert saved == list(range(1, n_units + 1))
    continued = patch("llama", torch.float32, EXAMPLES, checkpoint=checkpoint_at(path), **arguments)
    for name, graph in undisturbed.items():
        assert torch.equal(continued[name].scores, graph.scores)
        assert torch.equal(continued[name].standard_errors, graph.standard_errors)


def test_progress_of_another_run_is_refused_by_name(tmp_path):
    path = tmp_path / "part.safetensors"
    patch("gpt2", torch.float32, twins.RAGGED, checkpoint=checkpoint_at(path))
    with pytest.raises(eap.UserError, match="progress of another run: run 'this run'"):
        patch("gpt2", torch.float32, twins.RAGGED, checkpoint=checkpoint_at(path, "that run"))


def test_progress_of_other_edges_is_refused(tmp_path):
    """The same senders and receivers' layers, so the same units of work, but other edges."""
    path = tmp_path / "part.safetensors"
    every = twins.edges_of("gpt2")
    receivers = torch.arange(every.shape[1])
    some, others = every & (receivers % 4 != 0), every & (receivers % 4 != 1)
    options = {"edges": some, "checkpoint": checkpoint_at(path)}
    patch("gpt2", torch.float32, twins.RAGGED, **options)
    with pytest.raises(eap.UserError, match="another run: edges"):
        patch("gpt2", torch.float32, twins.RAGGED, **{**options, "edges": others})


@pytest.mark.parametrize("budget", [400_000, 500_000, 700_000, 1_500_000, 10_000_000])
def test_a_batch_is_chosen_that_leaves_room_for_a_run(budget):
    graph = patch("gpt2", torch.float64, twins.RAGGED, memory_budget=budget)["logit_diff"]
    assert_close(graph.scores, twins.oracle_exact("gpt2", twins.RAGGED)[0].mean(0), 1e-9)


def test_progress_with_another_batch_size_is_never_mixed_in(tmp_path):
    """Units of work are numbered; another batch size makes others of them."""
    path = tmp_path / "part.safetensors"
    patch("gpt2", torch.float64, EXAMPLES, batch_size=4, checkpoint=checkpoint_at(path))
    try:
        graph = patch(
            "gpt2", torch.float64, EXAMPLES, batch_size=1, checkpoint=checkpoint_at(path)
        )["logit_diff"]
    except eap.UserError:
        return
    expected = twins.oracle_exact("gpt2", EXAMPLES)[0].mean(0)
    assert_close(graph.scores, expected, 1e-9)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / "part.safetensors"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(eap.UserError, match="is not a checkpoint"):
        patch("gpt2", torch.float32, twins.RAGGED, checkpoint=checkpoint_at(path))


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metrics": ["nll"]}, "unknown metric 'nll'; known are"),
        ({"batch_size": 0}, "it must be a whole number from 1"),
        ({"memory_budget": 1000}, "too small"),
        ({"batch_size": 64, "memory_budget": 100_000}, "is the least"),
        ({"edges": torch.ones(11, 27, dtype=torch.bool)}, "only where edge_exists"),
        ({"edges": torch.ones(2, 2, dtype=torch.bool)}, r"\[11, 27\]"),
    ],
)
def test_what_cannot_be_patched_is_refused_in_one_line(arguments, message):
    with pytest.raises(eap.UserError, match=message) as error:
        patch("gpt2", torch.float32, EXAMPLES, **arguments)
    assert "\n" not in str(error.value)


def test_the_least_budget_that_a_refusal_names_is_enough():
    with pytest.raises(eap.UserError, match=r"MiB is the least") as error:
        patch("gpt2", torch.float64, twins.RAGGED, batch_size=4, memory_budget=200_000)
    (named,) = re.findall(r"([\d,.]+) MiB is the least", str(error.value))
    budget = int(float(named.replace(",", "")) * 2**20)
    graph = patch("gpt2", torch.float64, twins.RAGGED, batch_size=4, memory_budget=budget)
    expected = twins.oracle_exact("gpt2", twins.RAGGED)[0].mean(0)
    assert_close(graph["logit_diff"].scores, expected, 1e-9)


def test_no_examples_are_refused():
    with pytest.raises(eap.UserError, match="no examples"):
        patch("gpt2", torch.float32, ())


def test_progress_on_other_pairs_or_answers_is_not_resumed(tmp_path):
    """Whatever the identity that the caller gives."""
    model, (first, second) = twins.load("gpt2"), twins.RAGGED[:2]
    turned = replace(first, correct=first.incorrect, incorrect=first.correct)
    edges = eap.attribute(model, twins.dataset_of([first]), method="EAP").top_n(6).in_graph
    path = tmp_path / "x.part.safetensors"
    for number, pair in enumerate((first, turned, second)):
        options = {"edges": edges, "checkpoint": Checkpoint(path, {}, seconds=0.0)}
        if number:
            with pytest.raises(UserError, match="another run"):
                eap.patch_edges(model, twins.dataset_of([pair]), **options)
        else:
            eap.patch_edges(model, twins.dataset_of([pair]), **options)


def test_nodes_whose_values_are_no_numbers_are_refused():
    """Otherwise they would be in every circuit of nodes."""
    no_number = eap.Metric("no_number", lambda logits, _c, _a: logits[:, 0] * torch.nan)
    for patch in (eap.patch_edges, eap.patch_nodes):
        with pytest.raises(UserError, match="'no_number' is NaN"):
            patch(twins.load("gpt2"), twins.dataset_of(twins.RAGGED[:2]), metrics=[no_number])


def test_values_that_were_not_measured_have_no_errors():
    model, data = twins.load("gpt2"), twins.dataset_of(twins.RAGGED)
    edges = eap.attribute(model, data, method="EAP").top_n(6).in_graph
    graph = eap.patch_edges(model, data, edges=edges)["logit_diff"]
    assert graph.scores.isnan()[graph.edge_exists].equal(
        graph.standard_errors.isnan()[graph.edge_exists]
    )

"""Baselines and circuits equal the oracle, whatever the circuit, the batch and the metric."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models.tiny import D_VOCAB, FAMILIES, MAIN_FAMILIES, random_examples
from reference import micro, twins
from reference.oracle import float64, metric_of
from reference.twins import DTYPES, EXAMPLES, FORMS, RELATIVE, assert_close, dataset_of

import eap

METRICS = ("logit_diff", "prob_diff", "kl", "js", "accuracy")
DENSITIES = (0.02, 0.1, 0.3, 0.5, 0.8, 0.95, 0.99)


def graph_of(family, *, expanded=False):
    return eap.Graph.from_model(twins.load(family), expanded_kv=expanded)


def random_circuits(family, *, expanded=False, seed=0):
    """A circuit of every density, as it is and pruned."""
    generator = torch.Generator().manual_seed(seed)
    graph = graph_of(family, expanded=expanded)
    drawn = [
        graph.with_edges(
            graph.edge_exists & (torch.rand(graph.scores.shape, generator=generator) < density)
        )
        for density in DENSITIES
    ]
    return [*drawn, *(circuit.prune() for circuit in drawn)]


def odd_circuits(family, *, expanded=False):
    """Circuits in which whole kinds of edges are missing."""
    graph = graph_of(family, expanded=expanded)
    senders, receivers = graph.sender_names, graph.receiver_names
    exists = graph.edge_exists

    def keep(condition):
        table = torch.tensor([[condition(s, r) for r in receivers] for s in senders])
        return graph.with_edges(exists & table)

    circuits = {
        "whole": graph.full(),
        "empty": graph.empty(),
        "only into the logits": keep(lambda s, r: r == "logits"),
        "only from the input": keep(lambda s, r: s == "input"),
        "from the input to the logits": keep(lambda s, r: (s, r) == ("input", "logits")),
        "nothing into the logits": keep(lambda s, r: r != "logits"),
        "nothing from the input": keep(lambda s, r: s != "input"),
        "no attention": keep(lambda s, r: "<" not in r),
        "no MLP": keep(lambda s, r: not r.startswith("m")),
        "nothing from an MLP": keep(lambda s, r: not s.startswith("m")),
        "nothing from a head": keep(lambda s, r: not s.startswith("a")),
        "no edge into the first layer": keep(lambda s, r: r[:2] not in ("a0", "m0")),
        "no edge into the last layer": keep(lambda s, r: r[:2] not in ("a1", "m1")),
        "heads of one layer only": keep(lambda s, r: r[:2] == "a1" or s[:2] == "a1"),
        "one head": keep(lambda s, r: s == "a1.h1" or r.startswith("a1.h1<")),
    }
    for letter in "qkv":
        circuits[f"only {letter}"] = keep(
            lambda s, r, letter=letter: "<" not in r or r.endswith(f"<{letter}>")
        )
        circuits[f"all but {letter}"] = keep(
            lambda s, r, letter=letter: not r.endswith(f"<{letter}>")
        )
    return circuits


def check_circuits(
    family, circuits, examples, metrics=METRICS, *, expanded=False, dtypes=DTYPES, **more
):
    """In both precisions, or in some."""
    circuits = list(circuits)
    edges = torch.stack([circuit.in_graph for circuit in circuits])
    expected = twins.oracle_circuits(family, examples, edges, metrics, expanded=expanded)
    for dtype in dtypes:
        model = twins.load(family, dtype)
        with twins.precision(family, dtype):
            found = eap.evaluate(model, circuits, dataset_of(examples), metrics=metrics, **more)
        assert list(found) == list(metrics)
        for name, values in zip(metrics, expected, strict=True):
            # The divergence of the whole graph is zero; in float32 a sum of rounded numbers.
            scale = max(1.0, float(values.abs().max())) if dtype == torch.float32 else 0.0
            assert_close(found[name], values, RELATIVE[dtype], at_least=scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_baselines_equal_the_oracle(family, dtype):
    model = twins.load(family, dtype)
    with twins.precision(family, dtype):
        found = eap.evaluate_baselines(model, dataset_of(EXAMPLES), metrics=METRICS)
    hf = twins.hf_model(family)
    for own, prompts in zip(found, ("clean", "corrupted"), strict=True):
        with float64():
            runs, clean = (
                [twins.oracle.last_logits(hf, getattr(example, kind)) for example in EXAMPLES]
                for kind in (prompts, "clean")
            )
        for name in METRICS:
            with float64():
                expected = [
                    metric_of(name, example.correct, example.incorrect)(run, at_clean)
                    for example, run, at_clean in zip(EXAMPLES, runs, clean, strict=True)
                ]
            largest = max(1.0, float(torch.stack(expected).abs().max()))
            error = (own[name].double() - torch.stack(expected)).abs().max()
            assert error <= RELATIVE[dtype] * largest


@pytest.mark.parametrize(("family", "expanded"), FORMS)
def test_random_circuits_equal_the_oracle(family, expanded):
    circuits = random_circuits(family, expanded=expanded)
    for batch_size, dtype in ((64, torch.float64), (4, torch.float32)):
        check_circuits(
            family, circuits, EXAMPLES, expanded=expanded, dtypes=[dtype], batch_size=batch_size
        )


@pytest.mark.parametrize(("family", "expanded"), FORMS)
def test_odd_circuits_equal_the_oracle(family, expanded):
    circuits = odd_circuits(family, expanded=expanded).values()
    check_circuits(family, circuits, twins.RAGGED, expanded=expanded, dtypes=[torch.float64])


@pytest.mark.parametrize("family", FAMILIES)
def test_circuits_equal_the_oracle_at_each_first_difference(family):
    check_circuits(family, random_circuits(family), EXAMPLES, dtypes=[torch.float64], batch_size=1)


@pytest.mark.parametrize(
    ("batch_size", "dtype"),
    [(1, torch.float32), (2, torch.float64), (4, torch.float32), (64, torch.float64)],
)
@pytest.mark.parametrize("family", MAIN_FAMILIES)
def test_circuits_equal_the_oracle_at_every_batch_size(family, batch_size, dtype):
    circuits = random_circuits(family, seed=7)
    check_circuits(family, circuits, EXAMPLES, dtypes=[dtype], batch_size=batch_size)


def test_circuits_of_the_micro_model_have_the_values_of_pen_and_paper():
    with float64():
        model = eap.from_bridge(micro.micro_bridge())
        graph = eap.Graph.from_model(model)
        circuits = []
        for edges in micro.CIRCUITS:
            in_graph = torch.zeros_like(graph.edge_exists)
            for edge in edges:
                in_graph[graph.index(edge)] = True
            circuits.append(graph.with_edges(in_graph))
        dataset = dataset_of([micro.EXAMPLE])
        found = eap.evaluate(model, circuits, dataset, metrics="logit_diff")["logit_diff"]
        clean, corrupted = eap.evaluate_baselines(model, dataset)
    assert found[:, 0].tolist() == pytest.approx(list(micro.CIRCUITS.values()))
    assert float(clean["logit_diff"]) == pytest.approx(micro.CLEAN)
    assert float(corrupted["logit_diff"]) == pytest.approx(micro.CORRUPTED)


# ---- invariants ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "expanded"), FORMS)
def test_the_whole_graph_gives_the_clean_run_and_the_empty_one_the_corrupted_run(family, expanded):
    model, dataset = twins.load(family), dataset_of(EXAMPLES)
    graph = graph_of(family, expanded=expanded)
    baselines = eap.evaluate_baselines(model, dataset, metrics=METRICS)
    found = eap.evaluate(model, [graph.full(), graph.empty()], dataset, metrics=METRICS)
    for row, baseline in enumerate(baselines):
        for name in METRICS:
            largest = max(1.0, float(baseline[name].abs().max()))
            assert (found[name][row] - baseline[name]).abs().max() <= 1e-5 * largest


@settings(max_examples=12)  # each has values of the oracle that no other test shares
@given(
    st.lists(st.tuples(st.integers(1, 8), st.integers(0, 7)), min_size=1, max_size=5),
    st.integers(0, 1000),
    st.sampled_from(MAIN_FAMILIES),
    st.floats(0, 1),
    st.integers(1, 6),
)
def test_any_circuit_on_any_examples_equals_the_oracle(rows, seed, family, density, batch_size):
    lengths, firsts = zip(*((length, first % length) for length, first in rows), strict=True)
    graph = graph_of(family)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(graph.scores.shape, generator=generator) < density
    check_circuits(
        family,
        [graph.with_edges(graph.edge_exists & drawn)],
        random_examples(lengths, firsts, seed=seed),
        ("logit_diff", "kl"),
        batch_size=batch_size,
    )


@pytest.mark.parametrize(("family", "expanded"), FORMS)
def test_pruning_does_not_change_what_a_circuit_does(family, expanded):
    """Where a norm follows attention, a head that nothing reads still shares in its scale."""
    if family.startswith("gemma"):
        return
    model, dataset = twins.load(family, torch.float32), dataset_of(EXAMPLES)
    circuits = random_circuits(family, expanded=expanded, seed=3)
    values = eap.evaluate(model, circuits, dataset)["logit_diff"]
    as_drawn, pruned = values[: len(DENSITIES)], values[len(DENSITIES) :]
    assert_close(pruned, as_drawn, 1e-5)


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama", "gemma2"])
def test_leaving_out_one_edge_gives_its_exact_value(family):
    """No edge is lost on the way: every one of them, unpruned, against exact patching."""
    model, dataset = twins.load(family, torch.float64), dataset_of(twins.RAGGED)
    graph = graph_of(family)
    edges = graph.edge_exists.nonzero()
    circuits = []
    for edge in edges:
        in_graph = graph.edge_exists.clone()
        in_graph[tuple(edge)] = False
        circuits.append(graph.with_edges(in_graph))
    with twins.precision(family, torch.float64):
        clean, _ = eap.evaluate_baselines(model, dataset)
        found = eap.evaluate(model, circuits, dataset)["logit_diff"] - clean["logit_diff"]
        exact = eap.patch_edges(model, dataset)["logit_diff"].scores
    assert_close(found.mean(1), exact[tuple(edges.T)], 1e-9)


def test_evaluation_modifies_neither_graph_nor_dataset():
    graph = random_circuits("llama")[2]
    dataset = dataset_of(EXAMPLES)
    scores, in_graph = graph.scores.clone(), graph.in_graph.clone()
    eap.evaluate(twins.load("llama"), [graph, graph.empty()], dataset, metrics=METRICS)
    assert torch.equal(graph.scores, scores)
    assert torch.equal(graph.in_graph, in_graph)
    assert dataset == dataset_of(EXAMPLES)


def test_one_graph_gives_a_value_per_example_and_a_list_a_row_per_graph():
    model, dataset = twins.load("gpt2"), dataset_of(EXAMPLES)
    circuits = random_circuits("gpt2")[:3]
    several = eap.evaluate(model, circuits, dataset, metrics=["kl"])["kl"]
    assert several.shape == (3, len(EXAMPLES))
    for circuit, row in zip(circuits, several, strict=True):
        alone = eap.evaluate(model, circuit, dataset, metrics=["kl"])["kl"]
        assert alone.shape == (len(EXAMPLES),)
        assert_close(alone, row, 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_batch_size_and_order_of_examples_change_nothing(family):
    circuits = random_circuits(family)
    model = twins.load(family)
    backwards = tuple(reversed(EXAMPLES))
    one = eap.evaluate(model, circuits, dataset_of(EXAMPLES), batch_size=64)["logit_diff"]
    other = eap.evaluate(model, circuits, dataset_of(backwards), batch_size=1)["logit_diff"]
    assert_close(other.flip(1), one, 1e-5)


def test_saved_and_loaded_circuits_give_identical_values(tmp_path):
    model, dataset = twins.load("llama"), dataset_of(EXAMPLES)
    for expanded in (False, True):
        scored = eap.attribute(model, dataset, method="EAP", expanded_kv=expanded)
        circuit = scored.greedy(20).prune()
        for name in ("graph.json", "graph.safetensors"):
            circuit.save(tmp_path / name)
            again = eap.Graph.load(tmp_path / name)
            one, other = (eap.evaluate(model, own, dataset) for own in (circuit, again))
            assert torch.equal(one["logit_diff"], other["logit_diff"])
            assert torch.equal(
                again.greedy(33).in_graph, scored.greedy(33).in_graph
            )  # the scores too


def test_any_token_may_be_in_a_prompt_that_is_shorter_than_others():
    """Padding is no token: 0 and 1 are tokens like others."""
    examples = (
        *random_examples([9], [2], seed=8),
        eap.Example(clean=(0, 1, 0, 5), corrupted=(0, 1, 1, 5), correct=(0,), incorrect=(1,)),
        eap.Example(clean=(1, 1), corrupted=(0, 0), correct=(D_VOCAB - 1,), incorrect=(0, 2)),
    )
    for family in FAMILIES:
        check_circuits(family, random_circuits(family), examples)


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metrics": ["nll"]}, "unknown metric 'nll'; known are"),
        ({"batch_size": 0}, "it must be a whole number from 1"),
        ({"memory_budget": 10}, "too small"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_one_line(arguments, message):
    model, dataset = twins.load("gpt2"), dataset_of(EXAMPLES)
    for run in (
        lambda: eap.evaluate(model, graph_of("gpt2"), dataset, **arguments),
        lambda: eap.evaluate_baselines(model, dataset, **arguments),
    ):
        with pytest.raises(eap.UserError, match=message) as error:
            run()
        assert "\n" not in str(error.value)


def test_a_graph_of_another_shape_is_refused():
    model, dataset = twins.load("llama"), dataset_of(EXAMPLES)
    config = model.config
    for other in (
        replace(config, n_layers=3),
        replace(config, n_heads=6),
        replace(config, n_kv_heads=1),
        replace(config, parallel_attn_mlp=True),
    ):
        with pytest.raises(eap.UserError, match="not a circuit of"):
            eap.evaluate(model, eap.Graph.from_config(other), dataset)
    native, expanded = graph_of("llama"), graph_of("llama", expanded=True)
    with pytest.raises(eap.UserError, match="the same shape"):
        eap.evaluate(model, [native, expanded], dataset)


def test_published_graphs_which_know_no_key_value_heads_are_of_the_expanded_form():
    """Their configuration has as many k and v as heads, also for a model that shares them."""
    model, dataset = twins.load("llama"), dataset_of(EXAMPLES)
    published = replace(model.config, n_kv_heads=model.config.n_heads, d_model=0)
    circuit = random_circuits("llama", expanded=True)[3]
    same = eap.Graph.from_config(published).with_edges(circuit.in_graph)
    one, other = (eap.evaluate(model, own, dataset)["logit_diff"] for own in (circuit, same))
    assert torch.equal(one, other)


def test_no_examples_and_no_circuits():
    model = twins.load("gpt2")
    with pytest.raises(eap.UserError, match="no examples"):
        eap.evaluate(model, graph_of("gpt2"), dataset_of([]))
    with pytest.raises(eap.UserError, match="no circuit is given"):
        eap.evaluate(model, [], dataset_of(EXAMPLES))


def test_former_name_of_the_ablated_runs_metric():
    found = eap.Faithfulness(
        clean=torch.ones(2), ablated=torch.zeros(2), circuits=torch.ones(1, 2), edges=(3,),
        provenance={},
    )  # fmt: skip
    with pytest.warns(FutureWarning, match=r"Faithfulness\.ablated"):
        assert torch.equal(found.corrupted, found.ablated)

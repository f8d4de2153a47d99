"""The oracle against what must hold of it, finite differences, and a model solved by hand."""

from __future__ import annotations

import pytest
import torch
from models.tiny import FAMILIES, GROUPED_FAMILIES, PARALLEL_FAMILIES, random_examples, tiny_hf
from reference import micro
from reference.oracle import (
    RULES,
    attribution_scores,
    exact_edge_values,
    float64,
    last_logits,
    metric_of,
    receiver_gradients,
    run_with_edges,
    run_with_senders,
    sender_outputs,
)
from reference.split_run import existing_edges, receiver_names, sender_names, shape_of
from reference.twins import EXAMPLES

FORMS = [
    *((family, False) for family in FAMILIES),
    *((family, True) for family in GROUPED_FAMILIES),
]
(EXAMPLE,) = random_examples([7], [2], seed=3)


def test_the_examples_of_all_twins_are_of_every_kind():
    firsts = []
    for example in EXAMPLES:
        pairs = zip(example.clean, example.corrupted, strict=True)
        firsts.append(next((place for place, (a, b) in enumerate(pairs) if a != b), None))
    assert {None, *range(6)} == {*firsts}
    assert len(set(firsts)) < len(firsts)
    assert any(first == len(e.clean) - 1 > 0 for first, e in zip(firsts, EXAMPLES, strict=True))
    assert len({len(example.clean) for example in EXAMPLES}) > 5


@pytest.fixture(autouse=True)
def _float64():
    with float64():
        yield


def micro_scores(values):
    """Scores by edge name, of the edges that exist."""
    shape = shape_of(micro.micro_hf())
    senders, receivers = sender_names(shape), receiver_names(shape)
    return {
        f"{senders[u]}->{receivers[v]}": float(values[u, v])
        for u, v in existing_edges(shape).nonzero().tolist()
    }


def with_zeros(scores):
    return {name: scores.get(name, 0.0) for name in micro_scores(torch.zeros(4, 8))}


@pytest.mark.parametrize(("family", "expanded"), FORMS)
def test_the_whole_graph_is_the_clean_run_and_the_empty_one_the_corrupted_run(family, expanded):
    model = tiny_hf(family, dtype=torch.float64)
    exists = existing_edges(shape_of(model, expanded=expanded))
    circuits = torch.stack([exists, torch.zeros_like(exists)])
    both = run_with_edges(model, EXAMPLE.clean, EXAMPLE.corrupted, circuits, expanded=expanded)
    torch.testing.assert_close(both[0], last_logits(model, EXAMPLE.clean), rtol=0, atol=1e-12)
    torch.testing.assert_close(both[1], last_logits(model, EXAMPLE.corrupted), rtol=0, atol=1e-12)
    assert (both[0] - both[1]).abs().max() > 0.1  # the two prompts are told apart


@pytest.mark.parametrize(("family", "expanded"), FORMS)
def test_scores_are_derivatives_of_runs_in_which_one_edge_moves(family, expanded):
    """An edge carries clean + h (corrupted - clean); its EAP score is d metric / d h at h = 0."""
    model, h = tiny_hf(family, dtype=torch.float64), 1e-5
    exists = existing_edges(shape_of(model, expanded=expanded))
    prob_diff = metric_of("prob_diff", EXAMPLE.correct, EXAMPLE.incorrect)
    clean, corrupted = (
        sender_outputs(model, tokens, expanded=expanded)
        for tokens in (EXAMPLE.clean, EXAMPLE.corrupted)
    )
    edges = exists.nonzero()
    circuits = exists.repeat(len(edges), 1, 1)
    circuits[torch.arange(len(edges)), edges[:, 0], edges[:, 1]] = False
    up, down = (
        torch.stack(
            [
                prob_diff(logits, logits)
                for logits in run_with_senders(
                    model,
                    EXAMPLE.clean,
                    clean + step * (corrupted - clean),
                    circuits,
                    expanded=expanded,
                )
            ]
        )
        for step in (h, -h)
    )
    scores = attribution_scores(
        model, EXAMPLE.clean, EXAMPLE.corrupted, [prob_diff], [1.0], [1.0], expanded=expanded
    )[0, exists]
    assert ((up - down) / (2 * h) - scores).abs().max() < 1e-6 * scores.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_sum_over_receivers_to_that_of_the_embedding(family):
    """The embedding reaches every receiver directly, and through nodes that are receivers too."""
    model = tiny_hf(family, dtype=torch.float64)
    exists = existing_edges(shape_of(model))
    metric = metric_of("logit_diff", EXAMPLE.correct, EXAMPLE.incorrect)
    clean_logits = last_logits(model, EXAMPLE.clean)
    (gradients,) = receiver_gradients(model, EXAMPLE.clean, [metric], clean_logits)
    embedding = sender_outputs(model, EXAMPLE.clean)[0]
    direction = torch.randn(embedding.shape, generator=torch.Generator().manual_seed(0)).double()
    h = 1e-5
    up, down = (
        metric(
            run_with_senders(
                model,
                EXAMPLE.clean,
                torch.stack([embedding + step * direction] * len(exists)),
                # Only the input is replaced.
                (exists & (torch.arange(len(exists)) > 0)[:, None])[None],
            )[0],
            clean_logits,
        )
        for step in (h, -h)
    )
    along = (gradients * direction).sum()  # every receiver reads the input
    assert abs((up - down) / (2 * h) - along) < 1e-6 * gradients.abs().max()


@pytest.mark.parametrize("family", PARALLEL_FAMILIES)
def test_heads_do_not_reach_the_mlp_of_their_layer_in_parallel_blocks(family):
    shape = shape_of(tiny_hf(family))
    exists = existing_edges(shape)
    assert not exists[sender_names(shape).index("a1.h2"), receiver_names(shape).index("m1")]
    assert exists[sender_names(shape).index("a0.h2"), receiver_names(shape).index("m1")]


def test_the_oracle_solves_the_micro_model_as_pen_and_paper_do():
    model, pair = micro.micro_hf(), micro.EXAMPLE
    metric = metric_of("logit_diff", pair.correct, pair.incorrect)
    assert float(metric(last_logits(model, pair.clean), torch.zeros(7))) == pytest.approx(
        micro.CLEAN
    )
    assert float(metric(last_logits(model, pair.corrupted), torch.zeros(7))) == pytest.approx(
        micro.CORRUPTED
    )
    (exact,) = exact_edge_values(model, pair.clean, pair.corrupted, [metric])
    assert micro_scores(exact) == pytest.approx(with_zeros(micro.EXACT), abs=1e-9)
    for rule, expected in [
        (("paper", 1), micro.EAP),
        (("midpoint", 1), micro.MIDDLE),
        (("paper", 2), micro.TWO_STEPS),
    ]:
        (scores,) = attribution_scores(model, pair.clean, pair.corrupted, [metric], *RULES[rule])
        assert micro_scores(scores) == pytest.approx(with_zeros(expected), abs=1e-9)


def test_the_oracle_runs_circuits_of_the_micro_model_as_pen_and_paper_do():
    model, pair = micro.micro_hf(), micro.EXAMPLE
    shape = shape_of(model)
    senders, receivers = sender_names(shape), receiver_names(shape)
    circuits = torch.zeros(len(micro.CIRCUITS), shape.n_forward, shape.n_backward).bool()
    for circuit, edges in zip(circuits, micro.CIRCUITS, strict=True):
        for edge in edges:
            sender, receiver = edge.split("->")
            circuit[senders.index(sender), receivers.index(receiver)] = True
    logits = run_with_edges(model, pair.clean, pair.corrupted, circuits)
    assert (logits[:, 1] - logits[:, 2]).tolist() == pytest.approx(list(micro.CIRCUITS.values()))


def test_rules_integrate_polynomials_as_their_names_promise():
    for (name, steps), (points, weights) in RULES.items():
        assert sum(weights) == pytest.approx(1)
        degree = {"paper": 0, "midpoint": 1, "gauss-legendre": 2 * steps - 1}[name]
        for power in range(degree + 1):
            integral = sum(w * x**power for x, w in zip(points, weights, strict=True))
            assert integral == pytest.approx(1 / (power + 1))

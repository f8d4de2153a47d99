"""Groups of examples by their scores: the Gram matrix, k-means, circuits that serve each other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from models.tiny import random_examples
from reference import twins

import eap
from eap.analysis.clusters import (
    cosines,
    find_clusters,
    gram_matrix,
    kernel_k_means,
    null_separations,
    separation_of,
)
from eap.data.collections import known_circuits
from eap.runtime.errors import UserError

EXAMPLES = random_examples([6, 8, 8, 5, 7, 8], [2, 3, 3, 1, 4, 3], seed=5)
DATASET = twins.dataset_of(EXAMPLES)


@pytest.mark.parametrize(
    ("family", "expanded"), [("gpt2", False), ("llama", True), ("neox", False)]
)
def test_the_gram_matrix_is_that_of_the_examples_scores(family, expanded):
    model = twins.load(family)
    scores = torch.stack(
        [
            eap.attribute(model, twins.dataset_of([own]), method="EAP", expanded_kv=expanded).scores
            for own in EXAMPLES
        ]
    )
    rows = scores.flatten(1).double()
    expected = (rows @ rows.T).numpy()
    for settings in ({}, {"batch_size": 2}, {"gram_budget": 2000}, {"gram_budget": 1}):
        found = gram_matrix(model, DATASET, method="EAP", expanded_kv=expanded, **settings)
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_cosines_of_examples_without_scores():
    similar = cosines(np.array([[4.0, 2.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))
    assert similar.tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]


def test_k_means_finds_groups_and_numbers_them_by_their_first_example():
    random = np.random.default_rng(0)
    centres = np.array([[10.0, 0], [0, 10.0], [-10.0, -10.0]])
    truth = np.array([0, 1, 0, 2, 2, 1, 0, 2, 1, 1])
    points = centres[truth] + random.normal(size=(10, 2))
    assert kernel_k_means(points @ points.T, 3).tolist() == truth.tolist()
    assert kernel_k_means(points @ points.T, 1).tolist() == [0] * 10


def test_more_groups_than_examples_are_refused():
    with pytest.raises(UserError, match="3 examples with an effect cannot be grouped into 4"):
        kernel_k_means(np.eye(3), 4)


def test_two_mechanisms_of_a_known_circuit():
    """In `xor` every other pair flips the first bit, the others the second: two ways in."""
    known = known_circuits.load("xor")
    found = find_clusters(known.model, known.dataset, n_clusters=2, size=5)
    assert found.labels.tolist() == [number % 2 for number in range(32)]
    assert found.separation > 0.1
    assert found.p_value == 0.01  # of 99 random data sets of one group, none is as far apart
    assert found.found_on.tolist() == [number // 2 % 2 == 0 for number in range(32)]
    for circuit, head in zip(found.circuits, ("a0.h0", "a0.h1"), strict=True):
        assert set(circuit.edge_names()) == {
            f"input->{head}<v>",
            f"{head}->m0",
            "m0->m1",
            "m0->logits",
            "m1->logits",
        }
    # Each serves its own examples fully, and the others' not at all.
    np.testing.assert_allclose(found.faithfulness, np.eye(2), atol=1e-6)


def test_examples_without_effect_belong_to_no_group():
    """A pair that is equal in both prompts, whose scores are 0 or rounding."""
    same = replace(EXAMPLES[2], corrupted=EXAMPLES[2].clean)
    dataset = twins.dataset_of([*EXAMPLES[:3], same, *EXAMPLES[3:]])
    for method in ("EAP", "EAP-IG"):
        found = find_clusters(twins.load("gemma2"), dataset, method=method, size=10, n_random=3)
        assert [row for row, label in enumerate(found.labels) if label < 0] == [3]
        assert not found.found_on[3]


def test_rounding_is_no_similarity():
    scores = np.array([[1.0, 0], [0.9, 0.1], [-1e-7, 1e-7], [1e-7, 1e-7]])
    similar = cosines(scores @ scores.T)
    assert similar[2:, :2].tolist() == [[0, 0], [0, 0]]
    assert similar[2, 3] == 0


@pytest.mark.parametrize(("mean", "axis", "noise"), [(1, 0, 1), (0, 1, 0.3), (1, 2, 0.1)])
def test_one_group_is_as_far_apart_as_its_null(mean, axis, noise):
    """Also a group that varies mostly along one axis, which is what effects of one circuit do."""
    random = np.random.default_rng(0)
    direction = random.normal(size=40)
    p_values = []
    for _ in range(20):
        along = axis * random.normal(size=(24, 1)) * direction
        points = mean + along + noise * random.normal(size=(24, 40))
        gram = points @ points.T
        kernel = cosines(gram)
        separation = separation_of(kernel, kernel_k_means(kernel, 2))
        assert separation > 0.001  # k-means separates anything
        null = null_separations(gram, 2, n_random=19, seed=1)
        p_values.append((1 + (null >= separation).sum()) / 20)
    assert np.mean(np.array(p_values) <= 0.05) <= 0.15


def test_two_groups_are_further_apart_than_their_null():
    random = np.random.default_rng(0)
    points = 1 + random.normal(size=(24, 40))
    points[::2, :20] += 5  # two mechanisms: other edges are large
    points[1::2, 20:] += 5
    gram = points @ points.T
    separation = separation_of(cosines(gram), kernel_k_means(cosines(gram), 2))
    assert separation > null_separations(gram, 2, n_random=19, seed=1).max()


def test_circuits_are_measured_on_examples_that_they_were_not_found_on():
    """Which examples a circuit is found on: those of `found_on`, and no other."""
    known = known_circuits.load("xor")
    found = find_clusters(known.model, known.dataset, size=5, n_random=1)
    for group, graph in enumerate(found.graphs):
        rows = np.flatnonzero(found.found_on & (found.labels == group))
        examples = tuple(known.dataset.examples[row] for row in rows)
        again = eap.attribute(known.model, replace(known.dataset, examples=examples))
        assert torch.equal(again.scores, graph.scores)
        others = np.flatnonzero(~found.found_on & (found.labels == group))
        examples = tuple(known.dataset.examples[row] for row in others)
        shares = eap.faithfulness(
            known.model, found.circuits, replace(known.dataset, examples=examples)
        ).normalised
        np.testing.assert_allclose(found.faithfulness[:, group], shares, atol=1e-6)


def test_a_group_in_which_nothing_is_done_has_no_faithfulness():
    """Random models do no task: shares of almost nothing would be any number."""
    found = find_clusters(twins.load("gpt2"), DATASET, method="EAP", size=10, n_random=1)
    clean, corrupted = (
        x["logit_diff"] for x in eap.evaluate_baselines(twins.load("gpt2"), DATASET)
    )
    for group in range(found.labels.max() + 1):
        rows = torch.tensor(~found.found_on & (found.labels == group))
        gaps = (clean - corrupted)[rows]
        done = len(gaps) > 1 and gaps.mean() > 2 * gaps.std() / len(gaps) ** 0.5
        assert np.isfinite(found.faithfulness[:, group]).all() == bool(done)

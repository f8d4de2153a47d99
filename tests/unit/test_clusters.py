"""Groups of examples by their scores: the Gram matrix, k-means, circuits that serve each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models.tiny import random_examples
from reference import twins

import eap
from eap.analysis.clusters import cosines, find_clusters, gram_matrix, kernel_k_means
from eap.data.collections import known_circuits
from eap.errors import UserError

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
    with pytest.raises(UserError, match="3 examples cannot be grouped into 4"):
        kernel_k_means(np.eye(3), 4)


def test_two_mechanisms_of_a_known_circuit():
    """In `xor` every other pair flips the first bit, the others the second: two ways in."""
    known = known_circuits.load("xor")
    found = find_clusters(known.model, known.dataset, n_clusters=2, size=5)
    assert found.labels.tolist() == [number % 2 for number in range(32)]
    assert found.separation > 0.1
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

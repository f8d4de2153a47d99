"""What a sample of unverified edges says of the rest."""

from __future__ import annotations

import math

import numpy as np
import pytest

from eap.screening import total_error, upper_share


@pytest.mark.parametrize(("n_all", "n"), [(400, 380), (400, 200), (400, 20)])
def test_the_error_of_a_total_is_that_of_samples_without_replacement(n_all, n):
    """Against many samples of one population."""
    generator = np.random.default_rng(0)
    population = generator.exponential(size=n_all)
    samples = [generator.choice(population, n, replace=False) for _ in range(3000)]
    totals = [sample.mean() * n_all for sample in samples]
    reckoned = np.mean([total_error(sample, n_all) for sample in samples])
    assert reckoned == pytest.approx(np.std(totals), rel=0.06)


def test_a_sample_of_all_leaves_no_error_and_one_value_tells_none():
    assert total_error(np.array([1.0, 2.0]), 2) == 0.0
    assert math.isnan(total_error(np.array([1.0]), 10))


def test_the_largest_share_that_a_sample_leaves_possible():
    """None found of 59 leaves 5% possible, with 95% confidence (0.95^59 = 0.0485)."""
    assert upper_share(0, 59) == pytest.approx(1 - 0.05 ** (1 / 59))
    assert upper_share(7, 7) == 1.0

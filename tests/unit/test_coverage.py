"""Every printed 95% interval holds the true value in 90 to 99% of samples, simulated."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import coverage
from eap.statistics.intervals import interval_of_faithfulness
from eap.statistics.measures import area

N_SAMPLES = 200
# Two standard errors of a coverage of .95 in so many samples.
CHANCE = 2 * (0.95 * 0.05 / N_SAMPLES) ** 0.5


@pytest.mark.parametrize("simulation", coverage.simulations(), ids=lambda own: own.name)
def test_intervals_hold_what_they_say(simulation):
    for n in simulation.sizes:
        covered = simulation.coverage(n, N_SAMPLES)
        assert 0.90 <= np.mean([*covered.values()]) <= 0.99, n
        assert min(covered.values()) >= 0.90 - CHANCE, n


def test_percentiles_of_a_mean_distance_would_be_seen():
    """What CMD's interval must not be: above the true value whatever the sample."""
    curve = coverage.CURVES["1 from 2% of the edges on"]

    def sample(generator, n):
        found = interval_of_faithfulness(
            *coverage.runs(generator, n, curve), lambda f: area(np.abs(1 - f)), n_resamples=200
        )
        return (found.low, found.high), area(np.abs(1 - np.array(curve)))

    naive = coverage.Simulation("naive", (30,), {"": sample})
    assert naive.coverage(30, 50)[""] < 0.5


def test_the_page_has_a_row_for_every_interval():
    page = coverage.PAGE.read_text(encoding="utf8")
    rows = page.partition(coverage.BEGIN)[2].partition(coverage.END)[0].splitlines()
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows[3:]] == [
        simulation.name for simulation in coverage.simulations()
    ]

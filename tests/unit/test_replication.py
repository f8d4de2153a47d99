"""What replicates: words by hand-made intervals, published differences, where a curve crosses."""

import numpy as np
import pandas as pd
import pytest

from eap.figures import replication
from eap.figures.replication import Published, crossing, published, word


def row(value=None, says=None):
    return Published("q", value, says, "Figure 4")


@pytest.mark.parametrize(
    ("published", "low", "high", "above", "expected"),
    [
        (row(0.3), 0.1, 0.2, 0.0, "replicates"),
        (row(0.3), -0.2, -0.1, 0.0, "differs"),
        (row(0.3), -0.1, 0.2, 0.0, "inconclusive"),
        # A negative number that comes out negative is the paper's own result.
        (row(-0.2), -0.3, -0.1, 0.0, "replicates"),
        (row(-0.2), 0.1, 0.3, 0.0, "differs"),
        # A published number counts, not the bound of the claim.
        (row(-0.2), 0.1, 0.3, 0.5, "differs"),
        (row(says="poor"), 0.6, 0.9, 0.5, "replicates"),
        (row(says="poor"), 0.1, 0.4, 0.5, "differs"),
        (row(says="poor"), 0.4, 0.6, 0.5, "inconclusive"),
        (row(0.3), np.nan, np.nan, 0.0, "inconclusive"),
        (row(), 0.1, 0.2, 0.0, "new"),
        (None, 0.1, 0.2, 0.0, "new"),
    ],
)
def test_the_word_is_by_the_side_on_which_the_interval_lies(published, low, high, above, expected):
    assert word(published, low=low, high=high, above=above) == expected


def test_published_faithfulness_is_the_mean_over_the_six_tasks():
    quantity = "closeness of faithfulness to 1, EAP-IG minus EAP"
    # By hand from the published table: |1 - f| of EAP and EAP-IG at 200, 500 and 1000 edges.
    distances = [
        ([1.00, 0.47, 0.35], [0.57, 0.50, 0.36]), ([0.12, 0.04, 0.04], [0.06, 0.02, 0.01]),
        ([1.00, 1.00, 0.13], [0.84, 0.20, 0.07]), ([0.19, 0.17, 0.05], [0.26, 0.13, 0.09]),
        ([0.41, 0.24, 0.17], [0.30, 0.15, 0.07]), ([0.98, 0.87, 0.77], [0.93, 0.76, 0.56]),
    ]  # fmt: skip
    expected = np.mean([np.mean(worse) - np.mean(better) for worse, better in distances])
    assert published()[quantity].value == pytest.approx(expected)


def test_a_table_gets_the_published_value_and_the_word():
    table = pd.DataFrame(
        {
            "quantity": ["Kendall's tau of absolute scores, EAP-IG minus EAP", "own"],
            "low": [-0.3, 0.1], "high": [-0.2, 0.2], "holds_above": [0.0, 0.0],
        }
    )  # fmt: skip
    joined = replication.beside(table)
    assert list(joined["replication"]) == ["replicates", "new"]
    assert joined["published"][0] == -0.225
    assert np.isnan(joined["published"][1])


@pytest.mark.parametrize(
    ("differences", "size"),
    [
        ([0.3, 0.1, -0.1], 30.0),
        ([0.3, -0.1, 0.1, -0.3], 32.5),  # the last time
        ([0.3, 0.2], None),
        ([-0.3, -0.2], None),
    ],
)
def test_a_curve_crosses_zero_where_it_stays_below(differences, size):
    depths = [10, 20, 40] if len(differences) != 4 else [10, 20, 30, 40]
    assert crossing(depths[: len(differences)], differences) == size


def test_the_published_overlap_crosses_between_50_and_100_edges():
    assert replication.published_crossing() == pytest.approx(62.5)

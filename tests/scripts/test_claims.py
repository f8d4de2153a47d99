"""Claims by hand-made tables: what holds, what does not, what cannot be told."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from running import call

from eap.figures import claims
from eap.figures.tables import Table


def curves(**shares: list[float]) -> Table:
    """A table whose clean run has the metric 3 and the corrupted one 1."""
    columns = {f"loss_{name}": 1 + 2 * np.array(values) for name, values in shares.items()}
    n = len(next(iter(shares.values())))
    frame = pd.DataFrame({"baseline": 3.0, "corrupted_baseline": 1.0, "edges": range(n), **columns})
    return Table(frame, Path("table.csv"))


def test_closeness_counts_overshoot_as_distance():
    table = curves(EAP=[0.5, 0.9, 1.3])
    assert claims.closeness(table, "loss_EAP") == pytest.approx(1 - (0.5 + 0.1 + 0.3) / 3)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((0.2, 0.21, 0.19), "holds"),
        ((-0.2, -0.21, -0.19), "does not hold"),
        ((0.2, -0.2, 0.1), "cannot be told"),
        ((0.2,), "cannot be told"),
    ],
)
def test_a_verdict_is_where_the_interval_lies(values, verdict):
    claim = claims.over_tasks("c", "q", dict(enumerate(values)))
    assert claim.verdict == verdict
    assert claim.value == pytest.approx(np.mean(values))
    if len(values) == 3:  # Student's interval by hand: t(0.975, 2) = 4.3027
        reach = 4.302653 * np.std(values, ddof=1) / math.sqrt(3)
        assert claim.high - claim.value == pytest.approx(reach, rel=1e-5)


def test_curves_that_a_table_lacks_say_nothing():
    two = {"a": curves(EAP=[0.5]), "b": curves(**{"EAP": [0.5], "EAP-IG": [0.8]})}
    (claim,) = claims.about_curves(two)
    assert (claim.value, claim.n_tasks) == (pytest.approx(0.3), 1)


def test_overlap_that_tells_all_leaves_nothing_unexplained():
    generator = np.random.default_rng(0)
    names = list("abcdefgh")
    overlap = pd.DataFrame(generator.random((8, 8)), index=names, columns=names)
    (told,) = claims.about_overlap({"edge IoU": overlap}, 2 * overlap + 1)
    assert told.value == pytest.approx(0, abs=1e-12)
    assert told.verdict == "does not hold"
    other = pd.DataFrame(generator.random((8, 8)), index=names, columns=names)
    (apart,) = claims.about_overlap({"edge IoU": overlap}, other)
    assert apart.verdict == "holds"
    assert claims.about_overlap({"edge IoU": overlap.iloc[:3, :3]}, other.iloc[:3, :3]) == []


def test_five_points_are_enough_if_more_are_hardly_closer():
    names = {"results_5": [0.90], "results_50": [0.905], "results_vanilla": [0.1]}
    frame = pd.DataFrame({"baseline": [1.0], "corrupted_baseline": [0.0], **names})
    table = Table(frame, Path("table.csv"))
    (claim,) = claims.about_points({"a": table, "b": table, "c": table})
    assert claim.value == pytest.approx(-0.005)
    assert claim.verdict == "holds"
    assert claims.about_points({"a": Table(frame.drop(columns="results_50"), table.path)}) == []


def test_the_script_reads_what_is_there(tmp_path, capfd):
    assert call("results/claims/claims.py", "--output", tmp_path) == 2
    assert "pareto.py" in capfd.readouterr().err
    folder = tmp_path / "results/pareto/toy/csv"
    folder.mkdir(parents=True)
    for task, gain in (("ioi", 0.3), ("sva", 0.31), ("gender-bias", 0.29)):
        table = curves(**{"EAP": [0.5, 0.6], "EAP-IG": [0.5 + gain, 0.6 + gain]})
        table.frame.to_csv(folder / f"{task}.csv", index=False)
    assert call("results/claims/claims.py", "--output", tmp_path) == 0
    assert "holds           EAP-IG's circuits" in capfd.readouterr().out
    found = pd.read_csv(tmp_path / "results/claims/toy/csv/claims.csv")
    assert found["verdict"].tolist() == ["holds"]
    assert found["value"][0] == pytest.approx(0.3)
    assert found["n_tasks"].tolist() == [3]

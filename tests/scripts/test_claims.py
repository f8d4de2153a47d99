"""Claims by hand-made tables: what holds, what does not, what is inconclusive."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from running import call

from eap.figures import claims, cross_task, heatmaps
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
        ((0.2, -0.2, 0.1), "inconclusive"),
        ((0.2,), "inconclusive"),
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


def square(values: np.ndarray) -> pd.DataFrame:
    names = list("abcdefgh")[: len(values)]
    return pd.DataFrame(values, index=names, columns=names)


def test_overlap_that_tells_all_leaves_nothing_unexplained():
    generator = np.random.default_rng(0)
    overlap = square(generator.random((8, 8)))
    (told,) = claims.about_overlap({"edge IoU": overlap}, 2 * overlap + 1)
    assert told.value == pytest.approx(0, abs=1e-12)
    assert told.verdict == "does not hold"
    other = square(generator.random((8, 8)))
    (apart,) = claims.about_overlap({"edge IoU": overlap}, other)
    assert apart.verdict == "holds"
    assert 0 <= apart.low <= apart.value <= apart.high <= 1
    assert claims.about_overlap({"edge IoU": overlap.iloc[:5, :5]}, other.iloc[:5, :5]) == []


def test_the_interval_of_overlap_is_a_jackknife_over_tasks():
    """By hand, for one table: adjusted R^2 of all tasks and of all but one."""
    generator = np.random.default_rng(1)
    x, y = generator.random((2, 6, 6))

    def unexplained(kept):
        cells = [(i, j) for i in kept for j in kept if i != j]
        r = np.corrcoef([x[c] for c in cells], [y[c] for c in cells])[0, 1]
        return (1 - r**2) * (len(cells) - 1) / (len(cells) - 2)

    tasks = range(6)
    pseudo = [6 * unexplained(tasks) - 5 * unexplained([t for t in tasks if t != less])
              for less in tasks]  # fmt: skip
    assert claims.unexplained_variance([square(x)], square(y)) == pytest.approx(pseudo)


GREATER_THAN = ("greater-than", "greater-than-price", "greater-than-sequence")


def test_variants_of_a_task_count_as_one():
    """Three variants that share what is particular to them: 95% intervals hold, and would not."""
    generator = np.random.default_rng(0)
    names = ("ioi", "sva", "gender-bias", *GREATER_THAN)
    held = []
    for _ in range(400):
        effects = generator.normal(size=4)[[0, 1, 2, 3, 3, 3]]
        values = effects + 0.1 * generator.normal(size=6)
        own, apart = (
            claims.over_tasks("c", "q", dict(zip(tasks, values, strict=True)))
            for tasks in (names, range(6))
        )
        assert (own.n_tasks, apart.n_tasks) == (4, 6)
        held.append([claim.low <= 0 <= claim.high for claim in (own, apart)])
    together, independent = np.mean(held, axis=0)
    assert together > 0.92
    assert independent < 0.9


def test_the_jackknife_leaves_a_task_and_its_variants_out_together():
    generator = np.random.default_rng(1)
    names = ["ioi", "sva", "gender-bias", "hypernymy-comma", "fact-retrieval-comma", *GREATER_THAN]
    x, y = (pd.DataFrame(generator.random((8, 8)), names, names) for _ in range(2))
    values = claims.unexplained_variance([x], y)
    assert len(values) == 6
    five = [name for name in names if name not in GREATER_THAN]
    everything = unexplained_without(x, y, [])
    less = unexplained_without(x, y, GREATER_THAN)
    assert unexplained_without(x.loc[five, five], y.loc[five, five], []) == pytest.approx(less)
    assert values[5] == pytest.approx(6 * everything - 5 * less)
    (claim,) = claims.about_overlap({"edge IoU": x}, y)
    assert claim.n_tasks == 6
    few = [*five[:4], *GREATER_THAN]  # seven tasks, of which five are independent
    assert claims.about_overlap({"edge IoU": x.loc[few, few]}, y.loc[few, few]) == []


def unexplained_without(x, y, left_out):
    kept = [name for name in x.index if name not in left_out]
    cells = [(a, b) for a in kept for b in kept if a != b]
    r = np.corrcoef([x.loc[c] for c in cells], [y.loc[c] for c in cells])[0, 1]
    return (1 - r**2) * (len(cells) - 1) / (len(cells) - 2)


def test_tasks_that_the_model_or_its_own_circuit_does_not_do_are_left_out(capsys):
    table = square(np.full((4, 4), 0.5)).assign(baseline=1.0, corrupted_baseline=0.0)
    table.loc["b", "baseline"] = -0.02  # the clean run is no better than the corrupted one
    table.loc["c", "c"] = 0.004  # the own circuit is no better
    assert cross_task.tasks_done(table) == ["a", "d"]
    assert "left out: b, c, which the model or the task's own circuit" in capsys.readouterr().out
    assert cross_task.tasks_done(table, own=False) == ["a", "c", "d"]
    assert "left out: b, which the model does not do" in capsys.readouterr().out


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


def write_squares(folder: Path, n: int, undone: int = 0) -> None:
    """Curves of one task; n tasks whose overlaps tell faithfulness, the last of them not done."""
    generator = np.random.default_rng(2)
    names = ("ioi", "sva", "greater-than", "gender-bias", "hypernymy-comma",
             "fact-retrieval-comma", "greater-than-price", "greater-than-sequence")[:n]  # fmt: skip
    overlap = generator.random((n, n))
    overlap = (overlap + overlap.T) / 2
    np.fill_diagonal(overlap, 1.0)
    for study in ("pareto", "jaccard", "cross-task"):
        (folder / f"results/{study}/toy/csv").mkdir(parents=True)
    table = curves(**{"EAP": [0.5, 0.6], "EAP-IG": [0.8, 0.9]})
    table.frame.to_csv(folder / "results/pareto/toy/csv/ioi.csv", index=False)
    for name in ("node_ious", "edge_ious"):
        frame = pd.DataFrame(overlap + 0.01 * generator.random((n, n)), names, names)
        frame.to_csv(folder / f"results/jaccard/toy/csv/{name}.csv")
    frame = pd.DataFrame(0.1 + 0.8 * overlap + 0.02 * generator.random((n, n)), names, names)
    frame = frame.assign(baseline=1.0, corrupted_baseline=0.0)
    for name in names[n - undone :]:
        frame.loc[name, name], frame.loc[name, "baseline"] = 0.004, -0.02
    frame.to_csv(folder / "results/cross-task/toy/csv/faithfulness.csv")


@pytest.mark.parametrize("undone", [0, 1])
def test_the_claim_of_overlap_is_over_tasks_that_are_done(tmp_path, capfd, undone):
    write_squares(tmp_path, 8, undone)
    assert call("results/claims/claims.py", "--output", tmp_path) == 0
    said = capfd.readouterr().out
    assert "does not hold   overlap of circuits" in said
    assert "over 6 tasks" in said  # the three variants of greater-than are one
    assert ("left out: greater-than-sequence, which" in said) == bool(undone)


@pytest.mark.parametrize("script", ["make_all_heatmaps", "recall_heatmaps"])
def test_pictures_of_shares_leave_out_what_is_not_done(tmp_path, capfd, script, monkeypatch):
    write_squares(tmp_path, 8, undone=1)
    folder = tmp_path / "results/jaccard/toy/csv"
    for name in ("node", "edge"):
        shutil.copy(folder / f"{name}_ious.csv", folder / f"{name}_overlap.csv")
    drawn, draw = [], heatmaps.heatmap_row
    monkeypatch.setattr(
        heatmaps, "heatmap_row", lambda panels, **kw: drawn.append(panels) or draw(panels, **kw)
    )
    assert call(f"results/cross-task/{script}.py", "--output", tmp_path) == 0
    said = capfd.readouterr().out
    assert "left out: greater-than-sequence, which the model or the task's own" in said
    for panels in drawn:
        for table in panels.values():
            assert "greater-than-sequence" not in table.index
            assert np.isfinite(table.to_numpy()).all()
            assert np.abs(table.to_numpy()).max() < 5  # a share of almost nothing would be 13


@pytest.mark.parametrize("script", ["make_all_heatmaps", "recall_heatmaps"])
def test_pictures_have_overlap_alone_where_no_task_is_done(tmp_path, capfd, script, monkeypatch):
    write_squares(tmp_path, 3, undone=3)
    folder = tmp_path / "results/jaccard/toy/csv"
    for name in ("node", "edge"):
        shutil.copy(folder / f"{name}_ious.csv", folder / f"{name}_overlap.csv")
    drawn, draw = [], heatmaps.heatmap_row
    monkeypatch.setattr(
        heatmaps, "heatmap_row", lambda panels, **kw: drawn.append(panels) or draw(panels, **kw)
    )
    assert call(f"results/cross-task/{script}.py", "--output", tmp_path) == 0
    assert "no task that is done well enough: shares are left out" in capfd.readouterr().out
    assert all([len(table) for table in panels.values()] == [3, 3] for panels in drawn)


def test_one_task_has_a_value_and_no_interval(tmp_path, capfd):
    write_squares(tmp_path, 5)
    assert call("results/claims/claims.py", "--output", tmp_path) == 0
    said = capfd.readouterr().out
    assert "inconclusive    EAP-IG's circuits" in said
    assert "0.300 (no interval) over 1 task; GPT-2, published: 0.118: inconclusive\n" in said
    assert "of which 5 tasks (variants of a task count once) say too little" in said
    assert "nan" not in said

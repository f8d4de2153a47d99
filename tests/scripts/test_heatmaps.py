"""Tables of tasks by tasks, drawn as heat maps."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from drawing import square
from models import fabricated
from scipy import stats

from eap.figures import cross_task, heatmaps, tables
from eap.runtime.errors import UserError


def read_square(frame, path, *, index):
    fabricated.save(frame, path, index=index)
    return cross_task.with_rows(tables.read_table(path))


def test_rows_keep_the_names_that_the_file_gives_them(tmp_path):
    names = ["ioi", "sva", "gender-bias"]
    frame = square(names)
    turned = frame.loc[["sva", "gender-bias", "ioi"]]
    table = read_square(turned, tmp_path / "a.csv", index=True).frame
    pd.testing.assert_frame_equal(table.loc[names, names], frame)
    # Published files do not name them: they are in the order of the columns.
    for index in (False, True):
        plain = frame.reset_index(drop=True)
        table = read_square(plain, tmp_path / "b.csv", index=index).frame
        pd.testing.assert_frame_equal(table, frame)


def test_tables_are_put_into_one_order_and_what_one_lacks_is_named(tmp_path, capsys):
    frame = square(["ioi", "sva", "gender-bias"])
    first = read_square(frame, tmp_path / "a.csv", index=True)
    other = frame.loc[["sva", "ioi"], ["ioi", "sva"]].assign(baseline=2.0, corrupted_baseline=1.0)
    second = read_square(other, tmp_path / "b.csv", index=True)
    a, b = cross_task.align(first, second)
    assert list(a) == ["ioi", "sva"]
    assert list(a.index) == list(b.index) == ["ioi", "sva"]
    assert a.loc["sva", "ioi"] == b.loc["sva", "ioi"] == frame.loc["sva", "ioi"]
    out = capsys.readouterr().out
    assert "gender-bias" in out
    assert "b.csv" in out


def test_rows_of_other_tasks_than_the_columns_are_refused(tmp_path):
    frame = square(["ioi", "sva"]).set_axis(["ioi", "other"], axis="index")
    with pytest.raises(UserError, match="row 'other' without a column"):
        read_square(frame, tmp_path / "a.csv", index=True)


def test_panels_with_other_rows_have_their_own_names(tmp_path):
    tables_ = {
        "a": square(["ioi", "sva"]),
        "b": square(["sva", "ioi"]),
        "c": square(["ioi", "sva"]),
    }
    figure = heatmaps.heatmap_row(tables_)
    labels = [[text.get_text() for text in ax.get_yticklabels()] for ax in figure.axes[:3]]
    assert labels == [["IOI", "SVA"], ["SVA", "IOI"], []]


def test_cells_are_readable_and_have_no_negative_zero():
    values = np.array([[1.0, -0.001, np.nan], [0.45, 0.55, 0.65], [0.0, 2.0, -3.0]])
    names = ["ioi", "sva", "$a$"]
    figure = heatmaps.heatmap_row({"x": pd.DataFrame(values, index=names, columns=names)})
    image = figure.axes[0].images[0]
    texts = figure.axes[0].texts
    assert [text.get_text() for text in texts] == [
        "1.00", "0.00", "\N{EN DASH}", "0.45", "0.55", "0.65", "0.00", "2.00", "-3.00"
    ]  # fmt: skip
    for text, colour in zip(texts, image.to_rgba(image.get_array()).reshape(-1, 4), strict=True):
        ratio = contrast(colour[:3], (0, 0, 0) if text.get_color() == "black" else (1, 1, 1))
        assert ratio > 4.5


def contrast(a, b):
    def light(colour):
        c = np.asarray(colour, dtype=float)
        c = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        return float(c @ (0.2126, 0.7152, 0.0722)) + 0.05

    return max(light(a), light(b)) / min(light(a), light(b))


def test_probabilities_have_a_logarithmic_scale():
    values = pd.DataFrame([[0.0, 1e-30], [1e-4, 1.0]], index=["ioi", "sva"], columns=["ioi", "sva"])
    figure = heatmaps.heatmap_figure(values, title="p", probabilities=True)
    image = figure.axes[0].images[0]
    places = [float(image.norm(p)) for p in (1e-10, 1e-5, 1.0)]
    assert places == pytest.approx([0, 0.5, 1])
    assert [text.get_text() for text in figure.axes[0].texts] == ["–", "<1e-10", "1e-4", "–"]  # noqa: RUF001


def test_p_values_of_overlap_do_not_take_dependent_cells_for_independent_ones():
    """Unrelated tables whose rows and columns have effects: 5% are below 0.05, not 18%."""
    generator = np.random.default_rng(0)
    ps, naive = [], []
    for _ in range(200):
        a, b = (generator.normal(size=(8, 8)) * 0.3 for _ in range(2))
        a = a + np.add.outer(*[generator.normal(size=8)] * 2)
        b = b + np.add.outer(generator.normal(size=8), generator.normal(size=8))
        ps.append(cross_task.mantel_p(a + a.T, b, n_permutations=199))
        off = ~np.eye(8, dtype=bool)
        naive.append(stats.pearsonr((a + a.T)[off], b[off]).pvalue)
    assert np.mean(np.less_equal(ps, 0.05)) < 0.1
    assert np.mean(np.less_equal(naive, 0.05)) > 0.15
    related = a + a.T
    assert cross_task.mantel_p(related, related + 0.1 * b) == pytest.approx(1 / 5000, abs=3e-4)
    assert np.isnan(cross_task.mantel_p(np.ones((8, 8)), b))


def test_probabilities_are_written_as_a_cell_has_room_for_them():
    written = [heatmaps.write_probability(p) for p in (1.0, 0.5, 0.037, 3.2e-5, 1e-12)]
    assert written == ["1", "0.5", "0.037", "3e-5", "<1e-10"]

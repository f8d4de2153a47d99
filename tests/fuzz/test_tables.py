"""Whatever is done to a table of results or its metadata: it is read, or refused in one line."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st
from outcomes import CELLS, campaign, damaged, result_or_refusal

from eap.figures.cross_task import with_rows
from eap.figures.curves import methods_of
from eap.figures.tables import BASELINES, read_bands, read_table
from eap.statistics.measures import normalised
from eap.studies.provenance import read_metadata, save_csv

WHOLE = pd.DataFrame(
    {
        "baseline": 3.0,
        "corrupted_baseline": 1.0,
        "edges": [30, 40, 50],
        "edges_EAP": [28, 39, 50],
        "loss_EAP": [1.5, 2.0, 2.5],
    }
)
BANDS = pd.DataFrame({"edges": [30, 40, 50], "stderr_EAP": 0.1, "stderr_share_EAP": 0.05})


def written(frame: pd.DataFrame) -> bytes:
    return frame.to_csv(index=False).encode()


def use(path) -> None:
    """Reads a table, as figures do; its numbers can be drawn."""
    table = result_or_refusal(lambda: read_table(path, needs=["edges", *BASELINES]))
    if table is None:
        return
    clean, corrupted = table.baselines
    for method in methods_of(table.frame):
        values = table.frame[f"loss_{method}"]
        if clean != corrupted:
            shares = normalised(values, clean, corrupted)
            assert len(shares) == len(table.frame)
        assert not np.isinf(values.astype(float)).any()
    assert (table.frame["edges"] >= 0).all()
    result_or_refusal(lambda: read_bands(table))
    result_or_refusal(lambda: with_rows(table))


@campaign
@given(damaged(written(WHOLE)), damaged(written(BANDS)))
def test_damaged_tables_are_read_or_refused(tmp_path_factory, table, bands):
    folder = tmp_path_factory.getbasetemp()
    (folder / "t.csv").write_bytes(table)
    (folder / "t_bands.csv").write_bytes(bands)
    use(folder / "t.csv")


@campaign
@given(st.data())
def test_odd_cells_are_read_or_refused(tmp_path_factory, data):
    rows = [list(WHOLE), *WHOLE.astype(str).to_numpy().tolist()]
    for _ in range(data.draw(st.integers(1, 4))):
        row = data.draw(st.sampled_from(rows))
        row[data.draw(st.integers(0, len(row) - 1))] = data.draw(CELLS)
        if data.draw(st.booleans()):
            row.append(data.draw(CELLS))
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    path = tmp_path_factory.getbasetemp() / "odd.csv"
    path.write_bytes(text.getvalue().encode("utf8", "surrogatepass"))
    use(path)


@campaign
@given(CELLS, st.sampled_from(["inf", "-1", "", "x", "nan"]))
def test_columns_of_odd_names_are_read_or_refused(tmp_path_factory, name, cell):
    text = io.StringIO()
    csv.writer(text).writerows([[*WHOLE, name], *([*row, cell] for row in WHOLE.to_numpy())])
    path = tmp_path_factory.getbasetemp() / "names.csv"
    path.write_bytes(text.getvalue().encode("utf8", "surrogatepass"))
    use(path)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | CELLS,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["model", "task", "data", "metric", "settings"]), inner)
    ),
    max_leaves=5,
)


@campaign
@given(st.dictionaries(st.sampled_from(["dc:provenance", "schema:sha256", "url"]), VALUES))
def test_odd_metadata_is_believed_or_not(tmp_path_factory, changed):
    folder = tmp_path_factory.getbasetemp() / "metadata"
    path = folder / "t.csv"
    origin = {"model": {"name": "m"}, "task": "ioi", "data": {"pairs": 3}, "metric": "logit_diff"}
    save_csv(WHOLE, path, origin)
    beside = path.with_name("t.csv-metadata.json")
    text = json.dumps(json.loads(beside.read_text("utf8")) | changed)
    beside.write_bytes(text.encode("utf8", "surrogatepass"))
    result_or_refusal(lambda: read_metadata(path))
    use(path)

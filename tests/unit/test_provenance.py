"""Which results are the same, which may stand together, which belong to the file beside them."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from eap.studies.provenance import (
    comparable,
    differences,
    metadata_path,
    read_metadata,
    same,
    write_table,
)

MODEL = {"name": "toy", "directory": "toy-model", "weights_sha256": "1" * 64, "dtype": "float32"}
DATA = {"source": "data/ioi/gpt2.csv", "tokens_sha256": "2" * 64, "pairs": 60, "head": 4}
BASE = {
    "model": MODEL,
    "task": "ioi",
    "data": DATA,
    "metric": "logit_diff",
    "method": "EAP-IG",
    "settings": {"steps": 5},
    "code": "4" * 16,
    "versions": {"torch": "2.0"},
    "command": "pareto.py",
}


def changed(**parts):
    """The base with some parts of it changed, those of dictionaries one by one."""
    other = json.loads(json.dumps(BASE))
    for name, value in parts.items():
        other[name] = {**other[name], **value} if isinstance(value, dict) else value
    return other


@pytest.mark.parametrize(
    ("other", "names"),
    [
        (changed(), []),
        (changed(command="another"), []),
        (changed(model={"name": "data/toy-model", "directory": "copy"}), []),
        (changed(model={"weights_sha256": "3" * 64}), ["model"]),
        (changed(model={"dtype": "bfloat16"}), ["model"]),
        (changed(data={"head": 60}), ["data"]),
        (changed(data={"tokens_sha256": "3" * 64}), ["data"]),
        (changed(metric="kl"), ["metric"]),
        (changed(settings={"steps": 6}), ["settings.steps"]),
        (changed(code="0" * 16), ["code"]),
        (changed(versions={"torch": "1.0"}), ["versions.torch"]),
        (changed(ablation="zero"), ["ablation"]),
        (changed(metric="kl", task="sva"), ["metric", "task"]),
        ({}, sorted(set(BASE) - {"command"})),
    ],
)
def test_the_same_work_is_told_from_other_work_by_name(other, names):
    assert differences(BASE, other) == differences(other, BASE) == names
    assert same(BASE, other) == (not names)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (changed(command="another", code="0" * 16, versions={"torch": "1.0"}), None),
        (changed(method="EAP", settings={"steps": 1}), None),
        (None, None),
        (changed(task="sva", metric="prob_diff", data={"tokens_sha256": "4" * 64}), None),
        (changed(model={"weights_sha256": "3" * 64}), "different models: toy (float32, weights 1"),
        (changed(data={"head": 60}), None),  # the same pairs, however they were asked for
        (changed(circuit="7 edges (12345678)"), None),
        (changed(data={"tokens_sha256": "3" * 64}), "ioi: made on different data"),
        (changed(metric="prob_diff"), "ioi: made with different metrics: logit_diff and prob_diff"),
        (changed(ablation="zero"), "ioi: made with different ablations: resample and zero"),
        (changed(expanded_kv=True), "--expanded_kv"),
    ],
)
def test_what_may_stand_in_one_figure(other, says):
    line = comparable(BASE, None, other)
    assert (line is None) == (says is None)
    if says is not None:
        assert says in line
        assert "\n" not in line
        assert len(line) < 400


def test_tables_of_other_circuits_do_not_stand_together():
    one, other = (changed(circuit=f"{n} edges (1234567{n})") for n in (7, 8))
    assert comparable(one, one) is None
    assert "ioi: made with different circuits: 7 edges" in str(comparable(one, other))


def test_nothing_known_is_nothing_that_differs():
    assert comparable() is comparable(None) is comparable(None, {}) is None


@pytest.mark.parametrize("model", [None, "toy", 3, [], {"name": "x" * 9999}])
@pytest.mark.parametrize("data", [None, 1, [], {}, {"source": "y" * 9999}])
def test_provenance_that_another_program_wrote_is_compared_too(model, data):
    other = {"model": model, "data": data, "task": ["odd"], "metric": {"a": 1}}
    assert not same(BASE, other)
    assert len(comparable(BASE, other)) < 400
    assert comparable(other, other) is None


# ---- beside a table ------------------------------------------------------------------------------


def test_a_table_says_where_it_comes_from(tmp_path):
    frame = pd.DataFrame({"edges": [30, 40], "loss_EAP": [0.5, 0.25]})
    path = tmp_path / "csv" / "ioi.csv"
    write_table(frame, path, BASE)
    pd.testing.assert_frame_equal(pd.read_csv(path), frame)
    assert read_metadata(path) == BASE
    document = json.loads((tmp_path / "csv/ioi.csv-metadata.json").read_text())
    assert document["@context"] == "http://www.w3.org/ns/csvw"
    assert document["url"] == "ioi.csv"
    assert document["tableSchema"]["columns"] == [
        {"titles": "edges", "datatype": "integer"},
        {"titles": "loss_EAP", "datatype": "double"},
    ]


def test_names_of_rows_are_a_column(tmp_path):
    frame = pd.DataFrame({"ioi": [1.0], "sva": [0.5]}, index=["ioi"])
    path = tmp_path / "edge_ious.csv"
    write_table(frame, path, BASE, index=True)
    pd.testing.assert_frame_equal(pd.read_csv(path, index_col=0), frame)
    columns = json.loads(metadata_path(path).read_text())["tableSchema"]["columns"]
    assert len(columns) == 3
    assert columns[0]["datatype"] == "string"


def test_metadata_of_another_table_is_not_believed(tmp_path):
    path = tmp_path / "ioi.csv"
    write_table(pd.DataFrame({"edges": [30]}), path, BASE)
    earlier = metadata_path(path).read_bytes()
    write_table(pd.DataFrame({"edges": [40]}), path, changed(metric="kl"))
    assert read_metadata(path)["metric"] == "kl"
    metadata_path(path).write_bytes(earlier)  # as a kill between the two files would leave it
    assert read_metadata(path) is None


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "null", '{"dc:provenance": 3}', '{"dc:provenance": {}}', "[" * 9999],
)
def test_damaged_metadata_is_none(text, tmp_path):
    path = tmp_path / "ioi.csv"
    path.write_text("edges\n30\n")
    assert read_metadata(path) is None
    metadata_path(path).write_text(text)
    assert read_metadata(path) is None


def test_the_same_work_is_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_table(pd.DataFrame({"edges": [30]}), tmp_path / name / "ioi.csv", BASE)
    for name in ("ioi.csv", "ioi.csv-metadata.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()

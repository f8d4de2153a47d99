"""The stability study: halves, tables, the script that saves them and the figure that is drawn."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from running import call, files_below

import eap
from eap.data.collections import known_circuits
from eap.runtime.errors import UserError
from eap.studies.stability import Draws, stability_study

QUICK = ("--n_resamples", 6, "--n_random", 20, "--sizes", 30, 90)
FOLDER = "results/stability/toy/csv"


def test_a_known_circuit_passes_everything():
    known = known_circuits.load("induction")
    study = stability_study(
        known.model, known.dataset, sizes=[5], draws=Draws(10, n_random=30, n_subsets=100)
    )
    assert study.found_on.examples == known.dataset.examples[0::2]
    assert study.measured_on.examples == known.dataset.examples[1::2]
    tables = study.tables()
    assert tables[""]["edge_jaccard"].tolist() == [1]
    assert set(tables["_edges"]["edge"]) == set(known.circuit.edge_names())
    assert (tables["_edges"]["P_5"] == 1).all()
    assert study.verdicts["minimality"].word == "minimal"
    assert study.verdicts["sufficiency"].word == "sufficient"
    assert tables["_areas"]["area"].tolist() == ["CPR", "CMD", "accuracy"]
    # 5 of 75 edges: the circuit is whole from 10% on.
    certified = tables["_certified"]
    assert set(certified["name"]) - {"a0.h0", "a1.h0"} == set(known.circuit.edge_names())
    assert study.certificate.faithfulness.normalised == pytest.approx([1, 1], abs=1e-5)
    assert study.areas.helpful.faithfulness[-4:] == pytest.approx([1, 1, 1, 1])


def test_a_method_without_a_metric_is_judged_by_the_metric():
    known = known_circuits.load("induction")
    with pytest.warns(UserWarning, match="no null task"):
        study = stability_study(
            known.model,
            known.dataset,
            method="IFR",
            metric="prob_diff",
            sizes=[20],
            draws=Draws(n_random=19),
        )
    assert study.stability.provenance["metric"] is None
    assert study.areas.provenance["metric"] == "prob_diff"


def test_too_few_pairs_are_refused():
    known = known_circuits.load("xor")
    with pytest.raises(UserError, match="one pair"):
        stability_study(known.model, known.dataset.head(1))


def test_few_pairs_are_not_halved():
    known = known_circuits.load("xor")
    study = stability_study(known.model, known.dataset.head(3), sizes=[7], draws=Draws(n_random=20))
    assert len(study.found_on) == len(study.measured_on) == 3


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stability")
    options = ("--model", "toy", "--device", "cpu", "--head", 16, "--output", folder)
    for task in ("ioi", "greater-than"):
        assert call("stability.py", *options, "--task", task, *QUICK) == 0
    return folder


def test_the_script_writes_four_tables_a_task(output):
    names = {f"{task}{kind}.csv" for task in ("ioi", "greater-than") for kind in KINDS}
    assert {name for name in files_below(output) if name.endswith(".csv")} == {
        f"{FOLDER}/{name}" for name in names
    }
    for name in names:
        origin = json.loads((output / FOLDER / f"{name}-metadata.json").read_text(encoding="utf8"))
        assert "EAP-IG" in json.dumps(origin)
    table = pd.read_csv(output / FOLDER / "ioi.csv")
    assert table["size"].tolist() == [30, 90]
    assert table["edge_jaccard"].between(0, 1).all()
    assert (table["edge_chance"] < table["edge_jaccard"]).all()
    assert table["null_edge_jaccard"].notna().all()
    edges = pd.read_csv(output / FOLDER / "ioi_edges.csv")
    assert list(edges.columns) == ["edge", "score", "standard_error", "P_30", "P_90"]
    assert edges["P_90"].is_monotonic_decreasing
    verdicts = pd.read_csv(output / FOLDER / "ioi_verdicts.csv")
    assert len(verdicts) == 7
    assert verdicts["p_value"].between(0, 1).all()


KINDS = ("", "_edges", "_areas", "_verdicts")


def test_the_figure_is_drawn(output):
    assert call("results/stability/plot_stability.py", "--model", "toy", "--output", output) == 0
    assert {name for name in files_below(output) if name.endswith((".png", ".pdf"))} == {
        f"results/stability/toy/{kind}/{name}.{kind}"
        for kind in ("png", "pdf")
        for name in ("edges", "nodes")
    }


def test_the_report_shows_areas_stability_and_verdicts_with_their_words(output):
    for script in ("results/stability/plot_stability.py", "results/report.py"):
        assert call(script, "--model", "toy", "--output", output) == 0
    page = (output / "results/toy/report.html").read_text(encoding="utf8")
    for shown in ("partial necessity", "CPR", "CMD", "edge_jaccard", "How far the circuits"):
        assert shown in page


def test_bad_input_is_one_line(tmp_path, capsys):
    for options, said in (
        (("--task", "nothing"), "unknown task 'nothing'"),
        (("--sizes", 10**7), "cannot select 10000000 edges"),
        (("--n_resamples", 1), "--n_resamples: '1' is not a whole number from 2"),
        (("--head", 1), "one pair"),
    ):
        status = call(
            "stability.py", "--device", "cpu", "--head", 8, "--output", tmp_path, *QUICK, *options
        )
        assert status == 2
        assert said in capsys.readouterr().err
    assert not [name for name in files_below(tmp_path) if name.endswith(".csv")]


def test_the_measures_are_public():
    for name in ("areas", "bootstrap", "judge", "leave_one_out", "find_clusters"):
        assert callable(getattr(eap, name))

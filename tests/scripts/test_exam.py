"""The page that compares methods says what a fresh run says."""

from __future__ import annotations

import inspect
import json

import pandas as pd
import pytest
from running import ROOT

import eap
from benchmarks import areas, evidence, exam
from eap.analysis.compare import agreement
from eap.data.collections import known_circuits
from eap.data.tasks import PARETO_TASKS
from eap.methods import METHODS
from eap.statistics.measures import auroc


@pytest.fixture(scope="module")
def table():
    return pd.read_csv(exam.TABLE)


@pytest.mark.parametrize("method", ["EAP", "EAP-IG", "GIM", "IFR", "exact"])
@pytest.mark.parametrize("name", known_circuits.TRAINED)
def test_cells_of_trained_models_are_those_of_a_fresh_run(table, name, method):
    row = table[(table["model"] == name) & (table["method"] == method)].squeeze()
    known = known_circuits.load(name)
    graph = eap.attribute(known.model, known.dataset, method=method, quiet=True)
    exact = eap.attribute(known.model, known.dataset, method="exact", quiet=True)
    scores = graph.scores[graph.edge_exists].abs().numpy()
    assert row["auroc"] == pytest.approx(auroc(scores, known.truth), abs=0.01)
    assert row["exact"] == pytest.approx(agreement(graph, exact).kendall, abs=0.02)


def test_every_method_is_examined_on_every_known_model(table):
    methods = {*METHODS, *exam.RECIPES, "mean of four (raw)", "mean of four (scaled)"}
    for name in (*known_circuits.TRAINED, *known_circuits.names()):
        assert set(table[table["model"] == name]["method"]) == methods


def test_every_task_of_the_toy_model_is_examined_at_edges_and_nodes(table):
    toy = table[table["model"] == "toy"]
    assert set(toy["task"]) == set(PARETO_TASKS)
    # A method without scores of nodes, or without a gradient of the task's metric, has no row.
    for (_, level), rows in toy.groupby(["task", "level"]):
        assert {*METHODS, *exam.RECIPES} - set(rows["method"]) == (
            {"AtP*-QK", "IFR"} if level == "node" else set()
        )


def test_the_readme_recommends_what_the_table_does(table):
    """With one pass, with several, learned: the lowest mean CMD; and the default of the verbs."""
    edges, nodes = (
        [exam.best_of(exam.on_toy(table, level), own).index[0] for own in exam.classes().values()]
        for level in ("edge", "node")
    )
    assert edges == ["GIM", "CEAP", "MAttr (cmd)"]
    assert nodes == ["RelP", "EAP-IG", "MAttr (cmd)"]
    text = " ".join((ROOT / "README.md").read_text(encoding="utf8").split())
    assert (
        "With one backward pass, use GIM. With five, use EAP-IG (the paper's method and the "
        "default) or CEAP. With time to train one ranking for all sizes, use MAttr with the loss "
        "`cmd`. For nodes, use RelP, EAP-IG or MAttr."
    ) in text
    assert inspect.signature(eap.attribute).parameters["method"].default == "EAP-IG"


def test_the_page_is_made_of_the_tables_and_says_where_they_come_from(table):
    assert exam.PAGE.read_text(encoding="utf8") == exam.page(table, exam.real_rows())
    origin = json.loads(exam.TABLE.with_name("exam.csv-metadata.json").read_text(encoding="utf8"))
    assert "exam.py" in json.dumps(origin)


def test_evidence_is_written_task_by_task_and_not_again(tmp_path, monkeypatch):
    path, measured, row_of = tmp_path / "evidence.csv", [], evidence.row_of

    def noted(model, task, **settings):
        measured.append(task)
        return row_of(model, task, **settings)

    monkeypatch.setattr(evidence, "row_of", noted)
    options = "--pairs 16 --size 150 --subsets 30 --steps 2 --prices 0.5".split()
    for tasks in (["ioi"], ["ioi", "greater-than"]):
        arguments = ["evidence.py", *options, "--tasks", *tasks, "--csv", str(path)]
        monkeypatch.setattr("sys.argv", arguments)
        evidence.main()
    assert measured == ["ioi", "greater-than"]
    found = pd.read_csv(path)
    assert list(found["task"]) == measured
    monkeypatch.setattr("sys.argv", [*arguments, "--size", "30"])
    with pytest.raises(SystemExit) as end:
        evidence.main()
    assert end.value.code == 2
    assert measured == ["ioi", "greater-than"]
    assert found["plain"].to_list() == pytest.approx(found["first"].to_list())  # one circuit


def test_the_stability_of_a_cell_is_that_of_a_fresh_run(table):
    model = eap.load_model("toy", device="cpu")
    data = eap.load_dataset("greater-than", model.tokenizer, head=150).head(50)
    rankings = areas.Rankings(["EAP"], metric="prob_diff", n_resamples=exam.N_STABILITY)
    (ranking,) = rankings.of(model, data)
    cell = table.query("model == 'toy' and task == 'greater-than' and level == 'edge'")
    (kept,) = cell[cell["method"] == "EAP"]["stability"]
    assert areas.stability_of(ranking.graph, ranking.resamples) == pytest.approx(kept, abs=0.005)
    measured = table[table["stability"].notna()]
    assert set(measured["model"]) == {"toy"}
    assert set(measured["task"]) == set(PARETO_TASKS)
    assert measured["stability"].between(0, 1).all()

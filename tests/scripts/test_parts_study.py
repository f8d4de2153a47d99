"""How many parts of a circuit's nodes it needs: the study, its script, its figure, and the text."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import shapes
from reference import twins
from running import call, files_below

import eap
from eap.commands import view
from eap.data.collections import known_circuits
from eap.runtime.errors import UserError
from eap.studies.parts import part_study

FOLDER = "results/parts/toy"


def test_a_known_circuit_keeps_what_it_needs():
    known = known_circuits.load("induction")
    study = part_study(known.model, known.dataset, size=5, kinds=["channels"], shares=(0, 0.5, 1))
    table = study.table
    assert table.kept.tolist() == [0, table.of[0] // 2, table.of[0]]
    assert table.faithfulness.iloc[0] == pytest.approx(0, abs=1e-6)
    assert table.faithfulness.iloc[-1] == pytest.approx(1, abs=1e-6)
    assert study.provenance["parts"] == ["channels"]
    # Of a head's channels, few carry anything.
    assert table.faithfulness.iloc[1] > 0.5


def test_query_heads_have_keys_of_their_own_where_that_is_asked_for():
    model, pairs = twins.load("llama"), twins.dataset_of(twins.FROM_THE_FIRST)
    options = {"size": 60, "kinds": ["channels"], "shares": (0, 1)}
    for expanded in (False, True):
        study = part_study(model, pairs, **options, expanded_kv=expanded)
        assert study.circuit.config.expanded_kv == expanded
        assert study.provenance["expanded_kv"] == expanded


def test_what_cannot_be_studied_is_refused():
    known = known_circuits.load("induction")
    with pytest.raises(UserError, match="one pair"):
        part_study(known.model, known.dataset.head(1))
    with pytest.raises(UserError, match="no node of the circuit has hidden units"):
        part_study(known.model, known.dataset, size=5, kinds=["hidden units"])
    with pytest.raises(UserError, match="kinds has 'channels' twice"):
        part_study(known.model, known.dataset, kinds=["channels", "hidden units", "channels"])
    with pytest.raises(UserError, match="kinds has no entry"):
        part_study(known.model, known.dataset, kinds=[])
    two = [eap.Features({}), eap.Features({})]
    with pytest.raises(UserError, match="kinds has 'features' twice"):
        part_study(known.model, known.dataset, kinds=two)


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """A whole experiment, whose functions are checked elsewhere: without a check of shapes."""
    folder = tmp_path_factory.mktemp("parts")
    options = ("--model", "toy", "--device", "cpu", "--head", 4, "--output", folder)
    shapes.is_on = False
    try:
        assert call("parts.py", *options, "--task", "ioi", "--ig_steps", 2) == 0
    finally:
        shapes.is_on = True
    return folder


def test_the_script_writes_tables_and_a_figure(output):
    table = pd.read_csv(output / FOLDER / "csv" / "ioi.csv")
    assert {"hidden units", "channels", "features"} == set(table.parts)
    for _, own in table.groupby("parts"):
        assert own.kept.is_monotonic_increasing
        assert own.faithfulness.iloc[-1] == pytest.approx(own.random.iloc[-1])
    top = pd.read_csv(output / FOLDER / "csv" / "ioi_top.csv")
    assert (top.groupby("parts").size() == 50).all()
    assert call("results/parts/plot_parts.py", "--output", output, "--tasks", "ioi") == 0
    pictures = {f"{FOLDER}/{kind}/parts.{kind}" for kind in ("png", "pdf")}
    assert pictures <= set(files_below(output))


def test_why_a_head_looks_is_said_in_text(tmp_path, capsys, monkeypatch):
    model = eap.load_model("toy")
    dataset = eap.load_dataset("ioi", model.tokenizer)
    eap.Graph.from_model(model).save(tmp_path / "g.json")
    arguments = [str(tmp_path / "g.json"), "--why", "a2.h0", "-m", "toy", "-t", "ioi"]
    monkeypatch.setattr("sys.argv", ["eap view", *arguments])
    view.main()
    said = capsys.readouterr().out
    terms = eap.attention.logit_terms(model, dataset, "a2.h0")
    assert f"from {terms.query} to {terms.key}" in said
    assert f"{terms.logit:.3f}" in said
    assert "query_sender" in said
    assert "answers" in said
    assert not list(tmp_path.glob("*.html"))


def why(graph, path, capsys, monkeypatch, *options):
    """What is said of a head of a graph."""
    graph.save(path)
    monkeypatch.setattr("sys.argv", ["eap view", str(path), "--why", "a2.h0", *options])
    view.main()
    return capsys.readouterr()


def test_the_pairs_that_are_explained_are_those_of_the_scores(tmp_path, capsys, monkeypatch):
    model = eap.load_model("toy")
    dataset = eap.load_dataset("ioi", model.tokenizer)
    for part in (dataset[10:12], dataset[-4:-1:2], dataset[5:].head(2), dataset.head(3)):
        graph = eap.attribute(model, part, method="EAP")
        found = why(graph, tmp_path / "g.json", capsys, monkeypatch)
        terms = eap.attention.logit_terms(model, part, "a2.h0")
        assert f"{terms.logit:.3f}" in found.out
        assert found.err == ""
    other = graph.provenance["data"] | {"tokens_sha256": "0" * 64}
    graph = replace(graph, provenance=graph.provenance | {"data": other})
    said = why(graph, tmp_path / "g.json", capsys, monkeypatch).err
    assert "note: these pairs are the first of the task" in said


def test_pairs_of_ones_own_are_asked_for(tmp_path, capsys, monkeypatch):
    """Also without incorrect answers, and with a row that does not fit."""
    model = eap.load_model("toy")
    rows = eap.load_dataset("ioi", model.tokenizer, head=2).examples
    table = tmp_path / "mine.csv"
    texts = [[model.tokenizer.decode(ids[1:]) for ids in (e.clean, e.corrupted)] for e in rows]
    answers = [model.tokenizer.decode(list(e.correct)) for e in rows]
    lines = [f'"{a}","{b}","{c}",' for (a, b), c in zip(texts, answers, strict=True)]
    table.write_text("\n".join(["clean,corrupted,correct,incorrect", *lines, '"A","B C D","x",']))
    mine = eap.load_dataset("mine", model.tokenizer, data=table, drop_unfit=True)
    assert len(mine) == 2
    graph = eap.attribute(model, mine, metric="kl", steps=2)
    with pytest.raises(UserError, match="give the pairs of the graph's scores with --data"):
        why(graph, tmp_path / "g.json", capsys, monkeypatch)
    with pytest.raises(UserError, match="drop_unfit"):
        why(graph, tmp_path / "g.json", capsys, monkeypatch, "--data", str(table))
    with pytest.raises(UserError, match="--drop_unfit needs --data"):
        why(graph, tmp_path / "g.json", capsys, monkeypatch, "-t", "ioi", "--drop_unfit")
    options = ("--data", str(table), "--drop_unfit")
    said = why(graph, tmp_path / "g.json", capsys, monkeypatch, *options).out
    assert "nan" not in said

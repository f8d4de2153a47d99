"""MIB's rows, made by hand in the shapes of its data sets, become pairs of token ids."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest
import torch
from models.tiny import tiny_tokenizer
from running import ROOT, call, files_below

import eap
from eap import studies
from eap.data.collections.mib import MIB_TASKS, get_mib_task, load_mib, to_pairs
from eap.data.dataset import DATA
from eap.runtime.errors import UserError
from eap.statistics.measures import area
from eap.studies.mib import (
    leaderboard_name,
    load_mib_splits,
    mib_ranking,
    published_cells,
    submission_path,
)

TOKENIZER = tiny_tokenizer()


def ioi_row(io, s, other, *, length=4):
    """Words are tokens of the tiny tokenizer: w3 .. w49."""
    filler = " ".join(["w20"] * length)
    return {
        "prompt": f"{s} {io} {filler} {s} w21",
        "template": "..",
        "metadata": {"indirect_object": io, "subject": s, "random_c": other},
        "choices": [io, s],
        "answerKey": 0,
        "s2_io_flip_counterfactual": {"prompt": f"{s} {io} {filler} {io} w21", "answerKey": 1},
        "abc_counterfactual": {"prompt": f"w40 w41 {filler} {other} w21", "answerKey": 0},
    }


def choice_row(labels, key, other_labels, other_key):
    def prompt(own):
        return " ".join(f"{label.strip()} w30" for label in own) + " w31"

    return {
        "prompt": prompt(labels),
        "choices": {"label": labels, "text": ["w30"] * len(labels)},
        "answerKey": key,
        "symbol_counterfactual": {
            "prompt": prompt(other_labels),
            "choices": {"label": other_labels, "text": ["w30"] * len(labels)},
            "answerKey": other_key,
        },
        "answerPosition_counterfactual": {"prompt": "w3", "answerKey": 0},
    }


def sum_row(operator, label, other, *, prompt="w10 w11 w12"):
    counterfactual = None if other is None else {"prompt": "w13 w11 w12", "label": other}
    return {
        "prompt": prompt,
        "operator": operator,
        "label": label,
        "random_counterfactual": counterfactual,
    }


IOI_ROWS = [ioi_row("w3", "w4", "w5"), ioi_row("w6", "w7", "w8", length=5)]
CHOICE_ROWS = [
    choice_row([" w5", " w6"], 1, [" w7", " w8"], 1),
    choice_row([" w9", " w6"], 0, [" w7", " w8"], 0),
]
SUM_ROWS = [
    sum_row("+", " w15", " w16"),
    sum_row("-", " w17", " w18"),
    sum_row("+", " w17", None),
    sum_row("+", " w19", " w18"),
]


def test_all_tasks_of_the_circuit_track_are_there():
    assert list(MIB_TASKS) == [
        "ioi",
        "mcqa",
        "arithmetic-addition",
        "arithmetic-subtraction",
        "arc-easy",
        "arc-challenge",
    ]


def test_ioi_rows_take_the_prompt_whose_second_mention_is_replaced():
    pairs = to_pairs(get_mib_task("ioi"), IOI_ROWS, "rows")
    assert pairs[0] == {
        "clean": "w4 w3 w20 w20 w20 w20 w4 w21",
        "corrupted": "w4 w3 w20 w20 w20 w20 w3 w21",
        "correct": " w3",
        "incorrect": " w4",
    }


@pytest.mark.parametrize("task", ["mcqa", "arc-easy", "arc-challenge"])
def test_choices_take_the_symbols_counterfactual(task):
    first, second = to_pairs(get_mib_task(task), CHOICE_ROWS, "rows")
    assert (first["correct"], first["incorrect"]) == (" w6", " w8")
    assert (second["correct"], second["incorrect"]) == (" w9", " w7")
    assert first["corrupted"] == "w7 w30 w8 w30 w31"


def test_arithmetic_keeps_the_rows_of_its_operator_that_have_a_counterfactual():
    plus = to_pairs(get_mib_task("arithmetic-addition"), SUM_ROWS, "rows")
    assert [(own["correct"], own["incorrect"]) for own in plus] == [
        (" w15", " w16"),
        (" w19", " w18"),
    ]
    minus = to_pairs(get_mib_task("arithmetic-subtraction"), SUM_ROWS, "rows")
    assert [own["correct"] for own in minus] == [" w17"]


def write(folder, name, rows):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    if path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")
    else:
        path.write_text(json.dumps(rows), encoding="utf8")


@pytest.mark.parametrize(
    "name", ["train-00000-of-00001.parquet", "train.jsonl", "train.json", "train/part.jsonl"]
)
def test_a_folder_with_a_copy_of_the_data_set(tmp_path, name):
    folder = tmp_path / "data"
    write((folder / name).parent, (folder / name).name, IOI_ROWS)
    write(folder, "test.jsonl", IOI_ROWS[:1])
    dataset = load_mib("ioi", TOKENIZER, source=tmp_path)
    assert dataset.task == "ioi"
    assert len(dataset) == 2
    first = dataset.examples[0]
    assert TOKENIZER.decode(first.clean) == "<bos> w4 w3 w20 w20 w20 w20 w4 w21"
    assert TOKENIZER.decode(first.corrupted) == "<bos> w4 w3 w20 w20 w20 w20 w3 w21"
    assert (first.correct, first.incorrect) == ((3,), (4,))
    assert len(load_mib("ioi", TOKENIZER, source=tmp_path, split="test")) == 1
    assert len(load_mib("ioi", TOKENIZER, source=tmp_path, head=1)) == 1
    assert "train" in dataset.provenance["source"]


@pytest.mark.parametrize(
    ("task", "rows", "correct"),
    [("mcqa", CHOICE_ROWS, [(6,), (9,)]), ("arithmetic-addition", SUM_ROWS, [(15,), (19,)])],
)
def test_other_tasks_from_parquet(tmp_path, task, rows, correct):
    write(tmp_path, "validation.parquet", rows)
    dataset = load_mib(task, TOKENIZER, source=tmp_path, split="validation")
    assert [own.correct for own in dataset.examples] == correct


def test_rows_that_do_not_fit_the_tokenizer_are_left_out_and_counted(tmp_path):
    short = ioi_row("w3", "w4", "w5")
    short["s2_io_flip_counterfactual"]["prompt"] = "w3 w4"
    write(tmp_path, "train.json", [short, *IOI_ROWS])
    dataset = load_mib("ioi", TOKENIZER, source=tmp_path)
    assert len(dataset) == 2
    assert sum(dataset.provenance["dropped"].values()) == 1


def test_a_csv_of_pairs(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("clean,corrupted,correct,incorrect\nw3 w4,w5 w4, w6, w7\n", encoding="utf8")
    dataset = load_mib("ioi", TOKENIZER, source=path)
    assert dataset.examples[0].correct == (6,)


def test_what_is_wrong_is_said_in_one_line(tmp_path):
    with pytest.raises(UserError, match="unknown task 'poetry' of MIB; known are ioi"):
        load_mib("poetry", TOKENIZER, source=tmp_path)
    with pytest.raises(UserError, match="unknown split"):
        load_mib("ioi", TOKENIZER, source=tmp_path, split="dev")
    with pytest.raises(UserError, match="no data of the split 'train'"):
        load_mib("ioi", TOKENIZER, source=tmp_path)
    write(tmp_path, "train.json", SUM_ROWS[:1])
    with pytest.raises(UserError, match="row 1: no column 's2_io_flip_counterfactual'"):
        load_mib("ioi", TOKENIZER, source=tmp_path)
    broken = {**IOI_ROWS[0], "metadata": {}}
    write(tmp_path, "train.json", [broken])
    with pytest.raises(UserError, match="row 1 is not one of ioi: KeyError"):
        load_mib("ioi", TOKENIZER, source=tmp_path)


@pytest.mark.parametrize("key", [-1, 2, 1.9, True, None, "B", "1"])
def test_a_choice_is_a_number_of_one(key):
    row = choice_row([" w5", " w6"], key, [" w7", " w8"], 1)
    with pytest.raises(UserError, match=r"row 1 is not one of mcqa: .*answerKey is .*0 \.\. 1"):
        to_pairs(get_mib_task("mcqa"), [row], "rows")
    whole = choice_row([" w5", " w6"], 1.0, [" w7", " w8"], 0)
    assert to_pairs(get_mib_task("mcqa"), [whole], "rows")[0]["correct"] == " w6"


def test_of_a_folder_of_subsets_the_tasks_own_is_read(tmp_path):
    for subset in ("2_answer_choices", "4_answer_choices", "10_answer_choices"):
        write(tmp_path / subset, "train-0.jsonl", CHOICE_ROWS[: 1 + (subset[0] == "4")])
    assert len(load_mib("mcqa", TOKENIZER, source=tmp_path)) == 2
    assert len(load_mib("mcqa", TOKENIZER, source=tmp_path / "2_answer_choices")) == 1
    with pytest.raises(UserError, match=r"several data sets.*10_answer_choices"):
        load_mib("arc-easy", TOKENIZER, source=tmp_path)
    (tmp_path / "4_answer_choices" / "train-0.jsonl").unlink()
    with pytest.raises(UserError, match="give the folder 4_answer_choices"):
        load_mib("mcqa", TOKENIZER, source=tmp_path)


def test_one_split_in_two_formats_is_not_read_twice(tmp_path):
    write(tmp_path, "train.json", IOI_ROWS)
    write(tmp_path / ".cache", "train.json", IOI_ROWS)
    write(tmp_path, "training-notes.json", [{"note": 1}])
    assert len(load_mib("ioi", TOKENIZER, source=tmp_path)) == 2
    write(tmp_path, "train.jsonl", IOI_ROWS)
    with pytest.raises(UserError, match="in two formats"):
        load_mib("ioi", TOKENIZER, source=tmp_path)


def test_one_file_is_not_two_splits(tmp_path, toy_rows):
    model = eap.load_model("toy", device="cpu")
    rows = json.loads((toy_rows / "train.json").read_text(encoding="utf8"))
    write(tmp_path, "rows.json", rows)
    for name, message in (("rows.json", "one file for two splits"), ("gone.json", "no data at")):
        with pytest.raises(UserError, match=message):
            load_mib_splits("ioi", model.tokenizer, source=tmp_path / name)
    write(tmp_path, "train.json", rows)
    with pytest.raises(UserError, match="is of the split 'train', not 'test'"):
        load_mib("ioi", model.tokenizer, source=tmp_path / "train.json", split="test")
    marked = [{**row, "split": "train" if i < 5 else "test"} for i, row in enumerate(rows)]
    write(tmp_path, "marked.json", marked)
    sizes = {
        split: len(load_mib("ioi", model.tokenizer, source=tmp_path / "marked.json", split=split))
        for split in ("train", "test")
    }
    assert sizes == {"train": 5, "test": 3}
    with pytest.raises(UserError, match="no row of the split 'validation'"):
        load_mib("ioi", model.tokenizer, source=tmp_path / "marked.json", split="validation")


# ---- the script ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy_rows(tmp_path_factory):
    """Pairs of the toy model's own task, in the benchmark's shape."""
    model = eap.load_model("toy", device="cpu")
    decode = model.tokenizer.decode
    rows = [
        {
            "prompt": decode(own.clean, skip_special_tokens=True),
            "metadata": {
                "indirect_object": decode(own.correct).strip(),
                "subject": decode(own.incorrect).strip(),
            },
            "s2_io_flip_counterfactual": {
                "prompt": decode(own.corrupted, skip_special_tokens=True)
            },
        }
        for own in eap.load_dataset("ioi", model.tokenizer, head=12).examples
    ]
    folder = tmp_path_factory.mktemp("mib")
    write(folder, "train.json", rows[:8])
    write(folder, "test.json", rows[4:])
    return folder


def run(source, output, *more):
    return call(
        "mib.py", "--model", "toy", "--device", "cpu", "--source", source, "--output", output, *more
    )


def test_the_script_saves_and_says_the_areas(toy_rows, tmp_path, capsys):
    assert run(toy_rows, tmp_path, "--submission", tmp_path / "sent") == 0
    said = capsys.readouterr().out
    assert "scored on 8 pairs, measured on 8" in said
    assert files_below(tmp_path) == {
        "graphs/toy/mib_ioi_EAP-IG.json",
        "results/mib/toy/csv/ioi_EAP-IG_areas.csv",
        "results/mib/toy/csv/ioi_EAP-IG_areas.csv-metadata.json",
        "results/mib/toy/csv/ioi_EAP-IG_curves.csv",
        "results/mib/toy/csv/ioi_EAP-IG_curves.csv-metadata.json",
        "results/toy/model.json",
        "sent/ioi_toy/scores.json",
    }
    folder = tmp_path / "results/mib/toy/csv"
    summary = pd.read_csv(folder / "ioi_EAP-IG_areas.csv").set_index("area")
    curves = pd.read_csv(folder / "ioi_EAP-IG_curves.csv")
    helpful = curves[curves["by"] == "helpful"]
    assert summary.loc["CPR", "value"] == pytest.approx(area(helpful["faithfulness"]))
    assert summary.loc["CPR", "low"] <= summary.loc["CPR", "value"] <= summary.loc["CPR", "high"]
    assert helpful["faithfulness"].iloc[-1] == pytest.approx(1)
    # What is sent has a positive score for a helpful edge, k and v for every query head.
    sent = json.loads((tmp_path / "sent/ioi_toy/scores.json").read_text(encoding="utf8"))
    graph = eap.Graph.load(tmp_path / "graphs/toy/mib_ioi_EAP-IG.json")
    assert len(sent["edges"]) == graph.n_edges
    name = next(edge.name for edge in graph.edges(in_graph_only=False) if edge.score < -0.01)
    assert sent["edges"][name]["score"] == pytest.approx(-graph.score(name))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (("--level", "node"), "EAP-IG_nodes"),
        (("--level", "node", "--free_input"), "EAP-IG_free-input_nodes"),
        (("--method", "IFR"), "IFR"),
        (("--ig_steps", 2, "--seed", 3), "EAP-IG_ig-steps-2_seed-3"),
        (("--method", "EAP", "EAP-IG"), "mean-raw_EAP_EAP-IG"),
        (("--method", "EAP", "GIM", "--mean", "scaled"), "mean-scaled_EAP_GIM"),
        (
            ("--method", "MAttr", "--learning_steps", 2, "--loss", "cmd", "--optimizer", "sgd",
             "--sizes", "log"),
            "MAttr_sgd_log_cmd_learning-steps-2",
        ),
        (
            ("--method", "MAttr", "--learning_steps", 2, "--level", "node", "--loss", "kl"),
            "MAttr_adam_uniform_kl_learning-steps-2_nodes",
        ),
    ],
)  # fmt: skip
def test_other_methods_and_levels(toy_rows, tmp_path, options, name):
    assert run(toy_rows, tmp_path, "--head", 3, "--n_train", 3, *options) == 0
    assert (tmp_path / f"results/mib/toy/csv/ioi_{name}_areas.csv").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--free_input",), "--free_input is about nodes"),
        (("--method", "EAP", "--rule", "midpoint"), "EAP has no integration rule"),
        (("--files", "nine"), "--files nine needs --submission"),
        (("--loss", "kl"), "--loss changes nothing without --method MAttr"),
        (("--learning_steps", 3), "--learning_steps changes nothing without --method MAttr"),
        (("--method", "EAP", "--ig_steps", 30), "--ig_steps changes nothing without a method that"),
        (("--mean", "scaled"), "--mean changes nothing without several methods"),
        (("--by", "magnitude"), "--by changes nothing without --files nine"),
    ],
)
def test_options_that_would_change_nothing_are_refused(toy_rows, tmp_path, options, says, capsys):
    assert run(toy_rows, tmp_path / "out", *options) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_settings_are_the_benchmarks_unless_a_rule_is_given(toy_rows):
    model = eap.load_model("toy", device="cpu")
    train = load_mib("ioi", model.tokenizer, source=toy_rows)
    for method, level, rule in (
        ("EAP-IG", "edge", "library"),
        ("EAP-IG", "node", "paper"),
        ("EAP-IG-activations", "edge", "paper"),
    ):
        found = mib_ranking(model, train, method=method, level=level)
        assert found.provenance["settings"] == {"steps": 5, "rule": rule}
    chosen = mib_ranking(model, train, rule="midpoint", steps=2)
    graph = eap.attribute(model, train, steps=2, rule="midpoint", expanded_kv=True)
    assert torch.equal(chosen.scores, graph.scores)


def test_nine_circuits_can_be_submitted_instead_of_scores(toy_rows, tmp_path):
    sent = tmp_path / "sent"
    options = ("--method", "EAP", "--files", "nine", "--submission", sent)
    assert run(toy_rows, tmp_path, "--head", 2, *options) == 0
    names = ["0.1", "0.2", "0.5", "1", "2", "5", "10", "20", "50"]
    assert files_below(sent) == {f"ioi_toy/{name}.json" for name in names}
    ranking = eap.Graph.load(tmp_path / "graphs/toy/mib_ioi_EAP.json")
    for name in names:
        circuit = eap.Graph.load(sent / f"ioi_toy/{name}.json")
        n = int(float(name) / 100 * ranking.n_edges)
        expected = ranking.top_n(n, by="helpful").prune()
        assert circuit.count_edges() <= n
        assert torch.equal(circuit.in_graph, expected.in_graph)


@pytest.mark.parametrize("first", ["one", "nine"])
def test_a_submission_holds_one_ranking(toy_rows, tmp_path, capsys, first):
    sent = tmp_path / "sent"
    options = ("--head", 2, "--method", "EAP", "--submission", sent)
    assert run(toy_rows, tmp_path, *options, "--files", first) == 0
    before = {name: (sent / name).read_bytes() for name in files_below(sent)}
    second = {"one": "nine", "nine": "one"}[first]
    assert run(toy_rows, tmp_path, *options, "--files", second) == 2
    assert "is of another submission" in capsys.readouterr().err
    assert {name: (sent / name).read_bytes() for name in files_below(sent)} == before
    assert run(toy_rows, tmp_path, *options, "--files", first) == 0


def test_a_submission_that_is_too_large_leaves_the_earlier_one(tmp_path, monkeypatch):
    graph = eap.Graph.from_model(eap.load_model("toy", device="cpu"), expanded_kv=True)
    graph = replace(graph, scores=torch.rand(graph.scores.shape) / 3, higher_is_better=True)
    (path,) = studies.submit(graph, tmp_path, "ioi", "toy")
    before = path.read_bytes()
    monkeypatch.setattr("eap.studies.mib.submission_path", lambda *_: path)
    monkeypatch.setattr("eap.studies.mib.LARGEST_FILE", len(before) // 2)
    with pytest.raises(UserError, match="so nothing is submitted"):
        studies.submit(replace(graph, scores=-graph.scores), tmp_path, "ioi", "toy")
    assert path.read_bytes() == before
    assert files_below(tmp_path) == {"ioi_toy/scores.json"}


def test_bad_input_ends_in_one_line(toy_rows, tmp_path, capsys):
    assert run(tmp_path, tmp_path) == 2
    assert "error: no data of the split 'train'" in capsys.readouterr().err
    assert run(toy_rows, tmp_path, "--task", "mcqa") == 2
    assert "no column 'symbol_counterfactual'" in capsys.readouterr().err


def test_a_ranking_is_of_the_train_split_and_its_areas_of_the_other(toy_rows, tmp_path):
    assert run(toy_rows, tmp_path, "--method", "EAP") == 0
    model = eap.load_model("toy", device="cpu")
    train = load_mib("ioi", model.tokenizer, source=toy_rows)
    test = load_mib("ioi", model.tokenizer, source=toy_rows, split="test")
    graph = eap.attribute(model, train, method="EAP", expanded_kv=True)
    assert eap.Graph.load(tmp_path / "graphs/toy/mib_ioi_EAP.json").scores.equal(graph.scores)
    areas = pd.read_csv(tmp_path / "results/mib/toy/csv/ioi_EAP_areas.csv").set_index("area")
    expected = eap.areas(model, graph, test).summary().set_index("area")
    pd.testing.assert_frame_equal(areas, expected, check_exact=False)


def test_published_cells_are_those_of_the_model_and_task():
    found = published_cells("ioi", "openai-community/gpt2").set_index(["method", "level"])
    assert found.loc[("EAP-IG inputs (5 steps)", "edge"), "CPR"] == 1.85
    assert found.loc[("exact", "edge"), "CMD"] == 0.02
    assert found.loc[("EAP", "node"), "CMD"] == 0.38
    assert found["read_in"].str.contains("2504.13151").all()
    gemma = published_cells("mcqa", "google/gemma-2-2b").set_index(["method", "level"])
    assert gemma["CPR"].dropna().to_dict() == {
        ("random", "edge"): 0.32,
        ("EAP-IG inputs (5 steps)", "edge"): 1.64,
        ("EAP-IG (5 steps)", "node"): 1.71,
        ("GIM", "node"): 1.55,
    }
    assert gemma["CMD"].dropna().to_dict() == {
        ("EAP-IG inputs (5 steps)", "edge"): 0.06,
        ("EAP", "edge"): 0.08,
        ("EAP-IG activations (5 steps)", "edge"): 0.07,
    }
    assert gemma["differs"].str.contains("norm after attention").all()
    activations = gemma.loc[("EAP-IG activations (5 steps)", "edge"), "differs"]
    assert activations.startswith("there every run credits all edges")
    assert published_cells("ioi", "toy").empty


def test_addition_and_subtraction_are_told_apart():
    llama = "meta-llama/Llama-3.1-8B"
    assert published_cells("arithmetic-addition", llama).empty
    found = published_cells("arithmetic-subtraction", llama).set_index(["method", "level"])
    assert found.loc[("EAP", "edge"), ["CPR", "CMD"]].tolist() == [0.55, 0.01]
    assert found.loc[("EAP-IG activations (5 steps)", "edge"), "CMD"] == 0


def test_every_published_number_says_where_it_was_read():
    document = json.loads((DATA / "published" / "mib.json").read_text(encoding="utf8"))
    keys = set()
    for row in document["rows"]:
        assert row["read_in"] in document["sources"]
        assert row["level"] in ("edge", "node")
        for cell in row["cells"]:
            key = (row["measure"], row["method"], row["level"], cell, row["read_in"])
            assert key not in keys
            keys.add(key)
    assert sum(key[0] == "CMD" for key in keys) == 42


def test_the_leaderboards_names(tmp_path):
    assert leaderboard_name("Qwen/Qwen2.5-0.5B") == "qwen2.5"
    assert leaderboard_name("meta-llama/Llama-3.1-8B") == "llama3"
    assert leaderboard_name("my/model") == "model"
    small = submission_path(tmp_path, "arc-easy", "google/gemma-2-2b", 74_218)
    assert small.relative_to(tmp_path).as_posix() == "arc-easy_gemma2/scores.json"
    large = submission_path(tmp_path, "ioi", "meta-llama/Llama-3.1-8B", 1_592_881)
    assert large.name == "scores.pt"


@pytest.mark.parametrize("script", ["mib.py", "stability.py"])
def test_help_loads_no_torch(script):
    code = (
        "import runpy, sys; sys.argv = ['x', '--help']\n"
        f"try: runpy.run_path({script!r}, run_name='__main__')\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert out.stdout.splitlines()[-1] == "False", out.stderr

"""Names of models and tasks become names of folders and files in one place."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import pytest
from running import files_below

import eap
from eap.data import reading
from eap.runtime.errors import UserError
from eap.runtime.home import from_home
from eap.studies import paths, shell

MODEL = {"weights_sha256": "1" * 64, "settings_sha256": "2" * 64}
OTHER = {"weights_sha256": "3" * 64, "settings_sha256": "2" * 64}


def test_the_home_folder_of_nobody_is_a_name_like_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(from_home("~nobody-here/x")) == "~nobody-here/x"
    assert from_home("~").is_absolute()
    assert paths.model_name("runs/~nobody-here") == "~nobody-here"
    (tmp_path / "~nobody-here.csv").write_text("x")
    assert reading.find_file("~nobody-here.csv").name == "~nobody-here.csv"
    with pytest.raises(UserError, match="~nobody-here"):
        eap.load_model("~nobody-here/model")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("toy", "toy"),
        ("EleutherAI/pythia-160m", "pythia-160m"),
        ("runs/a/checkpoint-100", "checkpoint-100"),
        ("runs/a/checkpoint-100/", "checkpoint-100"),
        ("runs/a/checkpoint-100//.", "checkpoint-100"),
    ],
)
def test_a_models_folder_has_its_last_name(model, name):
    assert paths.model_name(model) == name


def test_a_directory_called_by_dots_has_its_own_name(tmp_path, monkeypatch):
    below = tmp_path / "mine" / "sub"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert paths.model_name(".") == "sub"
    assert paths.model_name("./") == "sub"
    assert paths.model_name("..") == "mine"
    assert paths.model_name("../") == "mine"
    assert paths.model_name("../../mine") == "mine"
    assert paths.graph_file(tmp_path, "..", "ioi_task") == tmp_path / "graphs/mine/ioi_task.json"


@pytest.mark.parametrize("model", ["", " ", "/", "a\\b", "a/b\n", "x" * 101, "a/.hidden"])
def test_a_model_that_can_name_no_folder_is_refused(model):
    with pytest.raises(UserError, match="cannot name files"):
        paths.model_name(model)


@pytest.mark.parametrize("task", ["ioi", "greater-than", "my task", "grün", "v1.2", "x" * 100])
def test_a_task_may_have_any_plain_name(task):
    assert paths.task_name(task) == task


@pytest.mark.parametrize(
    "task",
    [
        "", "  ", ".", "..", ".hidden", "../escaped", "a/b", "/tmp/x", "a\\b", "a\0b", "a\nb",
        "a\x7fb", "a\u2028b", "x" * 101, "ü" * 60,
    ],
)  # fmt: skip
def test_a_task_whose_name_is_no_file_name_is_refused(task):
    with pytest.raises(UserError) as caught:
        paths.task_name(task)
    assert "cannot name files" in str(caught.value)
    assert len(str(caught.value)) < 200


def test_large_graphs_are_kept_as_safetensors(tmp_path):
    assert paths.graph_file(tmp_path, "m", "x", n_edges=500_001).suffix == ".safetensors"
    assert paths.graph_file(tmp_path, "m", "x", n_edges=500_000).suffix == ".json"


# ---- two models of one name ----------------------------------------------------------------------


def test_two_models_of_one_name_do_not_share_a_folder(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name / "checkpoint-100").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    paths.claim(tmp_path, "a/checkpoint-100", MODEL)
    before = (tmp_path / "results/checkpoint-100/model.json").read_bytes()
    with pytest.raises(UserError, match=r"is of another model, .*a/checkpoint-100; give another"):
        paths.claim(tmp_path, "b/checkpoint-100", OTHER)
    with pytest.raises(UserError, match="is of another model"):
        paths.claim(tmp_path, "hub/checkpoint-100", {"hub": "hub/checkpoint-100", "revision": "1"})
    assert (tmp_path / "results/checkpoint-100/model.json").read_bytes() == before
    paths.claim(tmp_path / "elsewhere", "b/checkpoint-100", OTHER)


def test_the_same_model_comes_back_from_anywhere_and_may_be_trained_on(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name / "m").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    paths.claim(tmp_path, "a/m", {**MODEL, "directory": "m"})
    paths.claim(tmp_path, str(tmp_path / "a" / "m") + "/", MODEL)
    paths.claim(tmp_path, "b/m", MODEL)  # a copy
    paths.claim(tmp_path, "a/m", OTHER)  # trained on
    assert json.loads((tmp_path / "results/m/model.json").read_text())["weights_sha256"] == "3" * 64


def test_a_record_that_cannot_be_read_is_made_anew(tmp_path):
    path = tmp_path / "results/toy/model.json"
    path.parent.mkdir(parents=True)
    for damaged in ("", "{", "[]", "3"):
        path.write_text(damaged)
        paths.claim(tmp_path, "toy", MODEL)
        assert json.loads(path.read_text())["model"] == "toy"
    assert files_below(tmp_path) == {"results/toy/model.json"}


@pytest.mark.parametrize("name", ["results", "graphs", "results/m", "graphs/m", "results/pareto/m"])
def test_a_file_where_results_will_be_is_found_before_there_are_any(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    paths.check_folders(tmp_path, "some/m")
    (tmp_path / name).write_text("x")
    with pytest.raises(UserError, match=f"{name} is no folder"):
        paths.check_folders(tmp_path, "some/m")
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(tmp_path / name)
    with pytest.raises(UserError, match="is no folder"):
        paths.check_folders(tmp_path, "some/m")


def test_an_output_that_can_be_no_folder_is_refused_with_the_arguments(tmp_path):
    loop, nowhere = tmp_path / "loop", tmp_path / "nowhere"
    loop.symlink_to(loop)
    nowhere.symlink_to(tmp_path / "gone")
    (tmp_path / "graphs").write_text("x")
    for given in (loop, loop / "below", nowhere, tmp_path, "a\0b", "x" * 300, "bad-\udcff"):
        with pytest.raises(argparse.ArgumentTypeError) as error:
            shell.output_folder(str(given))
        assert len(str(error.value)) < 300


def test_names_files_and_provenance_need_no_torch():
    code = (
        "import sys\n"
        "import eap\n"
        "from eap.studies import paths, shell, provenance\n"
        "from eap.runtime import processes, progress\n"
        "assert processes.count() == 1\n"
        "assert not {'torch', 'transformers', 'transformer_lens'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

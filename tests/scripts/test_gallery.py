"""What the repository keeps of the study on a real model: its tables redraw its pictures."""

from __future__ import annotations

import importlib
import re
import shutil

import numpy as np
import pytest
from matplotlib import image
from pages import content_of
from running import ROOT, call

from eap.figures import viewer
from eap.figures.tables import Results, read_table

GALLERY = ROOT / "results" / "gallery" / "smollm2"
MODEL = "SmolLM2-135M-Instruct"


def test_every_table_says_where_it_comes_from_and_no_path_of_a_machine():
    tables = sorted((GALLERY / "results").glob(f"*/{MODEL}/csv/*.csv"))
    assert len(tables) > 30
    for path in tables:
        table = read_table(path)
        assert table.metadata is not None, path
        assert table.metadata["model"]["name"] == MODEL
        text = path.with_name(f"{path.name}-metadata.json").read_text("utf8")
        made_of = re.compile(rf'"results/[\w-]+/{MODEL}/')  # below the output: no machine's path
        assert f"/{MODEL}" not in made_of.sub("", text)
        assert "--output" not in text


@pytest.mark.parametrize(
    ("script", "picture"),
    [
        (
            "results/real_pareto_combined/plot_real_pareto_normalized.py",
            "real_pareto_combined/{model}/png/real_pareto_normalized.png",
        ),
        (
            "results/real_rank/plot_overlap.py",
            "real_rank/{model}/png/correlation_overlap.png",
        ),
    ],
)
def test_a_picture_is_redrawn_from_its_tables(script, picture, tmp_path):
    shutil.copytree(GALLERY / "results", tmp_path / "results")
    path = f"results/{picture.format(model=MODEL)}"
    (tmp_path / path).unlink()
    assert call(script, "--model", MODEL, "--output", tmp_path) == 0
    drawn, kept = image.imread(tmp_path / path), image.imread(GALLERY / path)
    assert drawn.shape == kept.shape
    # The same pixels, but for what another version of a font library may do.
    assert np.abs(drawn - kept).mean() < 0.005


def test_pages_of_real_models_are_made_of_what_is_kept(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # as the scripts there import each other
    real_model = importlib.import_module("real_model")
    studies = [path.parent.name for path in GALLERY.parent.glob("*/exact-values.md")]
    assert "smollm2" in studies
    for name in studies:
        study = real_model.Study(name, Results(GALLERY, "none"))
        assert study.page.read_text("utf8") == real_model.page(study)


def test_the_page_of_a_circuit_has_the_scripts_of_the_package():
    path = GALLERY / "ioi.html"
    assert path.read_text("utf8") == viewer._render(content_of(path))


def test_the_claims_are_those_of_the_tables(tmp_path):
    shutil.copytree(GALLERY / "results", tmp_path / "results")
    kept = (GALLERY / f"results/claims/{MODEL}/csv/claims.csv").read_bytes()
    assert call("results/claims/claims.py", "--model", MODEL, "--output", tmp_path) == 0
    assert (tmp_path / f"results/claims/{MODEL}/csv/claims.csv").read_bytes() == kept


def test_the_page_of_real_models_is_that_of_the_tables(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    real_models = importlib.import_module("real_models")
    kept = (ROOT / "docs" / "real-models.md").read_text("utf8")
    assert real_models.page(real_models.kept_models()) == kept

"""Every experiment and every figure of the paper on the toy model; what is GPT-2's on its shape.

A run has four tasks: of logits and of probabilities, Figure 1's and a variant. That all eight are
planned alike is tested with the table of studies. A model of GPT-2's shape has circuits found by
hand (Figure 6) and too many edges for exact values of all.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapes
import torch
from matplotlib import image
from running import ROOT, call, files_below
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

import eap
from eap.data.tasks import TASKS
from eap.model.directory import TOY_MODEL
from eap.studies.provenance import read_metadata

sys.path.insert(0, str(ROOT / "workflow"))
from inputs import Settings, planned

MAIN = ("ioi", "greater-than", "fact-retrieval-comma")
CHOSEN = (*MAIN, "greater-than-price")
CURVES = ["baseline", "corrupted_baseline", "edges"]
STEPS = ["vanilla", "2", "3", "5", "7", "10", "15", "20", "30", "50"]
PICTURES = {
    "first_figure": ["first_figure"],
    "circuit": ["ioi_circuit"],
    "real_pareto_combined": ["real_pareto_normalized"],
    "real_rank": ["correlation_overlap", "kendall_difference", "node_edge_overlap"],
    "cross-task": ["cross_task", "cross_task_own", "recall"],
    "ig_test": ["ig_test"],
    "pareto": [
        "pareto",
        "pareto_normalized",
        "pareto_normalized_greater-than-price",
    ],
}


def methods(*names):
    return [column for name in names for column in (f"edges_{name}", f"loss_{name}")]


OF_GPT2 = ("pareto", "exact", "compare_real", "figure_2", "figure_9", "figure_6", "report")
"""Steps that depend on GPT-2's shape or on its number of edges: how their names begin."""


def run_paper(folder, *, steps=("",), **config):
    """Run the jobs whose names begin so, one after the other, in this process."""
    settings = Settings.from_config({"output": folder, **config}, str(folder))
    before = Path.cwd()
    os.chdir(folder)
    try:
        jobs = [job for job in planned(settings) if job.name.startswith(steps)]
        for job in jobs:
            assert call(*job.command) == 0, job.name
            assert [path for path in job.writes if not Path(path).is_file()] == [], job.name
    finally:
        os.chdir(before)


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Whole experiments, whose functions are checked elsewhere, run without a check of shapes."""
    shapes.is_on = False
    yield
    shapes.is_on = True


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A finished run on the toy model, with few pairs."""
    output = tmp_path_factory.mktemp("toy")
    only = dict.fromkeys(("ig_test", "stability", "parts", "positions"), "ioi")
    # Few sizes; of random circuits, whose curves no figure of the paper draws, one of each.
    sizes = "--sizes 30 100 200 1000"
    options = {
        "pareto": f"{sizes} --n_random 1",
        "exact": sizes,
        "ig_test": sizes,
        "stability": "--n_resamples 10 --n_random 19",
    }
    tasks = " ".join(CHOSEN)
    run_paper(output, model="toy", head=4, tasks=tasks, only=only, options=options)
    return output


@pytest.fixture(scope="module")
def gpt2_shaped(tmp_path_factory):
    """Circuits found by hand and exact values of chosen edges, on a tiny model of GPT-2's shape."""
    folder = tmp_path_factory.mktemp("gpt2-shaped")
    tokenizer = AutoTokenizer.from_pretrained(TOY_MODEL)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=32, n_embd=24, n_layer=12, n_head=12,
        bos_token_id=0, eos_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder / "random")
    tokenizer.save_pretrained(folder / "random")
    options = {
        "pareto": "--sizes 30 200 --n_random 1",
        "exact": "--verify 60 --sample 20 --exact_head 1 --sizes 30 200",
    }
    tasks = "ioi, greater-than"
    run_paper(folder, steps=OF_GPT2, model="random", head=2, tasks=tasks, options=options)
    return folder


def csv(output, study, name, model="toy") -> pd.DataFrame:
    return pd.read_csv(output / "results" / study / model / "csv" / f"{name}.csv")


def columns(frame) -> list[str]:
    """Without the index that pandas writes."""
    return [name for name in frame if not name.startswith("Unnamed")]


def test_every_table_has_exactly_its_columns(toy):
    estimates = ("EAP", "EAP-IG", "EAP-IG-KL")
    for task in CHOSEN:
        assert columns(csv(toy, "pareto", task)) == [*CURVES, *methods(*estimates)]
    for task in MAIN:
        expected = [*CURVES, *methods("real", "real-KL", "EAP-IG", "EAP-IG-KL", "EAP")]
        assert columns(csv(toy, "real", task)) == expected
    frame = csv(toy, "ig_test", "ioi_logit_diff_ig_test")
    pairs = [column for name in STEPS for column in (f"n_edges_{name}", f"results_{name}")]
    assert columns(frame) == ["n_edges", "baseline", "corrupted_baseline", *pairs]
    for kind in ("edge", "node"):
        for name in ("ious", "iou_ps", "overlap"):
            assert columns(csv(toy, "jaccard", f"{kind}_{name}")) == list(CHOSEN)
    faithfulness = csv(toy, "cross-task", "faithfulness")
    assert columns(faithfulness) == [*CHOSEN, "baseline", "corrupted_baseline"]
    assert len(faithfulness) == len(CHOSEN)
    overlap = csv(toy, "real_rank", "all-overlap")
    assert columns(overlap) == [
        "depth",
        *(f"{t}_{m}" for t in MAIN for m in ("vanilla", "ig")),
    ]
    assert list(overlap["depth"]) == list(range(1, 401))
    pairs = ("real_EAP", "real_EAP-IG", "EAP_EAP-IG")
    for kind in ("node", "edge"):
        frame = csv(toy, "real_rank", f"{kind}-overlap")
        assert columns(frame) == ["depth", *(f"{t}_{p}" for t in MAIN for p in pairs)]
        assert list(frame["depth"]) == list(range(25, 601))


def test_every_graph_is_there(toy):
    folder = toy / "graphs" / "toy"
    for task in CHOSEN:
        for suffix in ("vanilla", "task", "kl", "circuit"):
            eap.Graph.load(folder / f"{task}_{suffix}.json")
    for task in MAIN:
        for metric in ("logit_diff", "prob_diff", "kl", "js"):
            exact = eap.Graph.load(folder / "real_test" / f"{task}_{metric}_real.json")
            assert exact.is_exact.equal(exact.edge_exists)
        for suffix in ("vanilla", "ig"):
            eap.Graph.load(folder / "real_test" / f"{task}_{TASKS[task].metric}_{suffix}.json")
        eap.Graph.load(folder / "real_test" / f"{task}_kl_ig.json")
    for step in STEPS:
        eap.Graph.load(folder / "ig_test" / f"ioi_logit_diff_{step}.json")


def test_every_figure_is_made_and_not_blank(toy):
    for study, names in PICTURES.items():
        for name in names:
            folder = toy / "results" / study / "toy"
            assert (folder / "pdf" / f"{name}.pdf").stat().st_size > 5000
            picture = image.imread(folder / "png" / f"{name}.png")
            assert min(picture.shape[:2]) > 300
            assert picture.std() > 0.02, f"{name} is blank"


def test_baselines_agree_between_studies(toy):
    for task in MAIN:
        pareto, real = csv(toy, "pareto", task), csv(toy, "real", task)
        for column in ("baseline", "corrupted_baseline", "loss_EAP", "loss_EAP-IG"):
            np.testing.assert_allclose(pareto[column], real[column], rtol=1e-4, atol=1e-5)


def test_the_claims_name_the_files_that_they_are_made_of(toy):
    folder = toy / "results/claims/toy/csv"
    made_of = read_metadata(folder / "claims.csv")["made_of"]
    assert {Path(name).parts[1] for name in made_of} == {
        "pareto", "ig_test", "jaccard", "cross-task", "real_rank"
    }  # fmt: skip
    assert "results/real_rank/toy/correlations.json" in made_of
    for name, digest in made_of.items():
        assert hashlib.sha256((toy / name).read_bytes()).hexdigest() == digest


def test_a_circuit_overlaps_itself_and_does_its_own_task(toy):
    faithfulness = csv(toy, "cross-task", "faithfulness")
    model = eap.load_model("toy", device="cpu")
    for row, task in enumerate(CHOSEN):
        for kind in ("edge", "node"):
            assert csv(toy, "jaccard", f"{kind}_ious")[task][row] == 1
        circuit = eap.Graph.load(toy / "graphs" / "toy" / f"{task}_circuit.json")
        dataset = eap.load_dataset(task, model.tokenizer, head=4)
        metric = TASKS[task].cross_task_metric
        own = float(eap.evaluate(model, circuit, dataset, metrics=[metric])[metric].mean())
        assert faithfulness[task][row] == pytest.approx(own, rel=1e-4)
        low, high = faithfulness["corrupted_baseline"][row], faithfulness["baseline"][row]
        assert (own - low) / (high - low) >= 0.85


def test_the_page_shows_every_figure_and_the_numbers_of_the_tables(toy):
    page = (toy / "results" / "toy" / "report.html").read_text("utf8")
    assert page.count("<figure>") >= sum(map(len, PICTURES.values()))
    assert "Not made: the circuits found by hand" in page  # Figure 6
    frame = csv(toy, "pareto", "ioi")
    row = frame[frame["edges"] == 200].iloc[0]
    low, high = row["corrupted_baseline"], row["baseline"]
    assert f"{(row['loss_EAP-IG'] - low) / (high - low):.3f}" in page
    assert f"{row['loss_EAP-IG']:.4g}" in page
    # Self-contained; a picture's letters may be any.
    assert "http" not in re.sub(r"data:image[^\"]*|http://www.w3.org", "", page)


def test_the_shape_of_gpt2_gives_figure_6(gpt2_shaped):
    name = "random"
    for task in ("ioi", "greater-than"):
        frame = csv(gpt2_shaped, "manual_overlap", f"{task}_node_edge_precision_recall", name)
        assert columns(frame) == [
            "edges",
            *(
                f"{method}_{kind}_{what}"
                for method in ("EAP", "EAP-IG")
                for kind in ("node", "edge")
                for what in ("precision", "recall")
            ),
        ]
        values = frame.drop(columns="edges")
        assert ((values >= 0) & (values <= 1) | values.isna()).all(axis=None)
    made = {Path(path).stem for path in files_below(gpt2_shaped) if path.endswith(".png")}
    of_hand = {"ioi_precision_recall", "greater-than_precision_recall"}
    assert made == of_hand | {"ioi_circuit", "node_edge_overlap"}
    page = (gpt2_shaped / "results" / name / "report.html").read_text("utf8")
    assert "Figure 6" in page
    assert "Not made: the circuits found by hand" not in page


def test_the_published_wiring_is_an_option(gpt2_shaped, capfd):
    script = "results/manual_overlap/ioi_overlap.py"
    options = ("--model", gpt2_shaped / "random", "--output", gpt2_shaped)
    path = "results/manual_overlap/random/csv/ioi_node_edge_precision_recall.csv"
    corrected = (gpt2_shaped / path).read_bytes()
    assert call(script, *options, "--published_wiring") == 0
    assert (gpt2_shaped / path).read_bytes() != corrected

"""Figure scripts on fabricated results: other people's files, missing files, broken files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import image
from models import fabricated
from models.fabricated import GPT2_SHAPE, SMALL
from scripts import call, files_below

from eap.data.tasks import PARETO_TASKS, TASKS
from eap.graph.graph import Graph, GraphConfig

SCRIPTS = {
    "results/first_figure/first_figure.py": ["first_figure"],
    "results/pareto/plot_pareto.py": ["pareto"],
    "results/pareto/plot_pareto_normalized.py": ["pareto_normalized"],
    "results/pareto/plot_pareto_big.py": ["pareto_big"],
    "results/pareto/plot_pareto_normalized_single.py": [
        "pareto_normalized_greater-than-price_greater-than-sequence"
    ],
    "results/real_pareto_combined/plot_real_pareto_normalized.py": ["real_pareto_normalized"],
    "results/ig_test/plot_ig_test.py": ["ig_test"],
    "results/cross-task/make_all_heatmaps.py": ["cross_task", "cross_task_own"],
    "results/cross-task/recall_heatmaps.py": ["recall"],
    "results/real_rank/plot_overlap.py": ["correlation_overlap"],
    "results/real_rank/plot_kendall.py": ["kendall_difference"],
    "results/real_rank/node_edge_overlap_plot.py": ["node_edge_overlap"],
    "results/circuit/plot_circuit.py": ["ioi_circuit"],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Fabricated results of every study."""
    output = tmp_path_factory.mktemp("fabricated")
    fabricated.fabricate_graphs(output, "small")
    fabricated.fabricate_curves(output, "small")
    fabricated.fabricate_ig_test(output, "small", ["ioi", "greater-than", "gender-bias"])
    fabricated.fabricate_cross_task(output, "small")
    compare = "results/real_rank/compare_real.py"
    assert call(compare, "--model", "small", "--output", output) == 0
    return output


def pictures(output: Path) -> set[str]:
    return {Path(name).stem for name in files_below(output) if name.endswith(".png")}


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_figure_is_drawn_for_any_model(script, made):
    before = pictures(made)
    assert call(script, "--model", "some-owner/small", "--output", made) == 0
    for name in SCRIPTS[script]:
        (path,) = made.glob(f"results/*/small/png/{name}.png")
        assert path.with_suffix(".pdf").parent.parent.joinpath("pdf", f"{name}.pdf").exists()
        assert image.imread(path).std() > 0.02
    assert pictures(made) - before <= set(SCRIPTS[script])


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_is_missing_is_named_with_the_command_that_makes_it(script, tmp_path, capfd):
    assert call(script, "--model", "nothing", "--output", tmp_path) == 2
    said = capfd.readouterr()
    assert "--model nothing" in said.out + said.err
    assert ".py" in said.err
    assert said.err.count("error:") == 1
    assert files_below(tmp_path) == set()


def test_tasks_that_are_there_are_drawn_the_others_named(tmp_path, capfd):
    fabricated.fabricate_curves(tmp_path, "small", ["sva"])
    script = "results/pareto/plot_pareto_normalized.py"
    assert call(script, "--model", "small", "--output", tmp_path) == 0
    out = capfd.readouterr().out
    assert "python pareto.py --model small --task ioi" in out
    assert "--task sva" not in out


@pytest.mark.parametrize(
    "script", [name for name in SCRIPTS if "/pareto/" in name or "first" in name]
)
def test_published_tables_plot_as_they_are(script, tmp_path):
    """An index, another order of columns, another method, and no total number of edges."""
    for task in TASKS:
        fabricated.fabricate_published_curves(tmp_path, "gpt2", task)
    assert call(script, "--model", "gpt2", "--output", tmp_path) == 0
    assert pictures(tmp_path) == set(SCRIPTS[script])


def test_published_graphs_are_compared_and_drawn(tmp_path):
    graph = Graph.from_config(GraphConfig(3, 4, 0, 4))
    for number, task in enumerate(PARETO_TASKS):
        folder = tmp_path / "graphs" / "gpt2"
        for seed, name in enumerate(("real", "vanilla", "ig")):
            metric = TASKS[task].metric
            path = folder / "real_test" / f"{task}_{metric}_{name}.json"
            fabricated.save_published_graph(graph, path, seed=10 * number + seed)
        fabricated.save_published_graph(graph, folder / f"{task}_task.json", seed=number)
    options = ("--model", "gpt2", "--output", tmp_path)
    assert call("results/circuit/plot_circuit.py", *options, "--edges", 60) == 0
    assert call("results/real_rank/compare_real.py", *options) == 0
    table = pd.read_csv(tmp_path / "results/real_rank/gpt2/csv/all-overlap.csv")
    assert table["ioi_ig"].between(0, 1).all()


def test_hand_made_circuits_need_the_shape_of_gpt2(tmp_path, capfd):
    for model, config, status in (("small", SMALL, 2), ("gpt2", GPT2_SHAPE, 0)):
        fabricated.fabricate_graphs(tmp_path, model, ["ioi", "greater-than"], config=config)
        for script in ("ioi_overlap", "greater_than_overlap"):
            path = f"results/manual_overlap/{script}.py"
            assert call(path, "--model", model, "--output", tmp_path) == status
    assert "12 layers of 12 heads" in capfd.readouterr().err
    assert pictures(tmp_path) == {"ioi_precision_recall", "greater-than_precision_recall"}


def test_the_papers_numbers_are_printed_beside_ones_own(made, capfd):
    script = "results/pareto/plot_pareto_normalized.py"
    options = ("--model", "small", "--output", made, "--compare-paper")
    assert call(script, *options) == 0
    out = capfd.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert "known errors of the published files:" in out
    assert "not of GPT-2 small" in out
    frame = pd.read_csv(made / "results/pareto/small/csv/ioi.csv")
    row = frame[frame["edges"] == 500].iloc[0]
    own = (row["loss_EAP-IG"] - row["corrupted_baseline"]) / (
        row["baseline"] - row["corrupted_baseline"]
    )
    (shown,) = [line for line in lines if line[:4] == ["ioi", "EAP-IG,", "500", "edges"]]
    np.testing.assert_allclose([float(x) for x in shown[4:]], [own, 0.5, own - 0.5], atol=6e-4)
    assert ["ioi", "pearson,", "EAP"] in [line[:3] for line in lines]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not a CSV"),
        (b"edges,loss_EAP\n30,1\n", "has no column baseline"),
        (b"baseline,corrupted_baseline,edges\n", "has no rows"),
        (b"\xff\xfe\x00\x01", "is not a CSV"),
        (b"baseline,corrupted_baseline,edges,loss_EAP\n1,1,30,1\n", "nothing to normalise by"),
    ],
)
def test_a_broken_table_is_named_and_no_picture_is_lost(content, says, tmp_path, capfd):
    path = tmp_path / "results/pareto/small/csv/ioi.csv"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    picture = tmp_path / "results/pareto/small/png/pareto_normalized.png"
    picture.parent.mkdir()
    picture.write_bytes(b"an earlier picture")
    script = "results/pareto/plot_pareto_normalized.py"
    assert call(script, "--model", "small", "--tasks", "ioi", "--output", tmp_path) == 2
    assert says in capfd.readouterr().err
    assert picture.read_bytes() == b"an earlier picture"

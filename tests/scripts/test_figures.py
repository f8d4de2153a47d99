"""Figure scripts on fabricated results: other people's files, missing files, broken files."""

from __future__ import annotations

import shlex
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from drawing import COMBINED, NORMALIZED, PARETO, draw, pictures, signed
from matplotlib import image
from models import fabricated
from models.fabricated import FEW_TASKS, GPT2_SHAPE, SMALL
from running import call, files_below

from eap.data.tasks import TASKS
from eap.figures import curves, tables
from eap.graph.graph import Graph, GraphConfig
from eap.studies.provenance import write_table

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
    fabricated.fabricate_ig_test(output, "small", ["ioi", "greater-than"])
    fabricated.fabricate_cross_task(output, "small")
    compare = "results/real_rank/compare_real.py"
    assert call(compare, "--model", "small", "--output", output) == 0
    return output


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


def test_the_command_that_is_named_is_for_the_same_model_and_folder(tmp_path, capfd):
    assert call(PARETO, "--model", "a/my model", "--output", tmp_path, "--tasks", "ioi") == 2
    command = capfd.readouterr().err.split("begin with: ")[1]
    assert shlex.split(command) == [
        "python", "pareto.py", "--model", "a/my model", "--task", "ioi", "--output", str(tmp_path)
    ]  # fmt: skip


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
    for task in FEW_TASKS:
        fabricated.fabricate_published_curves(tmp_path, "gpt2", task)
    assert call(script, "--model", "gpt2", "--output", tmp_path) == 0
    assert pictures(tmp_path) == set(SCRIPTS[script])


def test_published_graphs_are_compared_and_drawn(tmp_path):
    graph = Graph.from_config(GraphConfig(3, 4, 0, 4))
    for number, task in enumerate(FEW_TASKS[:2]):
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
        for script in ("ioi_overlap", "greater_overlap"):
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


@pytest.mark.parametrize("script", [COMBINED, "results/circuit/plot_circuit.py"])
def test_the_same_command_gives_the_same_bytes(script, made):
    def contents():
        assert draw(script, made) == 0
        folder = made / "results" / Path(script).parent.name / "small"
        return {path.name: path.read_bytes() for path in folder.glob("p*/*")}

    first = contents()
    assert len(first) == 2
    assert contents() == first
    assert b"CreationDate" not in first[min(first)]


# ---- what surrounds the curves -------------------------------------------------------------------


def bands_beside(frame, folder, **changes):
    path = folder / "ioi.csv"
    fabricated.save(frame, path)
    bands = fabricated.bands_table(frame, total_edges=999).assign(**changes)
    fabricated.save(bands.sample(frac=1, random_state=0), folder / "ioi_bands.csv")
    return tables.read_table(path), bands


def test_bands_are_joined_by_the_number_of_edges(tmp_path, capsys):
    frame = fabricated.curve_table(["EAP"])
    table, bands = bands_beside(frame, tmp_path)
    joined = tables.read_bands(table)
    assert list(joined["edges"]) == list(frame["edges"])
    np.testing.assert_allclose(joined["loss_random"], bands["loss_random"])
    # Of the same number of rows, and of more: other sizes.
    for sizes in ([*range(31, 48)], [*range(40, 100, 10)]):
        fabricated.save(fabricated.curve_table(["EAP"], sizes=sizes), tmp_path / "ioi.csv")
        other = tables.read_table(tmp_path / "ioi.csv")
        assert (tables.read_bands(other) is None) == (31 in sizes)
    assert "of other sizes" in capsys.readouterr().out


def test_bands_of_another_run_do_not_surround_a_table(tmp_path, capsys):
    """A run that was killed between its two tables leaves the bands of an earlier one."""
    frame = fabricated.curve_table(["EAP"])
    origin = {"model": {"weights_sha256": "1"}, "task": "ioi", "settings": {"ig_steps": 5}}
    write_table(frame, tmp_path / "ioi.csv", origin)
    bands = fabricated.bands_table(frame, total_edges=999)
    for steps in (5, 6):
        write_table(bands, tmp_path / "ioi_bands.csv", origin | {"settings": {"ig_steps": steps}})
        found = tables.read_bands(tables.read_table(tmp_path / "ioi.csv"))
        assert (found is None) == (steps == 6)
    assert "of another settings.ig_steps" in capsys.readouterr().out


def test_the_first_figure_shows_one_task(tmp_path, capfd):
    script = "results/first_figure/first_figure.py"
    assert call(script, "--tasks", "ioi", "sva", "--output", tmp_path) == 2
    assert "this figure shows one task, not 2" in capfd.readouterr().err


def test_bands_of_a_run_do_not_surround_a_table_from_elsewhere(tmp_path, capsys):
    frame = fabricated.curve_table(["EAP"])
    bands = fabricated.bands_table(frame, total_edges=999)
    fabricated.save(frame, tmp_path / "ioi.csv")
    signed(bands, tmp_path / "ioi_bands.csv")
    assert tables.read_bands(tables.read_table(tmp_path / "ioi.csv")) is None
    assert "ignored" in capsys.readouterr().out


def test_a_share_has_the_error_of_a_share_or_none(tmp_path):
    frame = fabricated.curve_table(["EAP"])
    table, bands = bands_beside(frame, tmp_path)

    def heights(normalise, **columns):
        _, ax = plt.subplots()
        surround = bands.assign(**columns)
        curves.draw_curves(ax, table.frame, bands=surround, normalise=normalise)
        found = [np.ptp(c.get_paths()[0].vertices[:, 1]) for c in ax.collections]
        spread = [
            np.ptp(c.get_paths()[0].vertices[c.get_paths()[0].vertices[:, 0] == 95, 1])
            for c in ax.collections
            if c.get_label() != "random circuits"
        ]
        plt.close()
        return len(found), spread

    n, (spread,) = heights(normalise=False)
    assert n == 2  # the method's, and that of random circuits
    assert spread == pytest.approx(2 * 1.96 * 0.15)
    assert heights(normalise=True) == (0, [])
    n, (spread,) = heights(normalise=True, stderr_share_EAP=0.01)
    assert spread == pytest.approx(2 * 1.96 * 0.01)
    n, _ = heights(normalise=True, baseline_random=2.0, corrupted_baseline_random=-1.0)
    assert n == 1


# ---- odd and damaged tables ----------------------------------------------------------------------

HEADER = "baseline,corrupted_baseline,edges,loss_EAP\n"


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("3,-1,30,1\n3,-1,40\n", "row 2 has 3 cells and the header 4"),
        ("3,-1,30,1,7\n3,-1,40,2,7\n", "row 1 has 5 cells and the header 4"),
        ("3,-1,30,1\n3,-1,40,x\n", "column 'loss_EAP', row 2 has 'x'"),
        ("3,-1,30,a\n3,-1,40,b\n", "where a number must stand"),
        ("nan,-1,30,1\n", "column 'baseline' has a row without a number"),
        ("3,inf,30,1\n", "infinite"),
        ("3,-1,30,inf\n", "infinite"),
        ("3,-1,-30,1\n", "below 0"),
        ("3,-1,,1\n", "column 'edges' has a row without a number"),
        ("3,-1,30,\n", "column 'loss_EAP' has no number"),
        ('3,-1,30,"1\n', "is not a CSV"),
    ],
)
@pytest.mark.parametrize("script", [PARETO, NORMALIZED])
def test_a_table_that_cannot_be_drawn_truthfully_is_refused_in_one_line(
    rows, says, script, tmp_path, capfd
):
    path = tables.Results(tmp_path, "small").csv("pareto", "ioi")
    path.parent.mkdir(parents=True)
    path.write_text(HEADER + rows, encoding="utf8")
    assert draw(script, tmp_path, "--tasks", "ioi") == 2
    said = capfd.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert pictures(tmp_path) == set()


def test_damaged_bands_are_refused_too(tmp_path, capfd):
    results = tables.Results(tmp_path, "small")
    fabricated.save(fabricated.curve_table(["EAP"]), results.csv("pareto", "ioi"))
    text = "edges,total_edges,stderr_EAP\n30,999,x\n40,999,0.1\n"
    results.csv("pareto", "ioi_bands").write_text(text, encoding="utf8")
    assert draw(PARETO, tmp_path, "--tasks", "ioi") == 2
    assert "column 'stderr_EAP'" in capfd.readouterr().err


def test_columns_of_texts_that_nobody_needs_are_passed_over(tmp_path):
    path = tmp_path / "ioi.csv"
    path.write_text("\ufeff,note,edges\n0,good,30\n1,,40\n", encoding="utf8")
    table = tables.read_table(path, needs=["edges"])
    assert list(table.frame) == ["edges"]
    assert table.names == ("0", "1")


@pytest.mark.parametrize("name", ["a$5$ vs $6", "cost$_{$", "$x$", r"a\b_{2}$", "_hidden", "5%"])
def test_names_are_drawn_as_they_were_typed(name, tmp_path):
    results = tables.Results(tmp_path, "small")
    fabricated.save(fabricated.curve_table(["EAP", name]), results.csv("pareto", name))
    table = tables.read_table(results.csv("pareto", name))
    figure = curves.curve_figure({name: table}, normalise=True, model="small")
    figure.savefig(tmp_path / "x.png")
    for text in (figure.axes[0].title, figure.legends[0].get_texts()[1]):
        shown, is_math = text._preprocess_math(text.get_text())
        assert not is_math
        assert shown.lstrip("\N{ZERO WIDTH SPACE}") == name

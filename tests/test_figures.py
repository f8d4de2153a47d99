"""Figure scripts on fabricated results: other people's files, missing files, broken files."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import image
from models import fabricated
from models.fabricated import GPT2_SHAPE, SMALL
from scipy import stats
from scripts import call, files_below

from eap.data.tasks import PARETO_TASKS, TASKS
from eap.errors import UserError
from eap.figures import cross_task, curves, heatmaps, report, tables
from eap.figures.circuit import draw_circuit
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


# ---- where numbers come from ---------------------------------------------------------------------

MODEL = {"name": "small", "weights_sha256": "a" * 64, "dtype": "float32"}
OTHER = {**MODEL, "weights_sha256": "b" * 64}


def signed(frame, path, *, task="ioi", model=None, pairs=7, metric="logit_diff", **settings):
    """A table with metadata, as the experiments write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {"source": "data", "tokens_sha256": f"{pairs}", "n_pairs": pairs}
    provenance = {
        "model": model or MODEL, "task": task, "data": data, "metric": metric, **settings
    }  # fmt: skip
    write_table(frame, path, provenance)
    return path


def draw(script, output, *options):
    return call(script, "--model", "small", "--output", output, *options)


PARETO = "results/pareto/plot_pareto.py"
NORMALIZED = "results/pareto/plot_pareto_normalized.py"
COMBINED = "results/real_pareto_combined/plot_real_pareto_normalized.py"


def test_two_models_of_one_name_are_not_drawn_together(tmp_path, capfd):
    results = tables.Results(tmp_path, "small")
    frame = fabricated.curve_table(["EAP"])
    signed(frame, results.csv("pareto", "ioi"))
    signed(frame, results.csv("pareto", "sva"), task="sva", model=OTHER)
    assert draw(PARETO, tmp_path) == 2
    said = capfd.readouterr().err
    assert "different models" in said
    assert "ioi.csv" in said
    assert "sva.csv" in said
    assert pictures(tmp_path) == set()


@pytest.mark.parametrize("changed", [{"pairs": 9}, {"metric": "kl"}, {"model": OTHER}])
def test_exact_curves_of_another_run_are_not_drawn_beside_estimates(changed, tmp_path, capfd):
    results = tables.Results(tmp_path, "small")
    signed(fabricated.curve_table(["EAP"]), results.csv("pareto", "ioi"))
    signed(fabricated.curve_table(["real"]), results.csv("real", "ioi"), **changed)
    assert draw(COMBINED, tmp_path, "--tasks", "ioi") == 2
    assert capfd.readouterr().err.count("\n") == 1
    signed(fabricated.curve_table(["real"]), results.csv("real", "ioi"))
    assert draw(COMBINED, tmp_path, "--tasks", "ioi") == 0


def test_axes_are_labelled_from_the_metadata(tmp_path):
    frame = fabricated.curve_table(["EAP"])
    known = tables.read_table(signed(frame, tmp_path / "ioi.csv", metric="prob_diff"))
    fabricated.save(frame, tmp_path / "other.csv")
    unknown = tables.read_table(tmp_path / "other.csv")
    figure = curves.curve_figure({"ioi": known, "sva": unknown}, normalise=False, model="small")
    assert [ax.get_ylabel() for ax in figure.axes] == [
        "probability difference",
        "metric (not recorded)",
    ]
    assert "no metadata" in figure.get_suptitle()
    figure = curves.curve_figure({"ioi": known}, normalise=True, model="small")
    assert figure.get_suptitle() == ""


def test_scores_of_another_run_are_not_compared_with_exact_ones(tmp_path, capfd):
    graph = Graph.from_config(SMALL)
    for name, pairs in (("real", 4), ("vanilla", 4), ("ig", 60)):
        provenance = {"model": MODEL, "task": "ioi", "data": {"n_pairs": pairs}}
        path = tmp_path / f"graphs/small/real_test/ioi_logit_diff_{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(graph, provenance={**provenance, "metric": "logit_diff"}).save(path)
    assert draw("results/real_rank/compare_real.py", tmp_path, "--tasks", "ioi") == 2
    assert "different data" in capfd.readouterr().err


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


# ---- heat maps -----------------------------------------------------------------------------------


def square(names, **columns):
    n = len(names)
    values = np.arange(n * n, dtype=float).reshape(n, n) / (n * n)
    return pd.DataFrame(values, index=list(names), columns=list(names)).assign(**columns)


def read_square(frame, path, *, index):
    fabricated.save(frame, path, index=index)
    return cross_task.with_rows(tables.read_table(path))


def test_rows_keep_the_names_that_the_file_gives_them(tmp_path):
    names = ["ioi", "sva", "gender-bias"]
    frame = square(names)
    turned = frame.loc[["sva", "gender-bias", "ioi"]]
    table = read_square(turned, tmp_path / "a.csv", index=True).frame
    pd.testing.assert_frame_equal(table.loc[names, names], frame)
    # Published files do not name them: they are in the order of the columns.
    for index in (False, True):
        plain = frame.reset_index(drop=True)
        table = read_square(plain, tmp_path / "b.csv", index=index).frame
        pd.testing.assert_frame_equal(table, frame)


def test_tables_are_put_into_one_order_and_what_one_lacks_is_named(tmp_path, capsys):
    frame = square(["ioi", "sva", "gender-bias"])
    first = read_square(frame, tmp_path / "a.csv", index=True)
    other = frame.loc[["sva", "ioi"], ["ioi", "sva"]].assign(baseline=2.0, corrupted_baseline=1.0)
    second = read_square(other, tmp_path / "b.csv", index=True)
    a, b = cross_task.align(first, second)
    assert list(a) == ["ioi", "sva"]
    assert list(a.index) == list(b.index) == ["ioi", "sva"]
    assert a.loc["sva", "ioi"] == b.loc["sva", "ioi"] == frame.loc["sva", "ioi"]
    out = capsys.readouterr().out
    assert "gender-bias" in out
    assert "b.csv" in out


def test_rows_of_other_tasks_than_the_columns_are_refused(tmp_path):
    frame = square(["ioi", "sva"]).set_axis(["ioi", "other"], axis="index")
    with pytest.raises(UserError, match="row 'other' that fits no column"):
        read_square(frame, tmp_path / "a.csv", index=True)


def test_panels_with_other_rows_have_their_own_names(tmp_path):
    tables_ = {
        "a": square(["ioi", "sva"]),
        "b": square(["sva", "ioi"]),
        "c": square(["ioi", "sva"]),
    }
    figure = heatmaps.heatmap_row(tables_)
    labels = [[text.get_text() for text in ax.get_yticklabels()] for ax in figure.axes[:3]]
    assert labels == [["IOI", "SVA"], ["SVA", "IOI"], []]


def test_cells_are_readable_and_have_no_negative_zero():
    values = np.array([[1.0, -0.001, np.nan], [0.45, 0.55, 0.65], [0.0, 2.0, -3.0]])
    names = ["ioi", "sva", "$a$"]
    figure = heatmaps.heatmap_row({"x": pd.DataFrame(values, index=names, columns=names)})
    image = figure.axes[0].images[0]
    texts = figure.axes[0].texts
    assert [text.get_text() for text in texts] == [
        "1.00", "0.00", "\N{EN DASH}", "0.45", "0.55", "0.65", "0.00", "2.00", "-3.00"
    ]  # fmt: skip
    for text, colour in zip(texts, image.to_rgba(image.get_array()).reshape(-1, 4), strict=True):
        ratio = contrast(colour[:3], (0, 0, 0) if text.get_color() == "black" else (1, 1, 1))
        assert ratio > 4.5


def contrast(a, b):
    def light(colour):
        c = np.asarray(colour, dtype=float)
        c = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        return float(c @ (0.2126, 0.7152, 0.0722)) + 0.05

    return max(light(a), light(b)) / min(light(a), light(b))


def test_probabilities_have_a_logarithmic_scale():
    values = pd.DataFrame([[0.0, 1e-30], [1e-4, 1.0]], index=["ioi", "sva"], columns=["ioi", "sva"])
    figure = heatmaps.heatmap_figure(values, title="p", probabilities=True)
    image = figure.axes[0].images[0]
    places = [float(image.norm(p)) for p in (1e-10, 1e-5, 1.0)]
    assert places == pytest.approx([0, 0.5, 1])
    assert [text.get_text() for text in figure.axes[0].texts] == ["<1e-10", "<1e-10", "1e-4", "1e0"]


def test_p_values_of_overlap_do_not_take_dependent_cells_for_independent_ones():
    """Unrelated tables whose rows and columns have effects: 5% are below 0.05, not 18%."""
    generator = np.random.default_rng(0)
    ps, naive = [], []
    for _ in range(200):
        a, b = (generator.normal(size=(8, 8)) * 0.3 for _ in range(2))
        a = a + np.add.outer(*[generator.normal(size=8)] * 2)
        b = b + np.add.outer(generator.normal(size=8), generator.normal(size=8))
        ps.append(cross_task.mantel_p(a + a.T, b, n_permutations=199))
        off = ~np.eye(8, dtype=bool)
        naive.append(stats.pearsonr((a + a.T)[off], b[off]).pvalue)
    assert np.mean(np.less_equal(ps, 0.05)) < 0.1
    assert np.mean(np.less_equal(naive, 0.05)) > 0.15
    related = a + a.T
    assert cross_task.mantel_p(related, related + 0.1 * b) == pytest.approx(1 / 5000, abs=3e-4)
    assert np.isnan(cross_task.mantel_p(np.ones((8, 8)), b))


# ---- files ---------------------------------------------------------------------------------------


def whole(figure, path):
    """Whether nothing of a figure touches its edge when it is saved as it is."""
    figure.savefig(path)
    picture = image.imread(path)[..., :3]
    edge = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    return picture.std() > 0.02 and bool((edge > 0.99).all())


@pytest.mark.parametrize("n", [8, 60, 300])
def test_a_circuit_is_saved_whole_with_no_style_set(n, tmp_path):
    graph = replace(
        Graph.from_config(SMALL),
        scores=torch.randn(37, 101, generator=torch.Generator().manual_seed(0)),
    )
    circuit = graph.greedy(n).prune()
    before = dict(plt.rcParams)
    for title in (
        "",
        "IOI",
        "a title $ that is longer than the picture of the circuit is wide " * 2,
    ):
        assert whole(draw_circuit(circuit, title=title), tmp_path / "x.png")
    assert dict(plt.rcParams) == before
    plt.close("all")


def test_lines_of_a_circuit_go_around_the_boxes_between_their_ends():
    shape = GraphConfig(n_layers=6, n_heads=4, d_model=16, n_kv_heads=4)
    for seed in range(3):
        random = torch.Generator().manual_seed(seed)
        graph = Graph.from_config(shape)
        graph = replace(graph, scores=torch.randn(graph.scores.shape, generator=random) ** 3)
        circuit = graph.greedy(40).prune()
        figure = draw_circuit(circuit, selection="40 edges")
        (ax,) = figure.axes
        boxes = np.array([patch.get_bbox().extents for patch in ax.patches])
        lines = [line.get_xydata()[1:-1] for line in ax.lines if len(line.get_xdata()) > 2]
        assert len(lines) == circuit.count_edges()
        x, y = (np.concatenate(lines)[:, axis, None] for axis in (0, 1))
        left, bottom, right, top = boxes.T
        inside = (x > left) & (x < right) & (y > bottom) & (y < top)
        assert inside.sum() == 0
        # What the picture shows is said, and where lines into a head end.
        assert "method not recorded; metric not recorded; 40 edges; widest line" in " ".join(
            ax.get_title().split()
        )
        heads = [name for name in circuit.nodes_in_graph() if name.startswith("a")]
        letters = [text.get_text() for text in ax.texts]
        assert all(letters.count(kind) == len(heads) for kind in "qkv")
    plt.close("all")


def test_other_figures_are_saved_whole_too(tmp_path):
    plt.rcParams["figure.constrained_layout.use"] = False
    path = tmp_path / "ioi.csv"
    fabricated.save(fabricated.curve_table(["EAP", "EAP-IG"]), path)
    table = tables.read_table(path)
    made = [
        curves.curve_figure({"ioi": table, "sva": table}, normalise=True, model="small"),
        heatmaps.heatmap_row({"a": square(TASKS), "b": square(list(TASKS)[::-1])}),
        heatmaps.heatmap_figure(square(TASKS), title="IoU"),
    ]
    for figure in made:
        assert whole(figure, tmp_path / "x.png")
    plt.close("all")


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


def test_figure_6_is_drawn_from_its_table_alone(tmp_path, capfd):
    values = {
        f"{method}_{kind}_{what}": [0.5, 0.6]
        for method in ("EAP", "EAP-IG")
        for kind in ("node", "edge")
        for what in ("precision", "recall")
    }
    path = tables.Results(tmp_path, "small").csv("manual_overlap", "ioi_node_edge_precision_recall")
    script = "results/manual_overlap/ioi_overlap.py"
    assert draw(script, tmp_path) == 2
    assert "python pareto.py --model small --task ioi" in capfd.readouterr().err
    fabricated.save(pd.DataFrame({"edges": [1, 2], **values}), path)
    before = path.read_bytes()
    assert draw(script, tmp_path) == 0
    assert pictures(tmp_path) == {"ioi_precision_recall"}
    assert path.read_bytes() == before


def test_steps_are_normalised_by_a_baseline_of_the_same_metric_only(tmp_path, capfd):
    results = tables.Results(tmp_path, "small")
    script = "results/ig_test/plot_ig_test.py"
    fabricated.fabricate_ig_test(tmp_path, "small", ["ioi"])
    path = results.csv("ig_test", "ioi_logit_diff_ig_test")
    frame = pd.read_csv(path).drop(columns="corrupted_baseline")
    for metric in ("logit_diff", "prob_diff"):
        fabricated.save(frame, results.csv("ig_test", f"ioi_{metric}_ig_test"))
    options = ("--tasks", "ioi", "--eval_metric")
    assert draw(script, tmp_path, *options, "logit_diff") == 2
    assert "pareto.py --model small --task ioi --metric logit_diff" in capfd.readouterr().err
    signed(fabricated.curve_table(["EAP"]), results.csv("pareto", "ioi"))
    assert draw(script, tmp_path, *options, "logit_diff") == 0
    assert draw(script, tmp_path, *options, "prob_diff") == 2
    assert "another metric" in capfd.readouterr().err


def test_sizes_that_crowd_have_a_logarithmic_axis_unless_a_linear_one_is_asked_for():
    crowded = fabricated.curve_table(["EAP"])
    even = fabricated.curve_table(["EAP"], sizes=[*range(100, 2000, 100)])
    empty = crowded.assign(edges_EAP=[0, 0, *crowded["edges_EAP"][2:]])
    for frame, linear, scale in (
        (crowded, False, "log"), (crowded, True, "linear"), (even, False, "linear"),
        (empty, False, "symlog"),
    ):  # fmt: skip
        _, ax = plt.subplots()
        curves.draw_curves(ax, frame, linear=linear)
        assert ax.get_xscale() == scale
    plt.close("all")


# ---- the paper's numbers -------------------------------------------------------------------------


def test_another_metric_than_the_papers_is_not_compared(tmp_path, capfd):
    results = tables.Results(tmp_path, "small")
    frame = fabricated.curve_table(["EAP", "EAP-IG", "EAP-IG-KL"])
    signed(frame, results.csv("pareto", "ioi"), metric="prob_diff")
    assert draw(NORMALIZED, tmp_path, "--compare-paper", "--tasks", "ioi") == 2
    assert "probability difference beside the paper's logit difference" in capfd.readouterr().err
    signed(frame, results.csv("pareto", "sva"), task="sva", metric="prob_diff")
    assert draw(NORMALIZED, tmp_path, "--compare-paper", "--tasks", "ioi", "sva") == 0
    out = capfd.readouterr().out
    assert "ioi is not compared" in out
    assert "sva: The published file counts the verbs of another list" in out
    assert "real-KL and EAP-IG are swapped" in out


def test_agreement_by_another_metric_is_not_compared(tmp_path, capfd):
    """Tables of agreement say which scores were compared, of all tasks."""
    results = tables.Results(tmp_path, "small")
    for task, metric in (("ioi", "kl"), ("gender-bias", "logit_diff")):
        path = tmp_path / "graphs/small/real_test"
        for seed, name in enumerate(("real", "vanilla", "ig")):
            scores = torch.randn(37, 101, generator=torch.Generator().manual_seed(seed))
            provenance = {"model": MODEL, "task": task, "data": {"n_pairs": 4}, "metric": metric}
            graph = replace(Graph.from_config(SMALL), scores=scores, provenance=provenance)
            path.mkdir(parents=True, exist_ok=True)
            graph.save(path / f"{task}_logit_diff_{name}.json")
        fabricated.save(fabricated.curve_table(["EAP"]), results.csv("pareto", task))
    assert draw("results/real_rank/compare_real.py", tmp_path, "--tasks", "ioi", "gender-bias") == 0
    table = tables.read_table(results.csv("real_rank", "all-overlap"))
    assert {task: of["metric"] for task, of in table.metadata["tasks"].items()} == {
        "ioi": "kl",
        "gender-bias": "logit_diff",
    }
    assert draw(NORMALIZED, tmp_path, "--compare-paper") == 0
    out = capfd.readouterr().out
    assert "agreement on ioi is not compared" in out
    assert "pearson, EAP" in out
    assert not [line for line in out.splitlines() if line.split()[:2] == ["ioi", "pearson,"]]


# ---- the page ------------------------------------------------------------------------------------


def test_the_page_escapes_names_and_survives_damaged_files(tmp_path):
    results = tables.Results(tmp_path, "small")
    frame = fabricated.curve_table(["EAP", "<b>method</b>"])
    signed(frame, results.csv("pareto", "my<task>"), task="my<task>", command="pareto.py <x>")
    bands = fabricated.bands_table(frame, total_edges=999).assign(stderr_share_EAP=0.0123)
    signed(bands, results.csv("pareto", "my<task>_bands"), task="my<task>")
    picture = results.folder("pareto") / "png" / "pareto.png"
    picture.parent.mkdir()
    picture.write_bytes(b"a picture")
    results.csv("pareto", "ioi").write_bytes(b"\xff\xfe\x00")
    results.csv("pareto", "sva").write_text("edges\n1\n2", encoding="utf8")
    hidden = results.folder("pareto") / "csv" / ".ioi-tmp.csv"
    hidden.write_bytes(b"")
    for damaged in ("", "[]", '{"dc:provenance": {"data": 1, "model": []}}'):
        path = results.csv("pareto", "sva_bands")
        path.with_name(f"{path.name}-metadata.json").write_text(damaged, encoding="utf8")
        page = report.render(results)
    assert "&lt;b&gt;method" in page
    assert "<b>" not in page
    assert "my<task>" not in page
    assert "ioi.csv is not a CSV" in page
    assert ".ioi-tmp" not in page
    assert " ± 0.012" in page
    assert "python pareto.py &lt;x&gt;" in page
    assert "weights_sha256" in page
    assert "7 pairs" in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_a_page_of_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match="no figures of small yet"):
        report.render(tables.Results(tmp_path, "small"))

"""Pictures and the page: whole, complete, escaped."""

from __future__ import annotations

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from drawing import draw, pictures, signed, square
from matplotlib import image
from models import fabricated
from models.fabricated import SMALL

from eap.data.tasks import TASKS
from eap.figures import curves, heatmaps, report, tables
from eap.figures.circuit import draw_circuit
from eap.graph.graph import Graph, GraphConfig
from eap.runtime.errors import UserError


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


def test_all_panels_of_a_figure_have_one_kind_of_axis_of_sizes_and_say_which(tmp_path):
    crowded = fabricated.curve_table(["EAP"])
    even = fabricated.curve_table(["EAP"], sizes=[*range(100, 2000, 100)])
    found = {}
    for task, frame in (("ioi", crowded), ("sva", even)):
        fabricated.save(frame, tmp_path / f"{task}.csv")
        found[task] = tables.read_table(tmp_path / f"{task}.csv")
    for linear in (False, True):
        figure = curves.curve_figure(found, normalise=True, model="gpt2", linear=linear)
        kinds = {ax.get_xscale() for ax in figure.axes}
        labels = {"log scale" in ax.get_xlabel() for ax in figure.axes}
        assert len(kinds) == 1
        assert labels == {kinds != {"linear"}}
    plt.close("all")


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
    assert " ± 0.024" in page  # 1.96 standard errors
    assert "python pareto.py &lt;x&gt;" in page
    assert "weights_sha256" in page
    assert "7 pairs" in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_a_page_of_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match="no figures of small yet"):
        report.render(tables.Results(tmp_path, "small"))

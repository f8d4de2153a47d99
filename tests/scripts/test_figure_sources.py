"""Numbers that are not comparable are not drawn together."""

from __future__ import annotations

from dataclasses import replace

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from drawing import COMBINED, MODEL, NORMALIZED, OTHER, PARETO, draw, pictures, signed
from models import fabricated
from models.fabricated import SMALL

from eap.figures import bars, curves, style, tables
from eap.graph.graph import Graph
from eap.methods import METHODS
from eap.studies.provenance import write_table
from eap.studies.settings import file_suffix


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


def several(pairs: int, *, tasks=("ioi", "sva"), **more):
    """Provenance of a table of several tasks, on so many pairs of each."""
    data = {"source": "data", "tokens_sha256": f"{pairs}", "n_pairs": pairs}
    return {
        "model": MODEL,
        "tasks": {task: {"data": data, "metric": "logit_diff", **more} for task in tasks},
        "method": "any",
    }


SEVERAL = {
    "results/cross-task/make_all_heatmaps.py": "jaccard/{model}/csv/edge_ious",
    "results/cross-task/recall_heatmaps.py": "jaccard/{model}/csv/edge_overlap",
    "results/real_rank/node_edge_overlap_plot.py": "real_rank/{model}/csv/edge-overlap",
}


@pytest.mark.parametrize("script", SEVERAL)
@pytest.mark.parametrize(
    ("other", "says"),
    [
        (several(4), "ioi: made on different data: 100 pairs"),
        (several(4, tasks=("sva",)), "sva: made on different data"),
        (several(100) | {"model": OTHER}, "different models"),
        (several(100) | {"expanded_kv": True}, "counts of edges"),
        (several(100, tasks=("gender-bias",)), None),
        (several(100), None),
    ],
)
def test_tables_of_several_tasks_are_compared_task_by_task(script, other, says, tmp_path, capfd):
    fabricated.fabricate_cross_task(tmp_path, "small", ["ioi", "sva"])
    fabricated.fabricate_real_rank(tmp_path, "small", ["ioi", "sva"])
    odd = tmp_path / "results" / f"{SEVERAL[script].format(model='small')}.csv"
    for path in tmp_path.rglob("*.csv"):
        index = path.parent.parent.parent.name != "real_rank"
        frame = pd.read_csv(path, index_col=0 if index else None)
        write_table(frame, path, other if path == odd else several(100), index=index)
    tasks = ("--tasks", "ioi", "sva")
    assert draw(script, tmp_path, *tasks) == (0 if says is None else 2)
    said = capfd.readouterr().err
    if says is not None:
        assert says in said
        assert said.count("\n") == 1
        assert pictures(tmp_path) == set()


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


# ---- the paper's numbers -------------------------------------------------------------------------


def test_another_metric_than_the_papers_is_not_compared(tmp_path, capfd):
    results = tables.Results(tmp_path, "small")
    frame = fabricated.curve_table(["EAP", "EAP-IG", "EAP-IG-KL"])
    signed(frame, results.csv("pareto", "ioi"), metric="prob_diff")
    assert draw(NORMALIZED, tmp_path, "--compare-paper", "--tasks", "ioi") == 2
    assert "probability difference, the paper by logit difference" in capfd.readouterr().err
    signed(frame, results.csv("pareto", "sva"), task="sva", metric="prob_diff")
    assert draw(NORMALIZED, tmp_path, "--compare-paper", "--tasks", "ioi", "sva") == 0
    out = capfd.readouterr().out
    assert "ioi is not compared" in out
    assert "sva: The published file counts the verbs of another list" in out
    assert "real-KL and EAP-IG are swapped" in out


@pytest.fixture
def figures(monkeypatch):
    """Figures by name, as they are saved."""
    saved = {}
    save = style.save_figure

    def keep(figure, folder, name, **options):
        saved[name] = figure
        return save(figure, folder, name, **options)

    monkeypatch.setattr(style, "save_figure", keep)
    return saved


def labels(ax) -> list[str]:
    return ax.get_legend_handles_labels()[1]


def test_every_method_of_the_comparison_has_a_bar():
    keys = ["vanilla", "ig", *(file_suffix(name) for name in METHODS)]
    axes = plt.figure().subplots()
    bars.draw_method_bars(
        axes, {f"ioi_{key}_kendall": 0.5 for key in keys}, ["ioi"], suffix="_kendall"
    )
    assert set(labels(axes)) == {style.method_look(name)[0] for name in METHODS}
    plt.close()


def test_more_numbers_of_steps_than_markers_are_all_drawn(tmp_path, figures):
    fabricated.fabricate_ig_test(tmp_path, "small", ["ioi"])
    path = tables.Results(tmp_path, "small").csv("ig_test", "ioi_logit_diff_ig_test")
    frame = pd.read_csv(path)
    steps = range(60, 75)
    for number in steps:
        frame[f"results_{number}"] = frame["results_5"]
    fabricated.save(frame, path)
    assert draw("results/ig_test/plot_ig_test.py", tmp_path, "--tasks", "ioi") == 0
    drawn = set(labels(figures["ig_test"].axes[0]))
    assert drawn >= {"EAP", "5 steps", *(f"{number} steps" for number in steps)}


def test_agreement_by_another_metric_is_not_compared(tmp_path, capfd, figures):
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
    # Figure 8 names the metric that was compared, and the claims leave the task out.
    names = ("--tasks", "ioi", "gender-bias")
    assert draw("results/real_rank/plot_kendall.py", tmp_path, *names) == 0
    axes = figures["kendall_difference"].axes
    assert [ax.get_ylabel() for ax in axes[:2]] == list(
        map(style.metric_name, ("kl", "logit_diff"))
    )
    assert draw("results/claims/claims.py", tmp_path, *names) == 0
    assert "left out of the agreement with exact values, as by other metrics: ioi" in (
        capfd.readouterr().out
    )

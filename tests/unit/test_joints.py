"""What one module writes and another reads: every test is one such pair, from writer to reader.

| what | written by | read by |
|---|---|---|
| direction of a metric | `Metric`, `from_sequence_metric` | graphs, their files, `leave_one_out` |
| direction against the data | clean and ablated runs | warnings of the verbs |
| `expanded_kv` | `attribute` | `faithfulness`, `judge`, `leave_one_out`, `areas`, `comparable` |
| a method without a metric | provenance of a graph | `areas`' selection |
| nodes of a circuit | `Graph.in_graph` | counts, networks, JSON, `.pt`, overlaps, pages |
| the end of a path | `Ablation.embedding` | completeness, `steps="auto"` |
| sizes and faithfulness | tables of `pareto.py` | pictures and pages of a circuit |

Joints that other files test, beside what they join:

| what | written by | read by | in |
|---|---|---|---|
| tasks that are done, variants | cross-task tables, `Task` | claims, maps | `test_claims.py` |
| level of an interval | `statistics.intervals` | tables, bands, claims | `test_coverage.py` |
| rows and columns of square tables | `overlap_heatmaps.py` | maps | `test_heatmaps.py` |
| identity of model, data, code | `sign`, `save_csv` | `comparable`, reuse | `test_provenance.py` |
| spans | `load_dataset(spans=...)` | graphs, their files, verbs | `test_span_graphs.py` |
| weights of the model | `load_model` | every verb, means | `test_given_models.py` |
| memory that observers take | `n_bytes` | plan of an attribution | `test_memory.py` |
"""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from models.graphs import graphs
from models.tiny import random_examples
from reference import twins
from reference.twins import dataset_of

import eap
from eap import Graph, GraphConfig, UserError
from eap.analysis import compare, verdicts
from eap.analysis.rankings import default_selection
from eap.figures.circuit import draw_circuit
from eap.figures.measured import Measured, read_measured, read_measured_beside, smallest_faithful
from eap.figures.tables import Results
from eap.figures.viewer import write_page
from eap.metrics.metric import METRICS
from eap.studies.provenance import comparable, save_csv

EXAMPLES = random_examples([5, 4, 6, 5], [2, 1, 0, 2], seed=3)
DATASET = dataset_of(EXAMPLES)


def loss(logits, clean_logits, answers):
    return -METRICS["logit_diff"].function(logits, clean_logits, answers)


# ---- direction -----------------------------------------------------------------------------------


def test_the_direction_of_ones_own_metric_is_asked_where_it_changes_a_result():
    model, unknown = twins.load("llama"), eap.Metric("loss", loss)
    graph = eap.attribute(model, DATASET, metric=unknown, method="EAP")
    assert graph.higher_is_better is None
    assert eap.evaluate(model, graph.top_n(9), DATASET, metrics=[unknown])["loss"].shape == (4,)
    sequence = eap.from_sequence_metric("loss", lambda *given: given[0][:, -1, 0], [0] * 4)
    assert sequence.higher_is_better is None
    for asks in (
        lambda: graph.top_n(9, by="helpful"),
        lambda: eap.mean_of([graph, graph]),
        lambda: eap.areas(model, graph, DATASET, metric=unknown),
        lambda: eap.areas(model, graph, DATASET, metric="logit_diff"),
        lambda: eap.learn_ranking(model, DATASET, metric=unknown),
        lambda: eap.find_clusters(model, DATASET, metric=unknown),
    ):
        with pytest.raises(UserError, match="higher_is_better"):
            asks()
    for wrong in (1, "no", np.nan):
        with pytest.raises(UserError, match="higher_is_better is True"):
            eap.Metric("loss", loss, higher_is_better=wrong)


def test_a_metric_and_the_loss_it_is_have_the_same_helpful_edges(tmp_path):
    model = twins.load("llama")
    gain = eap.attribute(model, DATASET, metric="logit_diff", method="EAP")
    negated = eap.Metric("loss", loss, higher_is_better=False)
    lost = eap.attribute(model, DATASET, metric=negated, method="EAP")
    assert (gain.higher_is_better, lost.higher_is_better) == (True, False)
    assert torch.allclose(lost.scores, -gain.scores, atol=1e-6)
    best = set(gain.top_n(10, by="helpful").edge_names())
    assert set(lost.top_n(10, by="helpful").edge_names()) == best
    for suffix in ("json", "safetensors"):
        lost.save(tmp_path / f"loss.{suffix}")
        read = Graph.load(tmp_path / f"loss.{suffix}")
        assert set(read.top_n(10, by="helpful").edge_names()) == best
    circuit = lost.greedy(30).prune()
    assert verdicts.leave_one_out(model, circuit, DATASET, metric=negated).higher_is_better is False


@pytest.mark.parametrize("verb", ["attribute", "node", "faithfulness", "judge", "areas"])
def test_verbs_say_when_the_clean_model_is_not_on_the_better_side(verb):
    model = twins.load("llama")
    clean, ablated = (v["logit_diff"].mean() for v in eap.evaluate_baselines(model, DATASET))
    right, wrong = (
        eap.Metric("mine", METRICS["logit_diff"].function, higher_is_better=bool(better))
        for better in (clean > ablated, clean <= ablated)
    )
    graph = eap.attribute(model, DATASET, method="EAP", metric=right)
    assert graph.greedy(15).prune().count_edges()
    calls = {
        "attribute": lambda metric: eap.attribute(model, DATASET, metric=metric),
        "node": lambda metric: eap.attribute(
            model, DATASET, metric=metric, method="AtP*-GradDrop", level="node"
        ),
        "faithfulness": lambda metric: eap.faithfulness(model, graph, DATASET, metric=metric),
        "judge": lambda metric: eap.judge(
            model, graph.greedy(15), DATASET, metric=metric, n_random=19, n_subsets=1
        ),
        "areas": lambda metric: eap.areas(model, graph, DATASET, metric=metric, n_resamples=10),
    }
    with pytest.warns(UserWarning, match="by mine, the clean model .* is not better"):
        calls[verb](wrong)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calls[verb](right)


# ---- the form of shared keys and values ----------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("expanded", [False, True])
def test_results_of_a_graph_say_how_it_counts_keys_and_values(family, expanded):
    model = twins.load(family)
    graph = eap.attribute(model, DATASET, method="EAP", expanded_kv=expanded)
    circuit = graph.greedy(15).prune()
    results = {
        "graph": graph,
        "faithfulness": eap.faithfulness(model, circuit, DATASET),
        "judge": eap.judge(model, circuit, DATASET, n_random=19, n_subsets=1),
        "leave_one_out": verdicts.leave_one_out(model, circuit, DATASET),
        "areas": eap.areas(model, graph, DATASET, n_resamples=10),
    }
    said = {name: found.provenance["expanded_kv"] for name, found in results.items()}
    assert said == dict.fromkeys(results, expanded)
    if family == "llama":  # published files know no shared heads: one k and v a head
        form = replace(graph.config, n_kv_heads=graph.config.n_heads, expanded_kv=False)
        if expanded:
            published = replace(graph, config=form)
            found = eap.faithfulness(model, published, DATASET)
            assert found.provenance["expanded_kv"] is True


def test_the_two_forms_are_not_compared():
    model = twins.load("llama")
    values = [
        eap.faithfulness(
            model, eap.attribute(model, DATASET, method="EAP", expanded_kv=expanded), DATASET
        ).provenance
        for expanded in (False, True)
    ]
    assert comparable(*values) is not None
    assert comparable(values[0], values[0]) is None


# ---- a method without a metric -------------------------------------------------------------------


def test_areas_of_a_method_without_a_metric_are_of_greedy_circuits():
    model = twins.load("llama")
    flow = eap.attribute(model, DATASET, method="IFR")
    estimate = eap.attribute(model, DATASET, method="EAP")
    assert default_selection(flow) == "greedy"
    assert default_selection(estimate) == default_selection(flow, "node") == "top_n"
    assert default_selection(Graph.from_config(flow.config)) == "top_n"
    shares = (0.2, 0.5, 1.0)
    found, greedy = (
        eap.areas(model, flow, DATASET, shares=shares, n_resamples=10, **options)
        for options in ({}, {"selection": "greedy"})
    )
    assert np.array_equal(found.helpful.values, greedy.helpful.values)
    assert found.provenance["settings"]["selection"] == "greedy"
    assert " ".join(map(str, found.helpful.n_edges)) in str(found)


# ---- nodes ---------------------------------------------------------------------------------------


@given(graphs())
def test_all_who_read_a_circuits_nodes_find_those_that_send(graph):
    circuit = graph.prune()
    sending = {name.partition("->")[0] for name in circuit.edge_names()}
    expected = sending | ({"logits"} if sending else set())
    assert circuit.nodes_in_graph() == set(circuit.to_networkx()) == expected
    assert set(circuit.to_frame(in_graph_only=True)["sender"]) == sending
    assert compare.nodes(circuit).tolist() == [n in sending for n in circuit.sender_names[1:]]
    assert compare.node_overlap(circuit, circuit).n_first == len(sending - {"input"})


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_files_and_pages_have_the_nodes_that_send(tmp_path, n_kv_heads):
    graph = Graph.from_config(GraphConfig(4, 4, 8, n_kv_heads))
    random = torch.Generator().manual_seed(n_kv_heads)
    graph = replace(graph, scores=torch.randn(graph.scores.shape, generator=random))
    circuit = graph.greedy(25).prune()
    expected = circuit.nodes_in_graph()
    circuit.save(tmp_path / "c.json")
    document = json.loads((tmp_path / "c.json").read_text())
    assert {name for name, node in document["nodes"].items() if node["in_graph"]} == expected
    places = draw_circuit(circuit).axes[0].texts
    assert {t.get_text() for t in places} - {"q", "k", "v"} == expected
    network = circuit.to_networkx()
    lines = [x for x in draw_circuit(circuit).axes[0].lines if len(x.get_xdata()) > 2]
    assert len(lines) == network.number_of_edges()


# ---- the end of the path -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "kind"),
    [("gpt2", "resample"), ("gpt2", "mean"), ("gpt2", "zero"), ("llama", "mean")],
)
def test_completeness_is_against_the_run_at_the_ablated_input(family, kind):
    model = twins.load(family)
    ablation = eap.Mean.over_dataset(model, DATASET) if kind == "mean" else kind
    graph = eap.attribute(model, DATASET, ablation=ablation, steps=100, rule="gauss-legendre")
    assert abs(graph.provenance["completeness"]["relative_error"]) < 0.01
    auto = eap.attribute(model, DATASET, ablation=ablation, steps="auto", rule="gauss-legendre")
    assert auto.provenance["settings"]["steps"] < 300


def test_a_path_along_which_only_the_scale_changes_is_warned_of():
    for family, warned in (("llama", True), ("gpt2", False)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            eap.attribute(twins.load(family), DATASET, ablation="zero", steps=2)
            eap.attribute(twins.load("llama"), DATASET, ablation="zero", method="EAP")
        assert any("give ablation='resample'" in str(w.message) for w in caught) == warned


@pytest.mark.parametrize("method", ["EAP", "EAP-IG", "CEAP", "EAP-IG-activations", "RelP"])
def test_a_pair_of_equal_prompts_has_no_score_at_all(method):
    same = replace(EXAMPLES[0], corrupted=EXAMPLES[0].clean)
    for family in ("llama", "gpt2"):
        model = twins.load(family)
        found = eap.attribute(model, dataset_of([same]), method=method)
        assert not found.scores.any()
        # Beside others it changes nothing but their number.
        alone = eap.attribute(model, dataset_of([EXAMPLES[0]]), method=method)
        both = eap.attribute(model, dataset_of([EXAMPLES[0], same]), method=method)
        assert torch.allclose(2 * both.scores, alone.scores, atol=1e-5)


@pytest.mark.parametrize("batch_size", [None, 1, 2])
def test_a_mean_per_position_is_refused_whatever_the_batch(batch_size):
    model = twins.load("gpt2")
    of_six = dataset_of(random_examples([6, 6], [2, 2]))
    mean = eap.Mean.over_dataset(model, of_six, per_position=True)
    mixed = dataset_of([EXAMPLES[2], EXAMPLES[1]])
    for verb in (eap.attribute, eap.evaluate_baselines):
        with pytest.raises(UserError, match="this mean has 6 positions, and a prompt has 4"):
            verb(model, mixed, ablation=mean, batch_size=batch_size)


# ---- sizes and faithfulness ----------------------------------------------------------------------


def measured_results(tmp_path, *, sizes=(10, 40, 80)):
    """A graph, and the table of its curve, as pareto.py leaves them."""
    graph = Graph.from_config(GraphConfig(3, 4, 8, 2))
    random = torch.Generator().manual_seed(0)
    graph = replace(graph, scores=torch.randn(graph.scores.shape, generator=random))
    results = Results(tmp_path, "small")
    path = tmp_path / "graphs" / "small" / "ioi_task.json"
    path.parent.mkdir(parents=True)
    graph.save(path)
    frame = pd.DataFrame({"baseline": 3.0, "corrupted_baseline": -1.0, "edges": sizes})
    frame["edges_EAP-IG"] = [graph.greedy(n).prune().count_edges() for n in sizes]
    frame["loss_EAP-IG"] = [-1 + 4 * share for share in (0.3, 0.82, 0.95)]
    save_csv(frame, results.csv("pareto", "ioi"), None)
    bands = pd.DataFrame({"edges": sizes, "stderr_share_EAP-IG": [0.01, 0.02, 0.03]})
    save_csv(bands, results.csv("pareto", "ioi_bands"), None)
    return results, path, graph


def test_pictures_and_pages_say_what_the_table_measured(tmp_path):
    results, path, graph = measured_results(tmp_path)
    circuits = read_measured(results, "ioi_task", graph)
    assert circuits == read_measured_beside(path, graph)
    assert smallest_faithful(circuits, 0.8) == 40
    assert smallest_faithful(circuits, 0.96) is None
    circuit = graph.greedy(40).prune()
    assert circuits[40] == Measured(circuit.count_edges(), pytest.approx(0.82), 0.02)
    figure = draw_circuit(circuit, faithfulness=(circuits[40].value, circuits[40].error))
    line = " ".join(figure.axes[0].get_title().split())
    assert line.startswith(f"{circuit.count_edges()} of {graph.n_edges} edges; faithfulness 0.820 ")
    assert "± 0.020 (standard error)" in line
    assert "not measured" not in line
    poor = draw_circuit(graph.greedy(10).prune(), faithfulness=(0.3, 0.01))
    assert "does not do the task alone" in " ".join(poor.axes[0].get_title().split())
    curve = {circuit.n_edges: (circuit.value, circuit.error) for circuit in circuits.values()}
    page = write_page(graph, tmp_path / "page.html", curve=curve).read_text()
    content = json.loads(re.search(r'id="content">(.*?)</script>', page, re.DOTALL)[1])
    assert [circuit.count_edges(), 0.82, 0.02] in content["curve"]


def test_a_curve_of_other_scores_says_nothing_of_a_graph(tmp_path, capsys):
    results, _, graph = measured_results(tmp_path)
    other = replace(graph, scores=graph.scores.flip(0) * graph.edge_exists)
    assert read_measured(results, "ioi_task", other) == {}
    assert "measured on other scores" in capsys.readouterr().out
    assert read_measured(results, "sva_task", graph) == {}
    assert read_measured(results, "ioi_kl", graph) == {}

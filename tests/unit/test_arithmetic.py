"""Means of graphs: one direction, one kind of score, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models.graphs import SMALL
from reference import twins

import eap
from eap.data.collections import known_circuits
from eap.statistics.measures import auroc

EXAMPLES = twins.RAGGED


def random_graph(seed: int = 0) -> eap.Graph:
    graph = eap.Graph.from_config(SMALL)
    scores = torch.randn(graph.scores.shape, generator=torch.Generator().manual_seed(seed))
    return replace(graph, scores=scores * graph.edge_exists)


def test_each_graph_is_scaled_to_unit_mean_magnitude_unless_raw_scores_are_asked_for():
    model, data = twins.load("gpt2"), twins.dataset_of(EXAMPLES)
    parts = [eap.attribute(model, data, method=m, metric="logit_diff") for m in ("EAP", "RelP")]
    exists = parts[0].edge_exists
    expected = sum(g.scores / g.scores[exists].abs().mean() for g in parts) / 2
    twins.assert_close(eap.mean_of(parts).scores, expected, 1e-6)
    raw = eap.mean_of(parts, scaled=False)
    twins.assert_close(raw.scores, (parts[0].scores + parts[1].scores) / 2, 1e-6)
    assert raw.provenance["method"] == "mean (raw) of EAP + RelP"
    assert raw.provenance["metric"] == "logit_diff"


def test_metrics_of_opposite_directions_are_turned_to_one():
    up = replace(random_graph(seed=0), higher_is_better=True)
    down = replace(up, scores=-up.scores, higher_is_better=False)
    for graphs in ((up, down), (down, up)):
        mean = eap.mean_of(graphs)
        assert mean.higher_is_better == graphs[0].higher_is_better
        assert mean.top_n(9, by="helpful").edge_names() == up.top_n(9, by="helpful").edge_names()


def test_the_provenance_of_a_mean_does_not_depend_on_the_order():
    model = {"name": "x", "directory": "/a", "weights_sha256": "1"}
    known = {"method": "EAP", "ablation": "mean", "level": "edge", "model": model}
    parts = [
        replace(random_graph(), higher_is_better=True, provenance=provenance)
        for provenance in ({"read_from": "a file"}, known)
    ]
    one, other = (eap.mean_of(order).provenance for order in (parts, parts[::-1]))
    assert set(one) == set(other) == {"read_from", "settings", *known}
    assert one["model"] == other["model"] == model
    assert one["ablation"] == other["ablation"][::-1] == [None, "mean"]
    unknown = [replace(part, provenance={"model": None}) for part in parts]
    assert eap.mean_of(unknown).provenance["model"] is None


def test_the_same_weights_in_another_folder_are_the_same_model():
    places = [{"name": name, "directory": name, "weights_sha256": "1"} for name in ("x", "y")]
    places.append({"name": "x", "directory": "x", "weights_sha256": "2"})
    graphs = [
        replace(random_graph(), higher_is_better=True, provenance={"model": model})
        for model in places
    ]
    assert eap.mean_of(graphs[:2]).provenance["model"] == places[0]
    with pytest.raises(eap.UserError, match="different models"):
        eap.mean_of(graphs[1:])


def test_graphs_of_files_that_do_not_know_the_models_width_have_a_mean(tmp_path):
    """The paper's files have no d_model; circuits and comparisons do not ask for it either."""
    graph = eap.Graph.from_config(SMALL)
    scores = torch.ones_like(graph.scores) * graph.edge_exists
    graph = replace(graph, scores=scores, higher_is_better=True)
    graph.save(tmp_path / "g.json", schema="paper")
    loaded = replace(eap.Graph.load(tmp_path / "g.json"), higher_is_better=True)
    assert loaded.config != graph.config
    exists = graph.edge_exists
    assert eap.mean_of([graph, loaded]).scores[exists].equal(graph.scores[exists])


def test_means_of_nodes_are_means_of_nodes():
    model, data = twins.load("llama"), twins.dataset_of(EXAMPLES)
    parts = [eap.attribute(model, data, method=m, level="node") for m in ("EAP", "EAP-IG")]
    mean = eap.mean_of(parts, scaled=False)
    twins.assert_close(mean.node_scores, (parts[0].node_scores + parts[1].node_scores) / 2, 1e-6)


@pytest.mark.parametrize("importance", ["IFR", "AtP*-GradDrop"])
@pytest.mark.parametrize("first", [0, 1])
def test_importances_beside_signed_scores_are_refused(importance, first):
    known = known_circuits.load("majority")
    graphs = [
        eap.attribute(known.model, known.dataset, method=method) for method in ("EAP", importance)
    ]
    pair = [graphs[first], graphs[1 - first]]
    with pytest.raises(eap.UserError, match=r"gives importances and EAP signed changes"):
        eap.mean_of(pair)


def test_a_mean_of_signed_methods_finds_the_known_circuit():
    known = known_circuits.load("majority")
    graphs = [eap.attribute(known.model, known.dataset, method=m) for m in ("EAP", "EAP-IG")]
    mean = eap.mean_of(graphs)
    assert auroc(-mean.scores[mean.edge_exists], known.circuit.in_graph[mean.edge_exists]) == 1.0


@pytest.mark.parametrize(
    ("graphs", "message"),
    [
        ([random_graph()], "at least two"),
        ([random_graph(), random_graph()], "higher_is_better"),
        (
            [
                replace(random_graph(), higher_is_better=True, provenance={"model": name})
                for name in "ab"
            ],
            "different models",
        ),
        (
            [
                replace(random_graph(), higher_is_better=True),
                replace(
                    random_graph(), higher_is_better=True, node_scores=torch.zeros(SMALL.n_forward)
                ),
            ],
            "edge scores and graphs of node scores",
        ),
    ],
)
def test_graphs_without_a_mean_are_refused(graphs, message):
    with pytest.raises(eap.UserError, match=message):
        eap.mean_of(graphs)

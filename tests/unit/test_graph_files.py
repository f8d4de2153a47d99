"""Graphs as files: as they were saved, as other programs write and read them, and damaged ones."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import PurePosixPath

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models.fabricated import published
from models.graphs import GPT2_XL, SMALL, graphs
from reference import eap_ig_files

from eap import Graph, GraphConfig, UserError

TENSORS = ("scores", "in_graph", "standard_errors", "is_exact", "node_scores", "node_errors")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@given(
    graphs(),
    st.sampled_from(["json", "safetensors", "pt"]),
    st.booleans(),
    st.sampled_from(DTYPES),
    st.sampled_from([None, True, False]),
)
def test_a_saved_graph_is_loaded_as_it_was(tmp_path_factory, graph, suffix, known, dtype, better):
    path = tmp_path_factory.mktemp("graphs") / f"graph.{suffix}"
    provenance = {"model": "tiny", "steps": 5, "versions": {"torch": "2"}}
    scores = (graph.scores.double() / 3).to(dtype)
    graph = replace(
        graph,
        scores=scores,
        standard_errors=scores.abs() / 3 if known else None,
        is_exact=graph.in_graph & (graph.scores > 0) if known else None,
        node_scores=scores.sum(dim=1) if known else None,
        node_errors=scores.sum(dim=1).abs() if known else None,
        provenance=provenance,
        higher_is_better=better,
    )
    shared = graph.config.n_kv_receivers != graph.config.n_heads
    if suffix == "pt" and shared:
        with pytest.raises(UserError, match="expanded_kv=True"):
            graph.save(path)
        return
    graph.save(path)
    loaded = Graph.load(path)
    assert loaded.config == graph.config
    assert loaded.provenance == provenance
    assert loaded.higher_is_better is better
    for name in TENSORS:
        before, after = getattr(graph, name), getattr(loaded, name)
        assert (before is None) == (after is None)
        if before is not None:
            assert before.dtype == after.dtype
            assert torch.equal(before, after)


def test_a_graph_of_two_million_edges_is_saved_and_loaded(tmp_path):
    graph = Graph.from_config(GPT2_XL)
    scores = torch.randn(graph.scores.shape) * graph.edge_exists
    graph = replace(graph, scores=scores).greedy(5000).prune()
    graph.save(tmp_path / "xl.safetensors")
    loaded = Graph.load(tmp_path / "xl.safetensors")
    assert torch.equal(loaded.scores, scores)
    assert torch.equal(loaded.in_graph, graph.in_graph)


def test_unknown_scores_survive_json(tmp_path):
    graph = Graph.from_config(SMALL)
    scores = torch.where(graph.edge_exists & (torch.rand(graph.scores.shape) < 0.5), math.nan, 0.0)
    replace(graph, scores=scores).save(tmp_path / "graph.json")
    assert torch.equal(Graph.load(tmp_path / "graph.json").scores.isnan(), scores.isnan())


def strict(constant):
    raise AssertionError(f"{constant} is not JSON")


def test_the_json_file_is_valid_where_scores_are_unknown(tmp_path):
    graph = Graph.from_config(SMALL)
    scores = torch.full(graph.scores.shape, math.nan)
    graph = replace(graph, scores=scores, standard_errors=scores, node_scores=scores[:, 0])
    graph.save(tmp_path / "graph.json")
    json.loads((tmp_path / "graph.json").read_text(), parse_constant=strict)
    with pytest.raises(UserError, match=r"infinite.*\.safetensors"):
        replace(graph, scores=torch.full_like(scores, math.inf)).save(tmp_path / "other.json")
    assert [path.name for path in tmp_path.iterdir()] == ["graph.json"]


@pytest.fixture
def circuit():
    """A circuit with scores of edges and nodes, of a metric whose high values are better."""
    graph = Graph.from_config(replace(SMALL, n_heads=4, expanded_kv=True))
    generator = torch.Generator().manual_seed(5)
    scores = torch.randn(graph.scores.shape, generator=generator) * graph.edge_exists
    graph = replace(graph, scores=scores, node_scores=scores.sum(dim=1), higher_is_better=True)
    return graph.greedy(12).prune()


@pytest.mark.parametrize("form", ["json", "paper", "pt"])
@pytest.mark.parametrize("better", [True, False, None])
def test_the_eap_ig_library_reads_our_files(tmp_path, circuit, form, better):
    nodes = None if form == "paper" else circuit.node_scores
    circuit = replace(circuit, higher_is_better=better, node_scores=nodes)
    path = tmp_path / f"graph.{form.replace('paper', 'json')}"
    circuit.save(path, schema="paper" if form == "paper" else "library")
    read = eap_ig_files.read_pt if form == "pt" else eap_ig_files.read_json
    theirs = read(path, paper=True) if form == "paper" else read(path)
    # Positive is helpful there: corrupting the edge makes the metric worse.
    sign = 1 if better is False else -1
    everything = list(circuit.edges(in_graph_only=False))
    assert theirs.scores == {edge.name: sign * edge.score for edge in everything}
    assert theirs.in_graph == {edge.name: edge.in_graph for edge in everything}
    assert {name for name, kept in theirs.nodes.items() if kept} == (
        circuit.nodes_in_graph() - {"logits"}
    )
    if form != "paper":
        scores = (sign * circuit.node_scores).tolist()
        assert theirs.node_scores == dict(zip(circuit.sender_names, scores, strict=True))
    assert torch.equal(Graph.load(path).scores, circuit.scores)


def test_the_papers_form_knows_nothing_of_what_came_later(tmp_path, circuit):
    circuit = replace(circuit, node_scores=None)
    circuit.save(tmp_path / "graph.json", schema="paper")
    document = json.loads((tmp_path / "graph.json").read_text())
    assert document["cfg"] == {"n_layers": 2, "n_heads": 4, "parallel_attn_mlp": False}
    assert set(map(type, document["nodes"].values())) == {bool}
    with pytest.raises(UserError, match=r"\.json"):
        circuit.save(tmp_path / "graph.pt", schema="paper")
    with pytest.raises(UserError, match="'library' or 'paper'"):
        circuit.save(tmp_path / "graph.json", schema="new")


def test_heads_that_share_keys_have_no_place_in_files_of_others(tmp_path):
    config = GraphConfig(n_layers=1, n_heads=4, d_model=8, n_kv_heads=2)
    native, expanded = (
        Graph.from_config(replace(config, expanded_kv=flag)) for flag in (False, True)
    )
    for name, schema in (("graph.pt", "library"), ("graph.json", "paper")):
        with pytest.raises(UserError, match="expanded_kv=True"):
            native.save(tmp_path / name, schema=schema)
        expanded.save(tmp_path / name, schema=schema)
        assert Graph.load(tmp_path / name).config.shape == expanded.config.shape
    native.save(tmp_path / "native.json")
    assert Graph.load(tmp_path / "native.json").config == config


@pytest.mark.parametrize("suffix", ["json", "pt"])
@pytest.mark.parametrize("sign", [None, 1, -1])
def test_the_sign_of_another_programs_scores_is_turned(tmp_path, circuit, suffix, sign):
    path = tmp_path / f"theirs.{suffix}"
    if suffix == "json":
        path.write_text(json.dumps(published(SMALL, nodes_as="objects")))
        theirs = eap_ig_files.read_json(path)
    else:
        circuit.save(tmp_path / "ours.pt")
        theirs = eap_ig_files.read_pt(tmp_path / "ours.pt")
        cfg = {"n_layers": 2, "n_heads": 4, "parallel_attn_mlp": False, "d_model": 8}
        eap_ig_files.write_pt(theirs, cfg, path)
    graph = Graph.load(path, sign=sign)
    for name, score in theirs.scores.items():
        assert graph.score(name) == score * (sign or -1)
        assert (name in graph) == theirs.in_graph[name]
    if suffix == "pt":
        assert torch.equal(graph.node_scores, circuit.node_scores * (1 if sign != 1 else -1))
    if sign == 1:  # what a score means is then the caller's to say
        assert graph.higher_is_better is None
        assert graph.provenance == {"read_from": {"signs": "as in the file"}}
    else:
        assert graph.provenance == {"read_from": {"signs": "turned"}}
        best = max(theirs.scores, key=theirs.scores.get)
        assert graph.top_n(1, by="helpful").edge_names() == [best]
    again = tmp_path / "again.json"
    graph.save(again)
    assert torch.equal(Graph.load(again).scores, graph.scores)


def test_a_sign_is_one_or_minus_one(tmp_path):
    for sign in (0, 2, "turned", True):
        with pytest.raises(UserError, match="sign is 1"):
            Graph.load(tmp_path / "graph.json", sign=sign)


def test_files_of_this_package_from_before_it_noted_the_sign_are_not_turned(tmp_path, circuit):
    circuit.save(tmp_path / "graph.json")
    document = json.loads((tmp_path / "graph.json").read_text())
    for key in ("score_sign", "higher_is_better", "dtype"):
        del document[key]
    (tmp_path / "graph.json").write_text(json.dumps(document))
    assert torch.equal(Graph.load(tmp_path / "graph.json").scores, -circuit.scores)


def test_a_file_of_a_circuits_edges_alone_is_read(tmp_path, circuit):
    circuit.save(tmp_path / "graph.json")
    document = json.loads((tmp_path / "graph.json").read_text())
    document["edges"] = {name: e for name, e in document["edges"].items() if e["in_graph"]}
    path = tmp_path / "slim.json"
    path.write_text(json.dumps(document))
    slim = Graph.load(path)
    assert torch.equal(slim.in_graph, circuit.in_graph)
    assert torch.equal(slim.scores[slim.in_graph], circuit.scores[slim.in_graph])
    assert slim.scores[slim.edge_exists & ~slim.in_graph].isnan().all()
    # Neither in_graph nor a score need be said of an edge that is listed.
    document["edges"] = {name: {} for name in document["edges"]}
    path.write_text(json.dumps(document))
    assert set(Graph.load(path).edge_names()) == set(circuit.edge_names())
    # But edges that are listed and not in the circuit say that others are missing.
    document["edges"][circuit.edge_names()[0]]["in_graph"] = False
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match="not all of them"):
        Graph.load(path)


def test_a_file_of_nodes_alone_is_read(tmp_path):
    document = published(SMALL, nodes_as="objects")
    document["edges"] = {}
    for number, (name, node) in enumerate(document["nodes"].items()):
        node |= {
            "score": float(number) if number else math.nan,
            "in_graph": name in ("m0", "a1.h1"),
        }
    path = tmp_path / "nodes.json"
    path.write_text(json.dumps(document))
    graph = Graph.load(path)
    assert graph.node_scores[1:].tolist() == [-1.0, -2, -3, -4, -5, -6]
    assert graph.node_scores[0].isnan()
    inputs = [f"a1.h1<{kind}>" for kind in "qkv"]
    assert set(graph.edge_names()) == {
        "input->m0", "input->logits", "m0->logits", "a1.h1->logits",
        *(f"{sender}->{receiver}" for sender in ("input", "m0") for receiver in inputs),
    }  # fmt: skip
    assert graph.top_n_nodes(2, by="helpful").nodes_in_graph() == {"input", "a1.h1", "m1", "logits"}
    with pytest.raises(UserError, match="NaN"):
        graph.top_n(3)


@pytest.mark.parametrize("suffix", ["json", "pt", "safetensors"])
@pytest.mark.parametrize("n", [0, 2, 6, "none", "all"])
def test_a_graph_of_nodes_alone_is_saved_and_loaded(tmp_path, n, suffix):
    graph = Graph.from_config(SMALL)
    scores = torch.full(graph.scores.shape, math.nan)
    graph = replace(graph, scores=scores, node_scores=torch.arange(7.0), higher_is_better=True)
    circuits = {"none": graph.empty(), "all": graph}
    circuit = circuits[n] if n in circuits else graph.top_n_nodes(n)
    path = tmp_path / f"nodes.{suffix}"
    circuit.save(path)
    if suffix == "json":
        theirs = eap_ig_files.read_json(path)
        assert list(theirs.node_scores.values()) == [0.0, -1, -2, -3, -4, -5, -6]
        assert json.loads(path.read_text())["edges"] == {}
    loaded = Graph.load(path)
    assert torch.equal(loaded.in_graph, circuit.in_graph)
    assert torch.equal(loaded.node_scores, circuit.node_scores)
    with pytest.raises(UserError, match="NaN"):
        loaded.top_n(1)


@pytest.mark.parametrize("suffix", ["json", "pt", "safetensors"])
def test_values_of_provenance_that_json_does_not_know_are_saved_as_text(tmp_path, circuit, suffix):
    provenance = {"weights": PurePosixPath("folder/model"), "dtype": torch.float32}
    replace(circuit, provenance=provenance).save(tmp_path / f"g.{suffix}")
    loaded = Graph.load(tmp_path / f"g.{suffix}").provenance
    assert loaded == {"weights": "folder/model", "dtype": "torch.float32"}
    circular: dict = {}
    circular["self"] = circular
    for odd in (circular, {(1, 2): 3}):
        with pytest.raises(UserError, match="provenance cannot be saved as JSON") as error:
            replace(circuit, provenance=odd).save(tmp_path / f"odd.{suffix}")
        assert "\n" not in str(error.value)


def test_one_tensor_in_two_places_is_saved_twice(tmp_path, circuit):
    circuit = replace(circuit, is_exact=circuit.in_graph)
    for suffix in ("json", "pt", "safetensors"):
        circuit.save(tmp_path / f"graph.{suffix}")
        loaded = Graph.load(tmp_path / f"graph.{suffix}")
        assert torch.equal(loaded.is_exact, loaded.in_graph)


def test_scores_in_a_file_that_were_trained_are_plain_numbers(tmp_path, circuit):
    path = tmp_path / "graph.pt"
    circuit.save(path)
    saved = torch.load(path, weights_only=True)
    saved["edges_scores"].requires_grad_()
    torch.save(saved, path)
    loaded = Graph.load(path)
    assert not loaded.scores.requires_grad
    assert loaded.greedy(5) == circuit.greedy(5)
    assert len(loaded.to_frame()) == circuit.n_edges


def test_node_scores_have_no_place_in_the_papers_form(tmp_path):
    graph = Graph.from_config(SMALL)
    unknown = torch.full_like(graph.scores, torch.nan)
    for scores in (unknown, graph.scores):
        scored = replace(graph, scores=scores, node_scores=torch.ones(graph.n_forward))
        with pytest.raises(UserError, match="no place for node scores"):
            scored.save(tmp_path / "g.json", schema="paper")
        assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("known", ["standard_errors", "is_exact"])
def test_what_is_known_of_edges_without_scores_is_saved(tmp_path, known):
    graph = Graph.from_config(SMALL)
    unknown = torch.full_like(graph.scores, torch.nan)
    values = {"standard_errors": graph.edge_exists * 0.5, "is_exact": graph.edge_exists}[known]
    graph = replace(graph, scores=unknown, node_scores=torch.ones(7), **{known: values})
    graph.save(tmp_path / "g.json")
    assert torch.equal(
        getattr(Graph.load(tmp_path / "g.json"), known)[graph.edge_exists],
        values[graph.edge_exists],
    )


def test_neurons_are_passed_over_and_the_provenance_says_so(tmp_path):
    document = published(SMALL, nodes_as="objects")
    for node in document["nodes"].values():
        node["neurons"] = [True] * 8
    (tmp_path / "graph.json").write_text(json.dumps(document))
    provenance = Graph.load(tmp_path / "graph.json").provenance
    assert provenance == {"read_from": {"signs": "turned", "left_out": ["neurons"]}}


@pytest.mark.parametrize("nodes_as", ["bools", "objects"])
@pytest.mark.parametrize(
    "extra", [(), (("model_name", "gpt2"), ("d_vocab", 50257), ("seed", None))]
)
@pytest.mark.parametrize("config", [SMALL, replace(SMALL, parallel_attn_mlp=True)])
def test_published_files_are_read(tmp_path, config, extra, nodes_as):
    document = published(config, nodes_as=nodes_as, extra=extra)
    path = tmp_path / "published.json"
    path.write_text(json.dumps(document))
    graph = Graph.load(path)
    assert graph.config == config
    for name, info in document["edges"].items():
        assert graph.score(name) == -info["score"]
        assert (name in graph) == info["in_graph"]


def test_edges_without_a_score_are_read_as_unknown(tmp_path):
    document = published(SMALL)
    document["edges"]["input->logits"]["score"] = None
    (tmp_path / "graph.json").write_text(json.dumps(document))
    assert math.isnan(Graph.load(tmp_path / "graph.json").score("input->logits"))

"""Graphs with an axis of spans: selection, pruning, names, files and frames."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eap.analysis.compare import edge_overlap
from eap.analysis.rankings import count_ranked
from eap.figures.circuit import draw_circuit
from eap.graph import Graph, GraphConfig
from eap.graph.arithmetic import mean_of
from eap.runtime.errors import UserError

CONFIG = GraphConfig(n_layers=2, n_heads=2, d_model=4, n_kv_heads=1)
NAMES = ("first", "second", "last")


def scored(seed: int = 0, names=NAMES, config=CONFIG) -> Graph:
    graph = Graph.from_config(config, names)
    noise = torch.randn(graph.scores.shape, generator=torch.Generator().manual_seed(seed))
    return replace(graph, scores=noise * graph.edge_exists, higher_is_better=True)


def test_names_say_where():
    graph = scored()
    assert graph.n_edges == 3 * CONFIG.n_edges == graph.count_edges()
    assert graph.score("m0->logits @ last") == float(graph.scores[2, 3, -1])
    circuit = graph.empty().add("m0->logits @ last", "input->m0 @ first")
    assert circuit.edge_names() == ["input->m0 @ first", "m0->logits @ last"]
    assert "m0->logits @ last" in circuit
    assert "m0->logits @ first" not in circuit
    assert [edge.name for edge in circuit.edges()] == circuit.edge_names()
    assert "at 3 spans" in repr(graph)
    for name in ("m0->logits", "m0->logits @ middle"):
        with pytest.raises(UserError, match="names of edges at a span"):
            graph.score(name)


def test_a_head_carries_from_its_keys_to_later_spans_only():
    path = ("input->a0.kv0<v> @ {}", "a0.h1->logits @ {}")
    for source, target, stays in (
        ("first", "last", True),
        ("last", "last", True),
        ("last", "first", False),
    ):
        circuit = scored().empty().add(path[0].format(source), path[1].format(target))
        assert circuit.prune().count_edges() == (2 if stays else 0)
    for receiver in ("a0.h1<q>", "m0"):  # a query and an MLP stay where they are
        sender = receiver.partition("<")[0]
        for target, stays in (("first", True), ("last", False)):
            edges = (f"input->{receiver} @ first", f"{sender}->logits @ {target}")
            assert scored().empty().add(*edges).prune().count_edges() == (2 if stays else 0)


@given(st.integers(0, 1000), st.integers(0, CONFIG.n_edges))
def test_one_span_is_the_plain_graph(seed, n):
    spans = scored(seed, names=("all",))
    plain = spans.at_span("all")
    for select in ("top_n", "greedy"):
        for by in ("magnitude", "helpful"):
            one, other = (getattr(graph, select)(n, by=by) for graph in (spans, plain))
            assert torch.equal(one.in_graph[0], other.in_graph)
            assert torch.equal(one.prune().in_graph[0], other.prune().in_graph)
    kept = (graph.threshold(0.5).in_graph for graph in (spans, plain))
    assert torch.equal(next(kept)[0], next(kept))


@given(st.integers(0, 1000), st.integers(0, 3 * CONFIG.n_edges))
def test_greedy_circuits_reach_the_logits_and_pruning_is_final(seed, n):
    circuit = scored(seed).greedy(n)
    assert circuit.count_edges() == n
    for span, u, v in circuit.in_graph.nonzero().tolist():  # each receiver's node sends onwards
        if v == CONFIG.logits_receiver:
            continue
        receiver = CONFIG.receiver_names[v]
        layer, at_key = int(receiver[1]), receiver.endswith(("<k>", "<v>"))
        heads = range(CONFIG.n_forward)[CONFIG.heads(layer)]
        senders = [CONFIG.mlp_sender(layer)] if receiver.startswith("m") else list(heads)
        if receiver.endswith("<q>"):
            senders = [heads[int(receiver[4])]]
        later = slice(span, None) if at_key else slice(span, span + 1)
        assert circuit.in_graph[later, senders].any(), (span, u, v)
    pruned = circuit.prune()
    assert (pruned.in_graph <= circuit.in_graph).all()
    assert torch.equal(pruned.prune().in_graph, pruned.in_graph)
    assert scored(seed).full().prune().count_edges() == 3 * CONFIG.n_edges


def test_nodes_at_spans_are_selected():
    graph = replace(scored(), node_scores=torch.zeros(3, CONFIG.n_forward))
    graph.node_scores[1, 1], graph.node_scores[0, 3] = 5.0, -4.0  # a0.h0 and m0
    circuit = graph.top_n_nodes(2)
    assert "input->a0.kv0<k> @ first" in circuit  # read by the head at the second span
    assert "input->a0.kv0<k> @ last" not in circuit
    assert "input->a0.h0<q> @ second" in circuit
    assert "input->a0.h0<q> @ first" not in circuit
    assert "input->m0 @ first" in circuit
    assert "input->m0 @ second" not in circuit


def test_plain_graphs_of_spans_and_back():
    graph = scored()
    assert torch.equal(graph.over_spans().scores, graph.scores.sum(0))
    assert torch.equal(graph.at_span("last").scores, graph.scores[2])
    circuit = graph.at_span("last").greedy(5)
    spread = circuit.at_all_spans(NAMES)
    assert spread.count_edges() == 15
    assert torch.equal(spread.over_spans().in_graph, circuit.in_graph)
    with pytest.raises(UserError, match="has no spans yet"):
        graph.at_all_spans(NAMES)
    with pytest.raises(UserError, match="different spans"):
        _ = graph & replace(graph, span_names=("a", "b", "c"))
    with pytest.raises(UserError, match="different spans"):
        _ = graph & graph.over_spans()
    assert (graph.top_n(5) & graph.top_n(9)).count_edges() == 5


def test_spans_are_a_list_of_different_names(tmp_path):
    circuit = scored().at_span("last")
    with pytest.raises(UserError, match="must be a list of strings"):
        circuit.at_all_spans("subject")
    with pytest.raises(UserError, match="two spans are named 'a'"):
        circuit.at_all_spans(["a", "b", "a"])
    with pytest.raises(UserError, match="two spans are named 'a'"):
        Graph.from_config(CONFIG, ["a", "a"])


def test_files_keep_spans_or_refuse_them(tmp_path):
    graph = replace(scored().greedy(9), node_scores=torch.ones(3, CONFIG.n_forward))
    graph.save(tmp_path / "graph.safetensors")
    again = Graph.load(tmp_path / "graph.safetensors")
    assert again.span_names == NAMES
    for part in ("scores", "in_graph", "node_scores"):
        assert torch.equal(getattr(again, part), getattr(graph, part))
    for name in ("graph.json", "graph.pt"):
        with pytest.raises(UserError, match="no place for spans"):
            graph.save(tmp_path / name)
    graph.over_spans().save(tmp_path / "graph.json")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_the_file_of_one_span_holds_one_span(tmp_path, suffix):
    names = tuple(map(str, range(50)))
    config = replace(CONFIG, n_kv_heads=2)
    for graph in (scored(names=names, config=config), scored(names=("0",), config=config)):
        plain = replace(graph.at_span("0"), higher_is_better=False)  # unturned
        plain.save(tmp_path / f"{len(graph.span_names)}.{suffix}")
    sizes = {path.stat().st_size for path in tmp_path.iterdir()}
    assert max(sizes) - min(sizes) < 100


def test_frames_have_a_row_per_pair_and_drawings_refuse():
    graph = scored()
    frame = graph.to_frame()
    assert len(frame) == graph.n_edges
    assert frame.columns[0] == "span"
    row = frame[(frame["span"] == "last") & (frame["edge"] == "m0->logits")]
    assert row["score"].item() == pytest.approx(graph.score("m0->logits @ last"))
    assert len(graph.top_n(7).to_frame(in_graph_only=True)) == 7
    with pytest.raises(UserError, match="over_spans"):
        draw_circuit(graph)


def test_networks_have_a_node_wherever_a_component_is(tmp_path):
    graph = replace(scored(), node_scores=torch.arange(3.0 * CONFIG.n_forward).view(3, -1))
    circuit = graph.empty().add(
        "input->a0.kv0<v> @ first", "a0.h1->logits @ last", "a0.h0->m0 @ second", "m0->m1 @ second"
    )
    network = circuit.to_networkx()
    assert set(network) == {
        "input @ first", "a0.h1 @ last", "logits @ last", "a0.h0 @ second", "m0 @ second",
        "m1 @ second",
    }  # fmt: skip
    assert network.nodes["a0.h1 @ last"] == {
        "kind": "head", "layer": 0, "span": "last", "score": 2 * CONFIG.n_forward + 2,
    }  # fmt: skip
    moved = set(network.successors("input @ first"))
    assert moved == {"a0.h0 @ second", "a0.h1 @ last"}  # the heads that send, at later spans
    (edge,) = network.get_edge_data("a0.h1 @ last", "logits @ last").values()
    assert edge["edge"] == "a0.h1->logits @ last"
    assert edge["score"] == circuit.score("a0.h1->logits @ last")
    for span in NAMES:  # without keys and values that cross, spans are networks of their own
        plain = circuit.at_span(span).remove("input->a0.kv0<v>").to_networkx()
        assert {f"{node} @ {span}" for node in plain} <= set(network)
    circuit.to_graphml(tmp_path / "graph.graphml")
    circuit.to_dot(tmp_path / "graph.dot")
    assert '"a0.h1 @ last" -> "logits @ last"' in (tmp_path / "graph.dot").read_text("utf8")


def test_overlap_counts_pairs_and_means_need_the_same_spans():
    graph = scored()
    first, second = graph.top_n(10), graph.top_n(20)
    overlap = edge_overlap(first, second)
    assert (overlap.n_shared, overlap.n_first, overlap.n_second) == (10, 10, 20)
    assert overlap.n_all == graph.n_edges
    other = replace(graph, span_names=("a", "b", "c"))
    for call in (lambda: edge_overlap(first, other), lambda: mean_of([graph, other])):
        with pytest.raises(UserError, match="different spans"):
            call()
    assert torch.allclose(mean_of([graph, graph], scaled=False).scores, graph.scores)
    nodes = replace(graph, node_scores=graph.scores.sum(-1))
    mean = mean_of([nodes, nodes]).node_scores
    assert mean.abs().mean().item() == pytest.approx(1)
    assert torch.allclose(mean, nodes.node_scores / nodes.node_scores.abs().mean())


def test_nodes_at_all_spans_are_counted():
    nodes = replace(scored(), node_scores=scored().scores.sum(-1))
    n_nodes = len(NAMES) * (CONFIG.n_forward - 1)
    assert count_ranked(nodes, level="node") == n_nodes
    assert count_ranked(nodes, level="node", rank_input=True) == n_nodes + len(NAMES)
    with_input = nodes.top_n_nodes(n_nodes + len(NAMES), rank_input=True)
    assert torch.equal(with_input.in_graph, nodes.top_n_nodes(n_nodes).in_graph)


# ---- pages ---------------------------------------------------------------------------------------


def test_a_page_has_a_node_at_every_span(tmp_path):
    graph = replace(scored(), node_scores=torch.arange(3.0 * CONFIG.n_forward).view(3, -1))
    content = content_of(graph.to_html(tmp_path / "page.html", sizes=[10, 40, graph.n_edges]))
    n_nodes = CONFIG.n_forward + 1
    assert content["spans"] == list(NAMES)
    assert content["nodes"][n_nodes : n_nodes + 2] == ["input @ second", "a0.h0 @ second"]
    assert len(content["nodes"]) == 3 * n_nodes
    scores = content["circuits"][0]["nodes"]
    assert scores[n_nodes : n_nodes + 2] == [CONFIG.n_forward, CONFIG.n_forward + 1]
    assert scores[n_nodes - 1] is None  # the logits
    names = {node: number for number, node in enumerate(content["nodes"])}
    ends = {receiver["name"]: receiver["nodes"] for receiver in content["receivers"]}
    assert ends["a0.h1<q> @ second"] == [names["a0.h1 @ second"]]
    assert ends["m0 @ second"] == [names["m0 @ second"]]
    shared = [names[f"a0.h{head} @ {span}"] for span in ("second", "last") for head in (0, 1)]
    assert ends["a0.kv0<v> @ second"] == shared
    of_page = {}
    for sender, end, score in zip(
        content["senders"], content["ends"], content["circuits"][0]["score"], strict=True
    ):
        node, _, span = content["nodes"][sender].partition(" @ ")
        receiver, _, at = content["receivers"][end]["name"].partition(" @ ")
        assert span == at
        of_page[f"{node}->{receiver} @ {span}"] = score
    assert len(of_page) == graph.n_edges
    for name, score in of_page.items():
        assert score == pytest.approx(graph.score(name), rel=1e-3)
    kept = content["circuits"][0]["kept"]
    assert kept == [graph.greedy(n).prune().count_edges() for n in (10, 40, graph.n_edges)]


def test_pages_compare_graphs_of_the_same_spans_only(tmp_path):
    graph = scored()
    graph.to_html(tmp_path / "page.html", scored(1))
    with pytest.raises(UserError, match="different spans"):
        graph.to_html(tmp_path / "page.html", scored(1, names=("a", "b", "c")))


def content_of(path) -> dict:
    text = path.read_text(encoding="utf8")
    return json.loads(re.search(r'id="content">(.*?)</script>', text, re.DOTALL)[1])

"""The page of a circuit: what it knows, and what it shows in a real browser."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models.graphs import GPT2, graphs
from pages import (
    GROUPED,
    SIZES,
    SMALL,
    browser,
    content_of,
    drawn,
    listed,
    move,
    scored,
    show,
)  # fmt: skip

from eap import UserError
from eap.figures.viewer import first_sizes, write_page
from eap.graph.graph import Graph, GraphConfig

__all__ = ["browser", "show"]


# ---- what the page knows -------------------------------------------------------------------------


@settings(max_examples=30)
@given(
    graphs(),
    st.lists(st.floats(0, 1), min_size=1, max_size=5),
    st.sampled_from(["greedy", "top_n"]),
    st.sampled_from(["magnitude", "helpful", "harmful"]),
)
def test_one_number_an_edge_says_the_circuits_of_all_sizes(graph, shares, selection, by):
    sizes = sorted({max(1, int(share * graph.n_edges)) for share in shares})
    first = first_sizes(graph, sizes, selection, by)
    for index, size in enumerate(sizes):
        circuit = getattr(graph, selection)(size, by=by).prune()
        assert np.array_equal((first >= 0) & (first <= index), circuit.in_graph.numpy())


def test_a_page_of_five_thousand_edges_is_below_a_megabyte(tmp_path):
    graph = scored(GPT2)
    graph = replace(graph, standard_errors=graph.scores.abs(), is_exact=graph.edge_exists)
    path = write_page(graph, tmp_path / "page.html", scored(GPT2, seed=1))
    assert len(content_of(path)["senders"]) > 5000
    assert path.stat().st_size < 1_000_000


def test_a_page_needs_no_other_file_and_is_not_broken_by_what_is_in_it(tmp_path):
    evil = '</script><script>alert("x")</script><!-- ${1}'
    graph = scored(provenance={"task": evil, "model": {"name": evil}})
    path = graph.to_html(tmp_path / "deeper" / "page.html", sizes=SIZES, title=evil)
    text = path.read_text()
    assert "alert(" in text
    assert evil not in text
    assert content_of(path)["title"] == evil
    assert not re.findall(r"(?:src|href)=|url\(|import\b|https?://(?!www\.w3\.org/2000/svg)", text)


def test_what_cannot_be_shown_is_refused(tmp_path):
    path = tmp_path / "page.html"
    graph = scored()
    unknown = replace(graph, scores=torch.full_like(graph.scores, torch.nan))
    for call, message in (
        (lambda: write_page(graph, path, scored(GPT2)), "different models"),
        (lambda: write_page(graph, path, sizes=[0, 3]), "from 1 to"),
        (lambda: write_page(graph, path, sizes=[]), "from 1 to"),
        (lambda: write_page(graph, path, sizes=[10**9]), "from 1 to"),
        (lambda: write_page(graph, path, selection="best"), "'greedy' or 'top_n'"),
        (lambda: write_page(graph, path, by="signed"), "'magnitude'"),
        (lambda: write_page(graph, path, patterns={"m0": []}), "'m0' is not one"),
        (lambda: write_page(graph, path, patterns={"a0.h1": [(["a"], [[1, 0]])]}), r"\[1, 1\]"),
        (lambda: write_page(unknown, path), "nothing to show"),
        (lambda: write_page(unknown.with_edges(graph.greedy(9).in_graph), path, sizes=[3]), "NaN"),
    ):
        with pytest.raises(UserError, match=message):
            call()
    assert list(tmp_path.iterdir()) == []


# ---- what it shows -------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [SMALL, GROUPED, replace(SMALL, parallel_attn_mlp=True)])
@pytest.mark.parametrize("selection", ["greedy", "top_n"])
def test_the_sliders_circuits_are_those_of_the_graph(show, config, selection):
    graph = scored(config)
    page = show(graph, sizes=SIZES, selection=selection)
    sizes = [size for size in SIZES if getattr(graph, selection)(size).prune()]
    assert page.locator("#size").get_attribute("max") == str(len(sizes) - 1)
    for position, size in enumerate(sizes):
        move(page, position)
        circuit = getattr(graph, selection)(size).prune()
        assert drawn(page) == set(listed(page)) == set(circuit.edge_names())
        nodes = page.locator("#nodes .node:not([display])").evaluate_all(
            "nodes => nodes.map(n => n.dataset.node)"
        )
        assert set(nodes) == circuit.nodes_in_graph()
        assert f"{size} selected, {circuit.count_edges()} after" in page.inner_text("#size-text")


def test_every_size_of_the_default_slider_is_the_graphs(show):
    graph = scored(GPT2)
    page = show(graph)
    for position in (0, 9, 15, int(page.locator("#size").get_attribute("max"))):
        move(page, position)
        size = int(re.match(r"[\d,]+", page.inner_text("#size-text"))[0].replace(",", ""))
        assert drawn(page) == set(graph.greedy(size).prune().edge_names())


def test_a_circuit_is_shown_as_it_was_given(show):
    graph = scored()
    circuit = graph.with_edges(graph.greedy(30).prune().in_graph).remove("input->logits")
    page = show(circuit, sizes=SIZES)
    assert drawn(page) == set(circuit.edge_names())
    assert "as given" in page.inner_text("#size-text")
    unscored = torch.where(circuit.in_graph, circuit.scores, torch.nan)
    page = show(replace(circuit, scores=unscored))
    assert drawn(page) == set(circuit.edge_names())
    assert not page.is_visible("#size")


def test_two_circuits_are_compared(show):
    a, b = scored(), scored(seed=1)
    page = show(a, b, names=("ours", "theirs"), sizes=SIZES)
    move(page, 3)
    first, second = (set(g.greedy(40).prune().edge_names()) for g in (a, b))
    members = page.locator("#rows tr").evaluate_all(
        "rows => rows.map(r => [r.dataset.edge, r.lastChild.textContent])"
    )
    expected = dict.fromkeys(first - second, "only ours")
    expected |= dict.fromkeys(second - first, "only theirs")
    for edge in first & second:
        opposite = a.score(edge) * b.score(edge) < 0
        expected[edge] = "both, opposite signs" if opposite else "both"
    assert dict(members) == expected
    n_opposite = sum("opposite" in text for text in expected.values())
    assert n_opposite > 0
    assert f"({n_opposite} with opposite signs)" in page.inner_text("#status")
    page.get_by_label("only ours").uncheck()
    page.get_by_label("both").uncheck()
    assert drawn(page) == second - first
    page.get_by_label("both").check()
    page.get_by_label("only ours").check()
    page.get_by_label("side by side").check()
    middle = page.locator("#frame").evaluate("f => f.getBoundingClientRect().x + f.clientWidth / 2")
    sides = page.locator("#edges path:not([display])").evaluate_all(
        "(paths, x) => paths.map(p => [p.getBoundingClientRect().x < x, p.dataset.edge])", middle
    )
    assert {edge for is_left, edge in sides if is_left} == first
    assert {edge for is_left, edge in sides if not is_left} == second


def test_edges_are_searched_for_sorted_and_described(show):
    graph = scored()
    graph = replace(graph, standard_errors=graph.scores.abs() / 4, is_exact=graph.scores > 0)
    page = show(graph, sizes=SIZES)
    move(page, 4)
    names = graph.greedy(80).prune().edge_names()
    by_size = sorted(names, key=lambda name: -abs(graph.score(name)))
    assert listed(page) == by_size
    page.get_by_role("button", name="edge", exact=True).click()
    assert listed(page) == sorted(names)
    assert page.locator("#columns th").first.get_attribute("aria-sort") == "ascending"
    page.get_by_label("Search").fill("m1 ->logits")
    assert listed(page) == [name for name in sorted(names) if "m1" in name and "->logits" in name]
    page.get_by_label("Search").fill("no such edge")
    assert listed(page) == []
    page.get_by_label("Search").fill("")
    best = by_size[0]
    row = page.locator(f'#rows tr[data-edge="{best}"]').inner_text()
    assert f"{graph.score(best):.4g}" in row
    assert ("exact" if graph.score(best) > 0 else "estimate") in row


def test_the_page_is_used_by_keyboard_and_read_aloud(show):
    graph = scored()
    page = show(graph, sizes=SIZES)
    move(page, 4)
    circuit = graph.greedy(80).prune()
    page.locator('.node[data-node="input"]').focus()
    page.keyboard.press("ArrowUp")
    focused = page.evaluate("document.activeElement.dataset.node")
    assert focused in circuit.nodes_in_graph() - {"input"}
    label = page.evaluate("document.activeElement.getAttribute('aria-label')")
    out = sum(edge.sender == focused for edge in circuit.edges())
    assert re.search(rf"{focused}: \d+ in, {out} out", label)
    page.keyboard.press("Enter")
    touching = [edge.name for edge in circuit.edges() if focused in re.split(r"->|<", edge.name)]
    assert set(listed(page)) == set(touching)
    page.keyboard.press("Escape")
    assert len(listed(page)) == circuit.count_edges()
    assert "80 selected" in page.locator("#size").get_attribute("aria-valuetext")


def test_a_heads_attention_is_shown_where_it_is_known(show):
    graph = scored()
    page = show(graph, sizes=SIZES)
    assert not page.is_visible("#patterns")
    best = graph.greedy(80).prune()
    head = next(edge.sender for edge in best.edges() if edge.sender.startswith("a"))
    second = np.tril(np.ones((2, 2)))
    patterns = {head: [(["<a>", " b", "c"], np.eye(3)), (["x", "y"], second / [[1], [2]])]}
    page = show(graph, sizes=SIZES, patterns=patterns)
    move(page, 4)
    assert head in page.inner_text("#patterns")
    page.locator(f'.node[data-node="{head}"]').click()
    weights = page.locator("#patterns .weight")
    assert weights.count() == 9
    assert "<a> to <a>,  b to  b" in page.locator("#patterns svg").get_attribute("aria-label")
    page.get_by_label("Example").select_option("1")
    assert weights.count() == 4
    assert "y reads x: 0.5" in page.locator("#patterns title").all_text_contents()


def test_dark_and_light_are_told_apart_and_the_curve_is_drawn(show):
    page = show(scored(), sizes=SIZES, curve={5: 0.1, 40: 0.7, 80: 1.02})
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(colour)
    page.click("#theme")
    assert page.evaluate(colour) != light
    assert "0.1 at 5 edges to 1.02 at 80" in page.locator("#curve svg").get_attribute("aria-label")


def test_the_page_says_how_faithful_its_circuit_is_and_opens_with_one_that_does_the_task(show):
    graph = scored()
    sizes = {n: graph.greedy(n).prune().count_edges() for n in SIZES}
    curve = {sizes[10]: 0.3, sizes[20]: (0.7, 0.02), sizes[40]: (0.85, None)}
    page = show(graph, sizes=SIZES, curve=curve)
    assert "40 selected" in page.inner_text("#size-text")
    for position, words in (
        (1, "faithfulness 0.3, does not do the task alone"),
        (2, "faithfulness 0.7 ± 0.02 (standard error), does not do the task alone"),
        (3, "faithfulness 0.85"),
        (4, "faithfulness not measured"),
    ):
        move(page, position)
        assert page.inner_text("#status").endswith(words)


def test_spans_are_columns(show):
    config = GraphConfig(n_layers=2, n_heads=2, d_model=8, n_kv_heads=1)
    graph = Graph.from_config(config, ("first name", "middle", "last"))
    circuit = graph.empty().add(
        "input->a0.kv0<v> @ first name", "input->m0 @ last", "a0.h1->m1 @ last", "m0->m1 @ last",
        "m1->logits @ last",
    )  # fmt: skip
    page = show(circuit)
    assert page.locator(".span-name").all_text_contents() == ["first name", "last"]
    boxes = {
        box.get_attribute("data-node"): box.bounding_box()
        for box in page.locator(".node:visible").all()
    }
    assert set(boxes) == {
        "input @ first name", "input @ last", "a0.h1 @ last", "m0 @ last", "m1 @ last",
        "logits @ last",
    }  # fmt: skip
    left = boxes["input @ first name"]
    assert left["x"] + left["width"] < min(
        box["x"] for name, box in boxes.items() if name.endswith("@ last")
    )
    assert boxes["input @ last"]["y"] == left["y"] > boxes["a0.h1 @ last"]["y"]
    assert page.locator("[data-node='a0.h1 @ last'] text").first.text_content() == "a0.h1"
    rows = page.locator("#rows tr").all_inner_texts()
    assert any("input->a0.kv0<v> @ first name" in row for row in rows)
    page.locator("[data-node='a0.h1 @ last']").click()
    assert page.locator("#rows tr").count() == 2
    page.locator("[data-node='m1 @ last']").focus()
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.dataset.node") == "m0 @ last"

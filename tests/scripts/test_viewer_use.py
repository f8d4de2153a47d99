"""The page of a circuit in use: zoomed, printed, saved, labelled, shared, on a phone."""

from __future__ import annotations

import csv
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from pages import DESKTOP, PHONE, SIZES, browser, content_of, drawn, move, scored, show

from eap import GraphConfig, UserError
from eap.figures.tables import DOES_TASK
from eap.figures.viewer import write_page
from eap.inside.attention import HeadReasons

__all__ = ["browser", "show"]

DEEP = GraphConfig(n_layers=30, n_heads=9, d_model=576, n_kv_heads=3)
BOXES = "boxes => boxes.map(b => b.getBoundingClientRect()).map(r => [r.x, r.y, r.width, r.height])"


def boxes(page):
    return page.locator("#nodes .node:not([display]) rect").evaluate_all(BOXES)


def frame_of(page):
    return page.locator("#frame").evaluate_all(BOXES)[0]


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_a_deep_circuit_fits_a_screen_and_is_zoomed_and_moved(show, size):
    page = show(scored(DEEP), sizes=[1000], size=size)
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    x, y, wide, high = frame_of(page)
    assert high < size[1]
    fitted = boxes(page)
    assert len(fitted) > 150
    for left, top, width, height in fitted:
        assert x <= left
        assert left + width <= x + wide + 1
        assert y <= top
        assert top + height <= y + high + 1
        assert width > 15
        assert height > 8
    page.click("#zoom-in")
    page.click("#zoom-in")
    assert boxes(page)[0][3] > 1.5 * fitted[0][3]
    before = boxes(page)[0][0]
    page.locator("#frame").scroll_into_view_if_needed()
    x, y, wide, high = frame_of(page)
    page.mouse.move(x + 100, y + 150)
    page.mouse.down()
    page.mouse.move(x + 60, y + 100, steps=3)
    page.mouse.up()
    assert before - 45 < boxes(page)[0][0] < before - 10 or size == PHONE
    assert page.locator("#note").is_hidden()  # a drag is no click
    page.keyboard.down("Control")
    page.mouse.wheel(0, -100)
    page.keyboard.up("Control")
    page.wait_for_function("document.querySelector('#zoom-out').disabled === false")
    page.click("#fit")
    assert boxes(page)[0][2:] == pytest.approx(fitted[0][2:], abs=0.1)
    assert page.locator("#fit").is_disabled()


def test_the_printed_page_has_the_whole_picture(show):
    page = show(scored(), sizes=SIZES)
    move(page, 4)
    page.click("#zoom-in")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 700, "height": 1000})
    page.wait_for_timeout(100)
    assert all(x >= 0 and x + w <= 700 and 0 <= y < 1000 for x, y, w, _ in boxes(page))
    assert page.locator("#controls").is_hidden()
    assert page.locator("#rows tr").first.is_visible()
    assert len(page.pdf()) > 10_000


def saved(page, button, tmp_path):
    with page.expect_download() as download:
        page.click(button)
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    return path


def test_picture_and_rows_are_saved(show, tmp_path):
    graph = scored()
    page = show(graph, sizes=SIZES, title="A & B")
    move(page, 4)
    page.click("#zoom-in")
    svg = ElementTree.parse(saved(page, "#save-svg", tmp_path)).getroot()
    circuit = graph.greedy(80).prune()
    elements = list(svg.iter())
    assert {e.get("data-edge") for e in elements} - {None} == set(circuit)
    assert {e.get("data-node") for e in elements} - {None} == circuit.nodes_in_graph()
    assert not [e for e in elements if e.get("class") or "var(" in str(e.attrib)]
    width, height = float(svg.get("width")), float(svg.get("height"))
    texts = [e.text for e in elements if e.tag.endswith("text")]
    assert {"A & B", "harmful", "layer 2", "logits"} <= set(texts)
    png = saved(page, "#save-png", tmp_path).read_bytes()
    assert png.startswith(b"\x89PNG")
    assert int.from_bytes(png[16:20], "big") == pytest.approx(3 * width, abs=1)
    assert int.from_bytes(png[20:24], "big") == pytest.approx(3 * height, abs=1)
    with saved(page, "#save-rows", tmp_path).open() as file:
        rows = list(csv.DictReader(file))
    assert {row["edge"] for row in rows} == set(circuit)
    assert float(rows[0]["score"]) == pytest.approx(graph.score(rows[0]["edge"]), rel=1e-3)


def test_labels_and_groups_are_given_saved_and_read_again(show, browser, tmp_path):
    circuit = scored().greedy(80).prune()
    one, two = sorted(circuit.nodes_in_graph() - {"input", "logits"})[:2]
    graph = scored().with_labels({two: "<b>kept</b>"}, groups={two: "early"})
    page = show(graph, sizes=SIZES)
    move(page, 4)
    assert "<b>kept</b>" in page.locator("#notes text").all_text_contents()
    node = page.locator(f'.node[data-node="{one}"]')
    node.click()
    page.get_by_label("Label").fill("duplicate tokens")
    page.get_by_label("Label").press("Enter")
    page.get_by_label("Group", exact=True).fill("early")
    page.get_by_label("Group", exact=True).press("Enter")
    assert "(duplicate tokens)" in node.get_attribute("aria-label")
    assert "group early" in node.get_attribute("aria-label")
    path = saved(page, "#save-page", tmp_path)
    again = graph.with_labels(path)
    assert again.labels == {two: "<b>kept</b>", one: "duplicate tokens"}
    assert again.groups == {one: "early", two: "early"}
    page.goto(path.as_uri())
    move(page, 4)
    page.locator("#groups button").click()
    chosen = page.locator("#edges path.chosen").evaluate_all("p => p.map(e => e.dataset.edge)")
    ends = {e.name: {e.sender, e.receiver.split("<")[0]} for e in circuit.edges()}
    assert set(chosen) == {name for name, nodes in ends.items() if {one, two} & nodes}
    (tmp_path / "other.html").write_text("<p>no page of a circuit</p>")
    with pytest.raises(UserError, match="not the page of a circuit"):
        graph.with_labels(tmp_path / "other.html")


def test_a_click_on_a_head_says_why_it_looks_there(show):
    graph = scored()
    circuit = graph.greedy(80).prune()
    head = next(edge.sender for edge in circuit.edges() if edge.sender.startswith("a1"))
    other = next(edge.sender for edge in circuit.edges() if edge.sender != head)
    by = pd.Series({other: 2.0, "m2": -0.5})
    pairs = pd.DataFrame({"q": ["m0"], "k": [other], "term": [1.25]})
    answers = pd.DataFrame({"key": [0], "token": ["A"], "sender": [other], "answers": [0.3]})
    weights = np.array([[1.0, 0.0], [0.7, 0.3]])
    why = HeadReasons(["A", " B"], weights, 1, 0, 1.5, None, by, by, pairs, 0.3, answers)
    page = show(graph, sizes=SIZES, patterns={head: [why]})
    move(page, 4)
    page.locator(f'.node[data-node="{head}"]').click()
    text = page.inner_text("#patterns")
    for words in ("looks most to “A” (token 0), with weight 0.7", "attention logit there is 1.5",
                  "Key side", "Query side", "+1.25", "-0.5", "+0.3 in logits"):  # fmt: skip
        assert words in text
    page.locator("#patterns .bars").first.get_by_role("button", name=other).click()
    assert page.inner_text("#note-name") == other


def test_the_address_keeps_what_is_chosen(show):
    page = show(scored(), sizes=SIZES)
    move(page, 3)
    page.locator('.node[data-node="logits"]').click()
    page.get_by_label("Search").fill("a1")
    page.reload()
    assert "40 selected" in page.inner_text("#size-text")
    assert page.inner_text("#note-name") == "logits"
    assert page.get_by_label("Search").input_value() == "a1"


def test_every_control_has_a_name_and_lines_differ_in_more_than_colour(show):
    page = show(scored(), scored(seed=1), sizes=SIZES, names=("A", "B"))
    controls = page.locator("button:visible, input:visible, select:visible")
    for control in controls.all():
        snapshot = control.aria_snapshot()
        assert '"' in snapshot, control.evaluate("e => e.outerHTML")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") != "BODY"
    tabbable = page.locator('#nodes .node[tabindex="0"]')
    assert tabbable.count() == 1  # one stop; arrow keys go on from there
    dashes = page.evaluate(
        "['first', 'second', 'both', 'opposite'].map(look => getComputedStyle("
        "document.querySelector(`#legend .${look}`)).strokeDasharray)"
    )
    assert len(set(dashes)) == 4
    page = show(scored(), sizes=SIZES)
    dashes = page.evaluate(
        "['helpful', 'harmful'].map(look => getComputedStyle("
        "document.querySelector(`#legend .${look}`)).strokeDasharray)"
    )
    assert len(set(dashes)) == 2
    harmful = {e.name for e in scored().greedy(5).prune().edges() if e.score > 0}
    move(page, 0)
    assert harmful <= drawn(page)


def test_the_page_opens_where_there_is_something_and_knows_what_does_the_task(tmp_path):
    graph = scored()
    scores = graph.scores.clone()
    scores[0] = scores[0] * 1e-6  # no small circuit reaches the input
    page = write_page(replace(graph, scores=scores), tmp_path / "page.html", selection="top_n")
    content = content_of(page)
    assert content["circuits"][0]["kept"][0] > 0
    assert content["sizes"][0] > 10
    assert content["does_task"] == DOES_TASK


def test_labels_of_the_second_graph_are_shown_too(tmp_path):
    first = scored().with_labels({"m0": "ours"})
    second = scored(seed=1).with_labels({"m0": "theirs", "m1": "also"})
    content = content_of(write_page(first, tmp_path / "page.html", second))
    assert content["labels"] == {"m0": "ours", "m1": "also"}

"""Pages of circuits for tests: what they know, and a real browser that shows them."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch

from eap import Graph, GraphConfig
from eap.figures.viewer import write_page

DESKTOP, PHONE = (1280, 800), (390, 844)
SMALL = GraphConfig(n_layers=3, n_heads=4, d_model=8, n_kv_heads=4)
GROUPED = replace(SMALL, n_kv_heads=2)
SIZES = [5, 10, 20, 40, 80]


def scored(config=SMALL, seed=0, **known):
    graph = Graph.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(graph.scores.shape, generator=generator) * graph.edge_exists
    scores[0] *= 3  # so that small circuits reach the input
    return replace(graph, scores=scores, higher_is_better=True, **known)


def content_of(path):
    text = path.read_text(encoding="utf8")
    return json.loads(re.search(r'id="content">(.*?)</script>', text, re.DOTALL)[1])


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium here: apt-get install chromium")
    # It must not look for its maker: some machines' networks refuse that noisily.
    quiet = ("no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync",
             "disable-background-networking", "disable-component-update")  # fmt: skip
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=chromium, args=[f"--{flag}" for flag in quiet]
        )
        yield started
        started.close()


@pytest.fixture
def show(browser, tmp_path):
    """Write a page and open it; at the end nothing may have gone wrong or been asked for."""
    problems, requests, pages = [], [], []

    def opened(graph, other=None, *, size=DESKTOP, **options):
        path = write_page(graph, tmp_path / "page.html", other, **options)
        width, height = size
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme="light")
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.close()
    assert problems == []
    assert all(url.startswith(("file:", "data:", "blob:")) for url in requests)


def move(page, position):
    page.locator("#size").evaluate(
        "(s, p) => { s.value = p; s.dispatchEvent(new Event('input')); }", position
    )


def drawn(page):
    return set(
        page.locator("#edges path:not([display])").evaluate_all(
            "paths => paths.map(p => p.dataset.edge)"
        )
    )


def listed(page):
    return page.locator("#rows tr").evaluate_all("rows => rows.map(r => r.dataset.edge)")

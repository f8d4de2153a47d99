"""Whatever is done to a graph's file: it is read, or refused in one line."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st
from outcomes import campaign, result_or_refusal

from eap import Graph, GraphConfig

CONFIG = GraphConfig(n_layers=2, n_heads=2, d_model=8, n_kv_heads=1, expanded_kv=True)
KEYS = ("cfg", "nodes", "edges", "score", "in_graph", "provenance", "score_sign", "n_heads", "x")

VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
        st.sampled_from([10**6, 2**31, 2**63, 10**400, -1, 0, -math.inf, math.nan, "", "m0->m1"]),
    ),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@cache
def saved(folder: Path, suffix: str) -> bytes:
    """A whole file of a small graph with everything in it."""
    graph = Graph.from_config(CONFIG)
    scores = torch.linspace(-1, 1, graph.scores.numel()).view_as(graph.scores) * graph.edge_exists
    graph = replace(
        graph,
        scores=scores,
        standard_errors=scores.abs(),
        is_exact=scores > 0,
        node_scores=scores[:, 0],
        node_errors=scores[:, 0],
        provenance={"model": {"name": "tiny"}},
        higher_is_better=True,
    ).greedy(9)
    path = folder / f"whole.{suffix}"
    graph.save(path)
    return path.read_bytes()


def load(path: Path) -> None:
    """Reads, or refuses as it should; a graph that is read can be used."""
    graph = result_or_refusal(lambda: Graph.load(path))
    if graph is None:
        return
    assert graph.prune().count_edges() <= graph.n_edges
    assert len(graph.nodes_in_graph()) <= graph.n_forward + 1


@st.composite
def changes(draw):
    """A path into a document and what happens there."""
    steps = draw(st.lists(st.integers(0, 10**4), min_size=1, max_size=4))
    return steps, draw(st.sampled_from(["replace", "delete", "add"])), draw(VALUES)


def apply(document, change):
    """Follow the steps as far as there are objects, then replace, delete or add a value."""
    steps, what, value = change
    for step in steps[:-1]:
        keys = list(document)
        following = document[keys[step % len(keys)]] if keys else None
        if not isinstance(following, dict) or not following:
            break
        document = following
    keys = list(document)
    if not keys:
        return
    key = keys[steps[-1] % len(keys)]
    if what == "delete":
        del document[key]
    else:
        document[key if what == "replace" else KEYS[steps[-1] % len(KEYS)]] = value


@campaign
@given(st.lists(changes(), min_size=1, max_size=4))
def test_changed_json_is_read_or_refused(tmp_path_factory, changed):
    folder = tmp_path_factory.getbasetemp()
    document = json.loads(saved(folder, "json"))
    for change in changed:
        apply(document, change)
    path = folder / "changed.json"
    path.write_text(json.dumps(document), encoding="utf8", errors="surrogatepass")
    load(path)


@campaign
@given(
    st.sampled_from(["json", "safetensors", "pt"]),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6),
    st.floats(0, 1),
    st.booleans(),
)
def test_damaged_bytes_are_read_or_refused(tmp_path_factory, suffix, flips, share, cut):
    folder = tmp_path_factory.getbasetemp()
    content = bytearray(saved(folder, suffix))
    for place, value in flips:
        content[place % len(content)] = value
    path = folder / f"damaged.{suffix}"
    path.write_bytes(content[: int(share * len(content))] if cut else content)
    load(path)


@campaign
@given(
    st.dictionaries(
        st.sampled_from(
            ["cfg", "src_nodes", "dst_nodes", "edges_scores", "edges_in_graph", "nodes_scores",
             "score_sign", "higher_is_better", "provenance"]
        ),
        VALUES
        | st.builds(
            lambda shape, dtype: torch.ones(shape, dtype=dtype),
            st.lists(st.integers(0, 20), max_size=3),
            st.sampled_from([torch.float32, torch.bool, torch.int64, torch.complex64]),
        ),
        min_size=1,
        max_size=3,
    )
)  # fmt: skip
def test_changed_torch_files_are_read_or_refused(tmp_path_factory, changed):
    folder = tmp_path_factory.getbasetemp()
    saved(folder, "pt")
    path = folder / "changed.pt"
    torch.save(torch.load(folder / "whole.pt", weights_only=True) | changed, path)
    load(path)


@campaign
@given(VALUES)
def test_a_deeply_nested_or_other_document_is_refused(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "other.json"
    path.write_text(json.dumps(value), encoding="utf8", errors="surrogatepass")
    load(path)
    path.write_text("[" * 100_000)
    load(path)

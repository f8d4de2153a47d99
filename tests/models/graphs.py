"""Shapes of graphs, and graphs of random scores, for tests."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import strategies as st

from eap import Graph, GraphConfig

GPT2 = GraphConfig(n_layers=12, n_heads=12, d_model=768, n_kv_heads=12)
GPT2_XL = GraphConfig(n_layers=48, n_heads=25, d_model=1600, n_kv_heads=25)
SMOLLM2 = GraphConfig(n_layers=30, n_heads=9, d_model=576, n_kv_heads=3)
PYTHIA = GraphConfig(n_layers=12, n_heads=12, d_model=768, n_kv_heads=12, parallel_attn_mlp=True)
SMALL = GraphConfig(n_layers=2, n_heads=2, d_model=8, n_kv_heads=2)

CONFIGS = st.builds(
    lambda n_layers, heads, parallel, expanded: GraphConfig(
        n_layers=n_layers,
        n_heads=heads[0],
        d_model=8,
        n_kv_heads=heads[1],
        parallel_attn_mlp=parallel,
        expanded_kv=expanded,
    ),
    st.integers(1, 3),
    st.sampled_from([(1, 1), (2, 2), (2, 1), (4, 2), (3, 3), (6, 2)]),
    st.booleans(),
    st.booleans(),
)


@st.composite
def graphs(draw):
    """Random scores; whole numbers among them, so that there are ties."""
    graph = Graph.from_config(draw(CONFIGS))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    scores = torch.randn(graph.scores.shape, generator=generator)
    if draw(st.booleans()):
        scores = scores.round()
    circuit = torch.rand(scores.shape, generator=generator) < draw(st.floats(0, 1))
    graph = replace(graph, scores=scores * graph.edge_exists, higher_is_better=draw(st.booleans()))
    return graph.with_edges(circuit & graph.edge_exists)

"""Results and graphs as the experiments write them, of random numbers, for the figure scripts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from eap.data.tasks import TASKS
from eap.graph.graph import Graph, GraphConfig
from eap.studies.sweep import greedy_by_random_scores

SMALL = GraphConfig(n_layers=4, n_heads=8, d_model=16, n_kv_heads=8)
FEW_TASKS = (
    "ioi", "greater-than", "fact-retrieval-comma", "greater-than-price", "greater-than-sequence"
)  # fmt: skip
"""Tasks of each kind of figure: Figure 2's, of years, Figure 1's, and two variants."""

GPT2_SHAPE = GraphConfig(n_layers=12, n_heads=12, d_model=16, n_kv_heads=12)


def fabricate_graphs(
    output: Path, model: str, tasks: Sequence[str] = FEW_TASKS, *, config: GraphConfig = SMALL
) -> None:
    """Scores of every task: exact ones, a close estimate (EAP-IG) and a rough one (EAP)."""
    for number, task in enumerate(tasks):
        generator = torch.Generator().manual_seed(number)
        graph = Graph.from_config(config)
        shape = graph.scores.shape
        exact = torch.randn(shape, generator=generator) ** 3 * graph.edge_exists
        noise = torch.randn(shape, generator=generator) * graph.edge_exists
        scores = {"real": exact, "ig": exact + 0.2 * noise, "vanilla": 0.6 * exact + noise}
        metric = TASKS[task].metric if task in TASKS else "logit_diff"
        folder = output / "graphs" / model
        for name, own in scores.items():
            scored = replace(graph, scores=own)
            scored.save(folder / "real_test" / f"{task}_{metric}_{name}.json")
            if name != "real":
                suffix = {"ig": "task", "vanilla": "vanilla"}[name]
                replace(scored, provenance={"task": task, "data": {"pairs": 7}}).save(
                    folder / f"{task}_{suffix}.json"
                )


def curve_table(
    methods: Sequence[str], *, seed: int = 0, sizes: Sequence[int] | None = None
) -> pd.DataFrame:
    """A table of pareto.py or get_real_values.py: methods that approach the clean run."""
    random = np.random.default_rng(seed)
    edges = np.array(sizes or [*range(30, 100, 10), *range(100, 1001, 100)])
    table: dict[str, object] = {"baseline": 3.0, "corrupted_baseline": -1.0, "edges": edges}
    for number, name in enumerate(methods):
        table[f"edges_{name}"] = (edges * 0.95).astype(int)
        share = 1 - np.exp(-edges / (150 + 100 * number)) + random.normal(0, 0.02, len(edges))
        table[f"loss_{name}"] = -1 + 4 * share
    return pd.DataFrame(table)


def bands_table(frame: pd.DataFrame, *, total_edges: int) -> pd.DataFrame:
    """What surrounds the curves of such a table."""
    names = [name.removeprefix("loss_") for name in frame if name.startswith("loss_")]
    table: dict[str, object] = {"edges": frame["edges"], "total_edges": total_edges}
    table |= {f"stderr_{name}": 0.15 for name in names}
    random = -1 + frame["edges"] / 2000
    table |= {"edges_random": frame["edges"] * 0.8, "loss_random": random}
    table |= {"loss_random_low": random - 0.2, "loss_random_high": random + 0.3}
    return pd.DataFrame(table)


def save(table: pd.DataFrame, path: Path, *, index: bool = False) -> None:
    """Write a CSV with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=index)


def fabricate_curves(output: Path, model: str, tasks: Sequence[str] = FEW_TASKS) -> None:
    """results/pareto and results/real of every task, with what surrounds the curves."""
    total = Graph.from_config(SMALL).n_edges
    studies = {
        "pareto": ("EAP", "EAP-IG", "EAP-IG-KL"),
        "real": ("real", "real-KL", "EAP-IG", "EAP-IG-KL", "EAP"),
    }
    for study, methods in studies.items():
        for number, task in enumerate(tasks):
            folder = output / "results" / study / model / "csv"
            frame = curve_table(methods, seed=number)
            save(frame, folder / f"{task}.csv")
            save(bands_table(frame, total_edges=total), folder / f"{task}_bands.csv")


def fabricate_published_curves(output: Path, model: str, task: str) -> None:
    """As other people's files are: another method, another order, an index, no total_edges."""
    frame = curve_table(["EAP-IG-JS", "EAP-IG-KL", "EAP", "EAP-IG"])
    frame = frame[frame.columns[::-1]]
    save(frame, output / "results" / "pareto" / model / "csv" / f"{task}.csv", index=True)


def fabricate_ig_test(output: Path, model: str, tasks: Sequence[str]) -> None:
    """results/ig_test of every task."""
    steps = ["vanilla", "2", "3", "5", "7", "10", "15", "20", "30", "50"]
    for number, task in enumerate(tasks):
        frame = curve_table(steps, seed=number)
        frame = frame.rename(
            columns={"edges": "n_edges"}
            | {f"edges_{name}": f"n_edges_{name}" for name in steps}
            | {f"loss_{name}": f"results_{name}" for name in steps}
        )
        name = f"{task}_{TASKS[task].metric}_ig_test.csv"
        save(frame, output / "results" / "ig_test" / model / "csv" / name)


def fabricate_cross_task(output: Path, model: str, tasks: Sequence[str] = FEW_TASKS) -> None:
    """The six tables of results/jaccard, and results/cross-task."""
    random = np.random.default_rng(0)
    n = len(tasks)
    for kind in ("edge", "node"):
        for name in ("ious", "iou_ps", "overlap"):
            values = random.uniform(0, 0.9, (n, n))
            values = values if name == "overlap" else (values + values.T) / 2
            np.fill_diagonal(values, 0 if name == "iou_ps" else 1)
            save(
                pd.DataFrame(values, index=list(tasks), columns=list(tasks)),
                output / "results" / "jaccard" / model / "csv" / f"{kind}_{name}.csv",
                index=True,
            )
    values = random.uniform(-1.2, 1, (n, n))
    np.fill_diagonal(values, 2.4)
    frame = pd.DataFrame(values, columns=list(tasks))
    frame["baseline"], frame["corrupted_baseline"] = 3.0, -1.0
    save(frame, output / "results" / "cross-task" / model / "csv" / "faithfulness.csv")


def fabricate_real_rank(output: Path, model: str, tasks: Sequence[str]) -> None:
    """Overlap by depth, for Figure 9, as compare_real.py writes it."""
    depths = range(25, 601, 25)
    for kind in ("node", "edge"):
        columns = {
            f"{task}_{pair}": [depth / 1000 for depth in depths]
            for task in tasks
            for pair in ("real_EAP", "real_EAP-IG", "EAP_EAP-IG")
        }
        folder = output / "results" / "real_rank" / model / "csv"
        save(pd.DataFrame({"depth": depths} | columns), folder / f"{kind}-overlap.csv")


def save_published_graph(graph: Graph, path: Path, *, seed: int = 0) -> None:
    """Write a random circuit as the paper's code does."""
    chosen = greedy_by_random_scores(graph, [20], 1, seed=seed)[0][0]
    scores = torch.randn(graph.scores.shape, generator=torch.Generator().manual_seed(seed)) ** 3
    scored = replace(chosen, scores=scores)
    nodes = {name: name in scored.nodes_in_graph() for name in (*scored.sender_names, "logits")}
    edges = {edge.name: (edge.score, edge.in_graph) for edge in scored.edges(in_graph_only=False)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(published_document(graph.config, nodes, edges)), encoding="utf8")


def published(config, *, nodes_as="bools", extra=()):
    """The JSON of a graph with other scores for every edge, of which a third are in the circuit."""
    graph = Graph.from_config(replace(config, expanded_kv=True))
    nodes = dict.fromkeys((*graph.sender_names, "logits"), True)
    edges = {
        name: (float(len(name) * index), index % 3 == 0)
        for index, name in reversed(list(enumerate(graph.edge_names())))  # in no particular order
    }
    extra = {"d_model": config.d_model, **dict(extra)}
    return published_document(config, nodes, edges, nodes_as=nodes_as, extra=extra)


def published_document(config, nodes, edges, *, nodes_as="bools", extra=()):
    """The JSON of a graph as the paper's code ("bools") or the EAP-IG library ("objects") has it.

    Args:
        config: of the graph.
        nodes: whether each is in the circuit, by name.
        edges: score, and whether it is in the circuit, by name.
        nodes_as: "bools" or "objects".
        extra: further entries of the configuration.
    """
    return {
        "cfg": {
            "n_layers": config.n_layers,
            "n_heads": config.n_heads,
            "parallel_attn_mlp": config.parallel_attn_mlp,
            **dict(extra),
        },
        "nodes": nodes
        if nodes_as == "bools"
        else {name: {"in_graph": inside} for name, inside in nodes.items()},
        "edges": {
            name: {"score": score, "in_graph": inside} for name, (score, inside) in edges.items()
        },
    }

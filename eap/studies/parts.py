"""How many parts of a circuit's nodes it needs: faithfulness by number of kept parts.

Edges and parts are scored on every other pair of the task; faithfulness is measured on the pairs
between them. Fewer than four pairs cannot be halved: then both are all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from eap.attribution import attribute
from eap.circuits import Circuit, faithfulness
from eap.data.dataset import Dataset
from eap.graph.graph import Graph
from eap.inside.part_attribution import PartScores, part_scores
from eap.model.model import Model
from eap.parts.basis import PARTS, PartCircuit, Parts, get_parts
from eap.parts.features import load_features
from eap.runtime.errors import UserError
from eap.statistics.measures import normalised

SHARES = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of the parts of a circuit's nodes that are kept."""


@dataclass(frozen=True, eq=False)
class PartStudy:
    """What is known of the parts of one task's circuit.

    Attributes:
        circuit: edges.
        scores: scores of the parts of its nodes, by kind.
        table: a row per kind and number of parts: parts, kept, of, share, edges, faithfulness,
            standard_error, random (as many parts drawn by chance), rest (share of the summed
            magnitudes that the nodes' rests, or error parts, have).
        provenance: origin of the numbers.
    """

    circuit: Graph
    scores: dict[str, PartScores]
    table: pd.DataFrame
    provenance: dict[str, Any]

    def top(self, n: int) -> pd.DataFrame:
        """The n best parts of each kind: parts, sender, part, score, standard_error."""
        frames = [scores.top_n(n).assign(parts=kind) for kind, scores in self.scores.items()]
        frame = pd.concat(frames, ignore_index=True)
        return frame[["parts", *(name for name in frame if name != "parts")]]


def part_study(
    model: Model,
    dataset: Dataset,
    *,
    metric: str = "logit_diff",
    size: int = 200,
    steps: int = 5,
    rule: str = "paper",
    kinds: Sequence[str | Parts] = ("hidden units", "channels"),
    shares: Sequence[float] = SHARES,
    seed: int = 0,
    **resources: Any,
) -> PartStudy:
    """Faithfulness of a circuit some of whose nodes keep only their best parts.

    Args:
        model: loaded model (`eap.load_model`).
        dataset: the task's pairs, two at least.
        metric: metric of scores and faithfulness.
        size: edges that are selected for the circuit, before pruning.
        steps: points of integrated gradients.
        rule: rule of integration.
        kinds: names of bases, or features; each is studied with the other nodes whole.
        shares: shares of the parts that are kept.
        seed: seed of the parts that are drawn by chance.
        **resources: batch_size, memory_budget (bytes), quiet.

    Raises:
        UserError: fewer than two pairs, no circuit of this size, or a circuit with none of the
            nodes that a basis splits.
    """
    if len(dataset) < 2:
        raise UserError("one pair says nothing of how faithful a circuit is; use more")
    found_on = measured_on = dataset
    if len(dataset) >= 4:
        found_on, measured_on = (
            replace(dataset, examples=dataset.examples[first::2]) for first in (0, 1)
        )
    options: dict[str, Any] = {"metric": metric, "steps": steps, "rule": rule, **resources}
    graph = attribute(model, found_on, **options)
    circuit = graph.greedy(min(size, graph.n_edges)).prune()
    if not circuit.count_edges():
        raise UserError(f"no path from the input to the logits is among the {size} best edges")
    nodes = circuit.nodes_in_graph()
    scores, tables = {}, []
    provenance: dict[str, Any] = {}
    for kind in kinds:
        basis = get_parts(kind)
        split = [
            name
            for number, name in enumerate(circuit.sender_names)
            if name in nodes and basis.count(model, number)
        ]
        if not split:
            raise UserError(f"no node of the circuit has {basis.kind}; give a larger --size")
        part_table = part_scores(model, found_on, parts=basis, senders=split, **options)
        scores[basis.kind] = part_table
        frame, provenance = _curve(
            model, circuit, part_table, measured_on, metric, shares, seed, resources
        )
        tables.append(frame)
    return PartStudy(circuit, scores, pd.concat(tables, ignore_index=True), provenance)


def _curve(
    model: Model,
    circuit: Graph,
    scores: PartScores,
    dataset: Dataset,
    metric: str,
    shares: Sequence[float],
    seed: int,
    resources: dict[str, Any],
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Faithfulness by number of kept parts, beside as many that are drawn by chance."""
    n = len(scores)
    numbers = sorted({round(share * n) for share in shares})
    drawn = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    circuits: list[Circuit] = [
        PartCircuit(circuit, scores.parts, scores.keep(number)) for number in numbers
    ]
    for number in numbers:
        mask = torch.zeros(n, dtype=torch.bool)
        mask[drawn[:number]] = True
        masks = {name: mask[scores.layout.of_sender(name)] for name in scores.layout.names}
        circuits.append(PartCircuit(circuit, scores.parts, masks))
    values = faithfulness(model, circuits, dataset, metric=metric, **resources)
    means = [float(values.clean.mean()), float(values.ablated.mean())]
    shares_kept = normalised(values.circuits.double().mean(1).numpy(), *means)
    sizes = scores.scores.abs()
    rests = sizes[[stop - 1 for stop in scores.layout.starts[1:]]]
    k = len(numbers)
    frame = pd.DataFrame(
        {
            "parts": scores.parts.kind,
            "kept": numbers,
            "of": n,
            "share": [number / n for number in numbers],
            "edges": circuit.count_edges(),
            "faithfulness": shares_kept[:k],
            "standard_error": values.standard_error[:k],
            "random": shares_kept[k:],
            "rest": float(rests.sum() / sizes.sum()) if float(sizes.sum()) else 0.0,
        }
    )
    return frame, values.provenance


def kinds_of(names: Sequence[str], features: str | Path | None, model: Model) -> list[str | Parts]:
    """The bases of a command line: known names, and features from a folder where there is one."""
    if unknown := [name for name in names if name not in PARTS]:
        raise UserError(f"unknown parts {unknown[0]!r:.60}; known are {', '.join(PARTS)}")
    return [*names, *([] if features is None else [load_features(features, model)])]

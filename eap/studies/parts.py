"""Faithfulness of a circuit by the number of parts that its nodes keep.

Edges and parts are scored on one half of the task's pairs (every other pair), and faithfulness is
measured on the other half. With fewer than four pairs, all pairs are used for both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from eap.attribution import attribute
from eap.circuits import Circuit, faithfulness
from eap.data.dataset import Dataset
from eap.graph.graph import Graph
from eap.inside.part_attribution import PartScores, check_once, part_scores
from eap.model.model import Model
from eap.parts.basis import PARTS, PartCircuit, Parts, get_parts
from eap.parts.features import load_features
from eap.runtime.errors import UserError
from eap.statistics.measures import normalised
from eap.studies.scoring import halves

SHARES = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of parts to keep in the circuit's nodes."""


@dataclass(frozen=True, eq=False)
class PartStudy:
    """Scores and faithfulness of the parts of one task's circuit.

    Attributes:
        circuit: the circuit, as edges.
        scores: scores of the parts of the circuit's nodes, by kind of part.
        table: one row per kind and number of parts, with the columns parts, kept, of, share, edges,
            faithfulness, standard_error, random (faithfulness with the same number of parts drawn
            at random) and rest (share of the nodes' rests, or error parts, in the sum of absolute
            scores).
        provenance: provenance of the numbers.
    """

    circuit: Graph
    scores: dict[str, PartScores]
    table: pd.DataFrame
    provenance: dict[str, Any]

    @property
    def ranked_by(self) -> dict[str, Any]:
        """Provenance of the scores of the parts; `parts` has the kinds."""
        kinds = list(self.scores)
        return {**self.scores[kinds[0]].provenance, "parts": kinds}

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
    expanded_kv: bool = False,
    **resources: Any,
) -> PartStudy:
    """Measure the faithfulness of a circuit in which some nodes keep only their best parts.

    Args:
        model: loaded model (`eap.load_model`).
        dataset: pairs of the task, two or more.
        metric: metric of scores and faithfulness.
        size: number of edges of the circuit before pruning.
        steps: number of points of integrated gradients.
        rule: integration rule.
        kinds: names of bases, or features; nodes that a basis does not split are kept whole.
        shares: shares of parts to keep.
        seed: random seed of the parts drawn at random.
        expanded_kv: whether each query head has its own k and v where heads share them.
        **resources: batch_size, memory_budget (bytes), quiet.

    Raises:
        UserError: there are fewer than two pairs, a kind is given twice, there is no circuit of
            this size, or the circuit has none of the nodes that a basis splits.
    """
    bases = [get_parts(kind) for kind in kinds]
    if not bases:
        raise UserError("kinds has no entry; give one or more kinds of parts, such as 'channels'")
    check_once("kinds", [basis.kind for basis in bases])
    found_on, measured_on = halves(dataset, "faithfulness")
    options: dict[str, Any] = {
        "metric": metric, "steps": steps, "rule": rule, "expanded_kv": expanded_kv, **resources
    }  # fmt: skip
    graph = attribute(model, found_on, **options)
    circuit = graph.greedy(min(size, graph.n_edges)).prune()
    if not circuit.count_edges():
        raise UserError(f"no path from the input to the logits is among the {size} best edges")
    nodes = circuit.nodes_in_graph()
    scores, tables = {}, []
    provenance: dict[str, Any] = {}
    for basis in bases:
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
    ranked_by = {kind: part_table.provenance for kind, part_table in scores.items()}
    provenance |= {
        "method": "faithfulness of parts",
        "parts": list(scores),
        "ranking": {"circuit": graph.provenance, "parts": ranked_by},
        "settings": {"size": size, "seed": seed, "shares": list(shares)},
    }
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
    """Faithfulness by number of parts kept, for the best parts and for parts drawn at random."""
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
    """The bases that a command line names, with features from a folder if one is given."""
    if unknown := [name for name in names if name not in PARTS]:
        raise UserError(f"unknown parts {unknown[0]!r:.60}; known are {', '.join(PARTS)}")
    return [*names, *([] if features is None else [load_features(features, model)])]

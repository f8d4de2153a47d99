"""Measured faithfulness of a ranking's circuits, read from the table of curves of the same run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from eap.figures import style
from eap.figures.tables import Results, read_bands, read_table
from eap.graph.graph import Graph
from eap.statistics.measures import normalised
from eap.studies.paths import shown
from eap.studies.provenance import comparable
from eap.studies.settings import PAPER_CURVES, file_suffix


@dataclass(frozen=True)
class Measured:
    """The faithfulness of one circuit.

    Attributes:
        n_edges: size of the circuit, after pruning.
        value: normalised faithfulness, from 0 (ablated model) to 1 (whole model).
        error: standard error of the value over examples; None if unknown.
    """

    n_edges: int
    value: float
    error: float | None = None

    def __str__(self) -> str:
        value = f"faithfulness {style.number(self.value, '.3f')}"
        if self.error is None:
            return value
        return f"{value} ± {style.number(self.error, '.3f')} (standard error)"


def read_measured(results: Results, name: str, graph: Graph) -> dict[int, Measured]:
    """Measured circuits of the graph `<task>_<suffix>`, by the number of edges selected.

    The circuits are those of `Graph.greedy(n).prune()`, and the values are from
    `results/pareto/<model>/csv/<task>.csv`. The result is empty if nothing was measured. It is also
    empty, with a printed note, if the table is of other data or other scores than the graph.
    """
    task, _, suffix = name.rpartition("_")
    try:
        table = read_table(results.csv("pareto", task), needs=["edges"])
    except FileNotFoundError:
        return {}
    suffixes = {curve: parts[0] for curve, parts in PAPER_CURVES.items()}
    names = [str(name) for name in table.frame]
    curves = [name.removeprefix("loss_") for name in names if name.startswith("loss_")]
    curve = next((c for c in curves if suffixes.get(c, file_suffix(c)) == suffix), None)
    if curve is None or f"edges_{curve}" not in table.frame:
        return {}
    # A ranking by KL is measured by the task's metric, so the metric of the scores is not compared.
    reason = _difference(graph, table.frame["edges"], table.frame[f"edges_{curve}"])
    scored = {key: value for key, value in graph.provenance.items() if key != "metric"}
    if (reason := comparable(table.metadata, scored) or reason) is not None:
        print(f"ignored: {shown(table.path)}, for the graph {name}: {reason}")
        return {}
    bands, column = read_bands(table), f"stderr_share_{curve}"
    frame = table.frame
    values = normalised(frame[f"loss_{curve}"], *table.baselines)
    errors = bands[column] if bands is not None and column in bands else [None] * len(frame)
    return {
        int(n): Measured(int(n_edges), float(value), None if error is None else float(error))
        for n, n_edges, value, error in zip(
            frame["edges"], frame[f"edges_{curve}"], values, errors, strict=True
        )
    }


def _difference(graph: Graph, selected: pd.Series, left: pd.Series) -> str | None:
    """A message if pruning leaves other numbers of edges than the table says; otherwise None."""
    sizes = [min(int(n), graph.n_edges) for n in selected]
    if graph.scores[graph.edge_exists].isnan().any():
        return "not all edges of the graph have scores"
    for n, circuit, n_left in zip(sizes, graph.greedy_circuits(sizes), left, strict=True):
        if circuit.prune().count_edges() != n_left:
            return (
                f"measured on other scores: of {n} selected edges, {int(n_left)} are left there "
                f"after pruning, and {circuit.prune().count_edges()} in this graph"
            )
    return None


def read_measured_beside(path: Path, graph: Graph) -> dict[int, Measured]:
    """`read_measured` for a graph in `<output>/graphs/<model>/<task>_<suffix>.json`."""
    path = path.resolve()
    if len(path.parents) < 3 or path.parents[1].name != "graphs":
        return {}
    return read_measured(Results(path.parents[2], path.parent.name), path.stem, graph)


def smallest_faithful(measured: Mapping[int, Measured], minimum: float) -> int | None:
    """Number of edges to select for the smallest circuit of at least `minimum` faithfulness.

    Returns:
        None if no measured circuit is faithful enough.
    """
    enough = [n for n, circuit in measured.items() if circuit.value >= minimum]
    return min(enough, key=lambda n: measured[n].n_edges, default=None)

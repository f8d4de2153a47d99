"""Comparison of several tasks' circuits: their overlap, and their faithfulness on other tasks."""

from collections.abc import Callable, Mapping

import pandas as pd

from eap.analysis.compare import Overlap, edge_overlap, node_overlap
from eap.circuits import faithfulness
from eap.data.dataset import Dataset
from eap.data.tasks import get_task
from eap.graph.graph import Graph
from eap.model.model import Model
from eap.runtime.progress import say
from eap.studies.settings import Settings

OVERLAPS: dict[str, Callable[[Graph, Graph], Overlap]] = {
    "edge": edge_overlap,
    "node": node_overlap,
}
MEASURES: dict[str, Callable[[Overlap], float]] = {
    "ious": lambda overlap: overlap.iou,
    "iou_ps": lambda overlap: overlap.p_value,
    "overlap": lambda overlap: overlap.precision,
}


def compare_circuits(circuits: Mapping[str, Graph]) -> dict[str, pd.DataFrame]:
    """Overlap tables by name, each with one row and one column per task.

    Returns:
        For edges and nodes, the tables `edge_ious` and `node_ious` (intersection over union),
        `edge_iou_ps` and `node_iou_ps` (probability of an overlap this large by chance), and
        `edge_overlap` and `node_overlap` (share of the row's circuit that is in the column's).
    """
    tables = {}
    for kind, compare in OVERLAPS.items():
        overlaps = {
            (row, column): compare(first, second)
            for row, first in circuits.items()
            for column, second in circuits.items()
        }
        for name, measure in MEASURES.items():
            tables[f"{kind}_{name}"] = pd.DataFrame(
                {
                    column: {row: measure(overlaps[row, column]) for row in circuits}
                    for column in circuits
                }
            )
    return tables


def cross_task_table(
    settings: Settings, model: Model, circuits: Mapping[str, Graph], datasets: Mapping[str, Dataset]
) -> pd.DataFrame:
    """The metric of every task (row) under every task's circuit (column), and the baselines."""
    rows = {}
    for task, dataset in datasets.items():
        metric = get_task(task).cross_task_metric
        say(f"{task} by {metric}, under the circuits of {len(circuits)} tasks")
        measured = faithfulness(
            model, list(circuits.values()), dataset, metric=metric, quiet=False,
            batch_size=settings.batch_size, memory_budget=settings.memory,
        )  # fmt: skip
        rows[task] = {
            **dict(zip(circuits, measured.circuits.mean(1).tolist(), strict=True)),
            "baseline": float(measured.clean.mean()),
            "corrupted_baseline": float(measured.ablated.mean()),
        }
    return pd.DataFrame.from_dict(rows, orient="index")

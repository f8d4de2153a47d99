"""Reading the cross-task studies: overlaps of circuits, faithfulness of one on another's task."""

import argparse

import numpy as np
import pandas as pd
from jaxtyping import Float

from eap.errors import UserError
from eap.figures.style import model_folder, required_table
from eap.measures import normalised

BASELINES = ["baseline", "corrupted_baseline"]


def read_square(args: argparse.Namespace, name: str) -> pd.DataFrame:
    """A table of results/jaccard/<model>/csv with a row and a column per task."""
    path = model_folder(args, "jaccard") / "csv" / f"{name}.csv"
    command = f"python overlap_heatmaps.py --model {args.model}"
    return _with_rows(required_table(path, command), name)


def read_faithfulness(args: argparse.Namespace) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Faithfulness of every circuit (column) on every task (row), normalised in two ways.

    Returns:
        As a share of the whole model's (1 is the clean run, 0 the corrupted one), and as a share of
        that of the task's own circuit.
    """
    path = model_folder(args, "cross-task") / "csv" / "faithfulness.csv"
    command = f"python all_cross_task_faithfulness.py --model {args.model}"
    table = required_table(path, command, needs=BASELINES)
    metric = _with_rows(table.drop(columns=BASELINES), path.name)
    clean, corrupted = (table[name].to_numpy()[:, None] for name in BASELINES)
    own = np.diag(metric)[:, None]
    return normalised(metric, clean, corrupted), normalised(metric, own, corrupted)


def _with_rows(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Rows are in the order of the columns: the files do not name them."""
    if len(table) != len(table.columns):
        raise UserError(
            f"{name} has {len(table)} rows for {len(table.columns)} tasks; it must have one each"
        )
    return table.set_axis(list(table.columns), axis="index")


def off_diagonal(table: pd.DataFrame) -> Float[np.ndarray, " n_pairs"]:
    """The values of a square table, row by row, without the diagonal."""
    return table.to_numpy(dtype=float)[~np.eye(len(table), dtype=bool)]


def explained_variance(
    x: Float[np.ndarray, "n_pairs n_features"], y: Float[np.ndarray, " n_pairs"]
) -> float:
    """R^2 of the least-squares regression of y on the columns of x and a constant."""
    design = np.column_stack([x, np.ones(len(y))])
    residuals = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    return float(1 - residuals.var() / y.var())

"""Results of the cross-task studies: overlap of circuits, and faithfulness on other tasks."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from eap.data.tasks import base_task
from eap.figures.tables import BASELINES, Results, Table, of_tasks, required_table
from eap.runtime.errors import UserError, quoted
from eap.statistics.measures import normalised
from eap.studies.paths import shown

OWN_DOES = 0.1
"""Smallest normalised faithfulness of a task's own circuit for comparing other circuits with it."""


def read_square(results: Results, name: str) -> Table:
    """Read a table of results/jaccard/<model>/csv, with one row and one column per task."""
    command = results.command("overlap_heatmaps.py")
    return with_rows(required_table(results.csv("jaccard", name), command))


def circuit_sizes(table: Table) -> dict[str, int]:
    """Numbers of edges of the tasks' circuits, if the metadata of the table has them."""
    return of_tasks(table.metadata, "n_edges", int)


def read_faithfulness(results: Results) -> Table:
    """Read the metric of every circuit (column) on every task (row), and the baselines."""
    command = results.command("all_cross_task_faithfulness.py")
    path = results.csv("cross-task", "faithfulness")
    return with_rows(required_table(path, command, needs=BASELINES))


def read_squares(results: Results, *overlaps: str) -> list[Table]:
    """Read tables of overlap by `read_square`, and then the table of `read_faithfulness`."""
    return [*(read_square(results, name) for name in overlaps), read_faithfulness(results)]


def share_of_model(table: pd.DataFrame) -> pd.DataFrame:
    """Faithfulness as a share of the whole model's: 1 is the clean run, 0 the corrupted run."""
    clean, corrupted = (table[name].to_numpy()[:, None] for name in BASELINES)
    return normalised(table[list(table.index)], clean, corrupted)


def share_of_own(table: pd.DataFrame) -> pd.DataFrame:
    """Faithfulness as a share of the faithfulness of the task's own circuit (on the diagonal).

    Args:
        table: table of tasks whose own circuits do the task (see `align_done`).
    """
    metric = table[list(table.index)]
    diagonal = np.diag(metric)[:, None]
    return normalised(metric, diagonal, table["corrupted_baseline"].to_numpy()[:, None])


def with_rows(table: Table) -> Table:
    """Name the rows of a square table as in the file, or else like its columns.

    Columns are put in the order of the rows, with the baselines (if there are any) last.

    Raises:
        UserError: rows and columns have different tasks.
    """
    tasks = [name for name in map(str, table.frame) if name not in BASELINES]
    numbered = table.names is None or all(name.strip().isdigit() for name in table.names)
    rows = tasks if numbered else [name.strip() for name in table.names or ()]
    if len(table.frame) != len(tasks):
        raise UserError(
            f"{shown(table.path)} has {len(table.frame)} rows for {len(tasks)} tasks; it must have "
            "one row per task"
        )
    if sorted(rows) != sorted(tasks):
        odd = next(name for name in rows if name not in tasks or rows.count(name) > 1)
        raise UserError(f"{shown(table.path)} has a row {quoted(odd)} without a column of its own")
    frame = table.frame.set_axis(rows, axis="index")
    columns = [*rows, *(name for name in BASELINES if name in frame)]
    return Table(frame[columns], table.path, table.metadata, tuple(rows))


def align(*tables: Table, tasks: Sequence[str] = ()) -> list[pd.DataFrame]:
    """Reduce square tables to the tasks that all of them have, in the same order.

    Prints which tasks are left out because a table lacks them.

    Args:
        tables: tables with named rows.
        tasks: tasks to show, in this order; empty: all, in the order of the first table.

    Raises:
        UserError: the tables have no task in common.
    """
    known = list(dict.fromkeys(name for table in tables for name in table.frame.index))
    if unknown := [task for task in tasks if task not in known]:
        print(f"left out: none of the tables has {', '.join(unknown)}")
    chosen = [task for task in tasks if task in known] or known
    for table in tables:
        if missing := [task for task in chosen if task not in table.frame.index]:
            print(f"left out: {', '.join(missing)}, which {shown(table.path)} does not have")
    common = [task for task in chosen if all(task in table.frame.index for table in tables)]
    if not common:
        raise UserError(f"{' and '.join(shown(table.path) for table in tables)} share no task")
    return [
        table.frame.loc[common, [*common, *(name for name in BASELINES if name in table.frame)]]
        for table in tables
    ]


def tasks_done(table: pd.DataFrame, *, own: bool = True) -> list[str]:
    """Tasks of a cross-task table that the model does; prints the tasks that it does not do.

    Args:
        table: table with one row per task, from `read_faithfulness`.
        own: whether the task's own circuit must also have a normalised faithfulness of at least
            `OWN_DOES`: a share of the own circuit's faithfulness is meaningless if it is near 0.
    """
    clean, corrupted = (table[name].to_numpy(dtype=float) for name in BASELINES)
    done = clean > corrupted
    if own:
        circuits = np.diag(table[list(table.index)].to_numpy(dtype=float))
        done &= circuits - corrupted >= OWN_DOES * (clean - corrupted)
    who = "the model or the task's own circuit hardly does" if own else "the model does not do"
    if not done.all():
        print(f"left out: {', '.join(map(str, table.index[~done]))}, which {who}")
    return [str(task) for task in table.index[done]]


def align_done(
    *tables: Table, tasks: Sequence[str] = (), own: bool = True
) -> tuple[list[pd.DataFrame], pd.DataFrame | None]:
    """Align tables, and drop the tasks that `tasks_done` leaves out of the last table.

    Returns:
        All tables except the last, and the last table. If no task is done, the last table is None
        and the others keep all tasks, because the overlap of circuits is still meaningful.
    """
    aligned = align(*tables, tasks=tasks)
    if done := tasks_done(aligned[-1], own=own):
        *others, last = align(*tables, tasks=done)
        return others, last
    print(f"{shown(tables[-1].path)} has no task that is done well enough: shares are left out")
    return aligned[:-1], None


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


def base_means(table: pd.DataFrame) -> pd.DataFrame:
    """The means of a square table over every task and its variants, as one row and column."""
    means = table.groupby(lambda task: base_task(str(task)), sort=False).mean()
    return means.T.groupby(lambda task: base_task(str(task)), sort=False).mean().T


def mantel_p(
    first: Float[np.ndarray, "n n"],
    second: Float[np.ndarray, "n n"],
    *,
    n_permutations: int = 4999,
    seed: int = 0,
) -> float:
    """Two-sided p-value of the correlation of two square tables with the same rows (Mantel 1967).

    Rows and columns of one table are permuted together, which preserves the dependence between the
    cells of a row or column, and the symmetry of a table, under the null hypothesis.

    Returns:
        The p-value, at least 1 / (n_permutations + 1); NaN if all cells of a table are equal.
    """
    n = len(first)
    off = ~np.eye(n, dtype=bool)
    generator = np.random.default_rng(seed)
    orders = np.array([generator.permutation(n) for _ in range(n_permutations)])
    permuted = first[orders[:, :, None], orders[:, None, :]][:, off]
    x, y = first[off], second[off]
    spread = np.std(x) * np.std(y) * len(x)
    if not spread > 0:
        return float("nan")
    centred = (y - y.mean()) / spread
    observed = abs(float(x @ centred))
    # Ties count as larger, in spite of rounding errors.
    as_large = np.abs(permuted @ centred) >= observed - 1e-12
    return (1 + int(as_large.sum())) / (n_permutations + 1)


def summary(overlaps: Mapping[str, pd.DataFrame], faithfulness: pd.DataFrame) -> str:
    """How well overlap predicts faithfulness: correlations over pairs of tasks, and joint R^2.

    The diagonal is 1 in all tables by definition, and is left out. Cells are not independent,
    because overlap is symmetric and the cells of one task share the task's effect. The p-values are
    therefore from Mantel tests, on means over each task and its variants.
    """
    y = off_diagonal(faithfulness)
    if len(y) < 6:
        return "too few tasks to say how well overlap predicts faithfulness"
    lines = ["how well overlap predicts faithfulness (as a share of the own circuit's):"]
    x = {name: off_diagonal(table) for name, table in overlaps.items()}
    for name, values in x.items():
        correlation = np.corrcoef(values, y)[0, 1]
        means = (base_means(table).to_numpy(float) for table in (overlaps[name], faithfulness))
        p = mantel_p(*means)
        lines.append(f"  {name}: Pearson's r {correlation:.2f} (p = {p:.2g}, Mantel)")
    fit = explained_variance(np.column_stack(list(x.values())), y)
    return "\n".join([*lines, f"  all overlaps, linear regression: R^2 {fit:.2f}"])

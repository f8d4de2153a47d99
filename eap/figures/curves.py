"""Faithfulness curves: the metric of circuits against their size."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eap.data.tasks import TASKS
from eap.figures.style import (
    GREY,
    METHODS,
    METRIC_NAMES,
    SKY,
    display_name,
    label_y,
    model_folder,
    panels,
    read_table,
    shared_legend,
)
from eap.measures import normalised

# The published tables of GPT-2 small do not say how many edges it has.
GPT2_EDGES = 32_491


def methods_of(frame: pd.DataFrame) -> list[str]:
    """The methods with a curve in a table: those we know in our order, then others."""
    found = [name.removeprefix("loss_") for name in frame.columns if name.startswith("loss_")]
    return [name for name in METHODS if name in found] + [n for n in found if n not in METHODS]


def baselines(frame: pd.DataFrame) -> tuple[float, float]:
    """The metric of the clean and of the corrupted run."""
    return float(frame["baseline"].iloc[0]), float(frame["corrupted_baseline"].iloc[0])


def draw_curves(
    ax: Axes,
    frame: pd.DataFrame,
    *,
    bands: pd.DataFrame | None = None,
    normalise: bool = True,
    methods: Sequence[str] | None = None,
) -> None:
    """Metric, or normalised faithfulness, against the number of edges after pruning.

    Args:
        ax: where.
        frame: columns baseline, corrupted_baseline, edges, loss_X and, if known, edges_X.
        bands: stderr_X (drawn as 95% confidence bands) and loss_random, if there is such a table.
        normalise: as a share of what lies between the corrupted (0) and the clean run (1).
        methods: which; None: all.
    """
    clean, corrupted = baselines(frame)

    def scale(values: Any) -> Any:
        return normalised(values, clean, corrupted) if normalise else values

    for y, line in ((scale(clean), "-"), (scale(corrupted), ":")):
        ax.axhline(y, color=GREY, linewidth=0.8, linestyle=line, zorder=0)
    if bands is not None and "loss_random" in bands:
        ax.fill_between(
            bands["edges_random"],
            scale(bands["loss_random_low"]),
            scale(bands["loss_random_high"]),
            color=GREY,
            alpha=0.3,
            linewidth=0,
            label="random circuits",
        )
    for name in methods if methods is not None else methods_of(frame):
        if f"loss_{name}" not in frame:
            continue
        label, colour, line, marker = METHODS.get(name, (name, SKY, "-.", "x"))
        edges = frame[f"edges_{name}"] if f"edges_{name}" in frame else frame["edges"]
        loss = frame[f"loss_{name}"]
        ax.plot(edges, scale(loss), line, marker=marker, color=colour, label=label)
        if bands is not None and f"stderr_{name}" in bands:
            spread = 1.96 * bands[f"stderr_{name}"].fillna(0.0)
            ax.fill_between(
                edges, scale(loss - spread), scale(loss + spread), color=colour, alpha=0.15, lw=0
            )
    ax.margins(x=0.02)


def total_edges(model: str, *tables: pd.DataFrame | None) -> int | None:
    """The number of edges of the whole graph, from the first table that has it."""
    for table in tables:
        if table is not None and "total_edges" in table:
            return int(table["total_edges"].iloc[0])
    return GPT2_EDGES if Path(model).name == "gpt2" else None


def edges_label(total: int | None) -> str:
    """Label of the axis of edges."""
    return "edges in circuit" if total is None else f"edges in circuit (of {total:,})"


def curve_figure(
    frames: Mapping[str, pd.DataFrame],
    bands: Mapping[str, pd.DataFrame],
    *,
    normalise: bool,
    model: str,
    columns: int = 3,
) -> Figure:
    """One panel of faithfulness curves per task.

    Args:
        frames: table of each task.
        bands: what surrounds the curves, of the tasks that have it.
        normalise: draw normalised faithfulness, not the metric.
        model: its name, for the number of edges where the tables do not have it.
        columns: panels side by side.
    """
    figure, axes = panels(len(frames), columns=columns)
    for ax, (task, frame) in zip(axes, frames.items(), strict=True):
        own = bands.get(task)
        draw_curves(ax, frame, bands=own, normalise=normalise)
        ax.set_title(display_name(task))
        ax.set_xlabel(edges_label(total_edges(model, frame, own)))
        if normalise:
            limit_outliers(ax)
        else:
            ax.set_ylabel(METRIC_NAMES[TASKS[task].metric] if task in TASKS else "metric")
    if normalise:
        label_y(axes, "normalised faithfulness")
    shared_legend(figure, axes)
    return figure


def limit_outliers(ax: Axes) -> None:
    """Draw normalised faithfulness between -0.5 and 1.5 at most: what lies outside is cut off."""
    low, high = ax.get_ylim()
    ax.set_ylim(max(low, -0.5), min(high, 1.5))


def read_bands(args: argparse.Namespace, study: str, tasks: Sequence[str]) -> dict[str, Any]:
    """What surrounds the curves of those tasks that have such a table."""
    folder = model_folder(args, study) / "csv"
    paths = {task: folder / f"{task}_bands.csv" for task in tasks}
    return {task: read_table(path) for task, path in paths.items() if path.exists()}

"""Faithfulness curves: the metric of circuits against their size."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from eap.figures.style import (
    GREY,
    METHODS,
    add_note,
    display_name,
    label_y,
    method_look,
    metric_name,
    panels,
    scale_sizes,
    shared_legend,
    styled,
)
from eap.figures.tables import BASELINES, Table, check_comparable, origin_note, read_bands
from eap.statistics.measures import normalised

# Number of edges in GPT-2 small, which the published tables do not record.
GPT2_EDGES = 32_491

# Half the width of a 95% confidence band, in standard errors.
CONFIDENCE = 1.96


def methods_of(frame: pd.DataFrame) -> list[str]:
    """Methods with a curve in a table: known methods in the order of `METHODS`, then others."""
    names = [name.removeprefix("loss_") for name in frame.columns if name.startswith("loss_")]
    return [name for name in METHODS if name in names] + [n for n in names if n not in METHODS]


def draw_curves(
    ax: Axes,
    frame: pd.DataFrame,
    *,
    bands: pd.DataFrame | None = None,
    normalise: bool = True,
    methods: Sequence[str] | None = None,
    linear: bool | None = False,
) -> list[float]:
    """Draw the metric, or normalised faithfulness, over the number of edges after pruning.

    Args:
        ax: axes to draw on.
        frame: table with the columns baseline, corrupted_baseline, edges, loss_X and, if known,
            edges_X.
        bands: table with the same rows as `frame`, with standard errors stderr_X of the metric and
            stderr_share_X of the normalised faithfulness (drawn as 95% confidence bands), and
            loss_random_low and loss_random_high. Missing columns are not drawn.
        normalise: whether to rescale values so that the corrupted run is 0 and the clean run 1.
        methods: methods to draw; None: all.
        linear: whether the size axis is linear even if most sizes crowd at the left; None: the
            caller scales the axis, as `style.scale_sizes` does for all panels of a figure.

    Returns:
        Sizes of the circuits.
    """
    clean, corrupted = (float(frame[name].iloc[0]) for name in BASELINES)

    def scale(values: Any) -> Any:
        return normalised(values, clean, corrupted) if normalise else values

    for y, line in ((scale(clean), "-"), (scale(corrupted), ":")):
        ax.axhline(y, color=GREY, linewidth=0.8, linestyle=line, zorder=0)
    drawn: list[float] = []
    if bands is not None:
        draw_random(ax, bands, normalise=normalise)
    for name in methods if methods is not None else methods_of(frame):
        if f"loss_{name}" not in frame:
            continue
        label, colour, line, marker = method_look(name)
        edges = frame[f"edges_{name}"] if f"edges_{name}" in frame else frame["edges"]
        values = scale(frame[f"loss_{name}"])
        drawn += edges.tolist()
        ax.plot(edges, values, line, marker=marker, color=colour, label=label)
        error = f"stderr_share_{name}" if normalise else f"stderr_{name}"
        if bands is not None and error in bands:
            spread = CONFIDENCE * bands[error].fillna(0.0).to_numpy()
            ax.fill_between(
                edges, values - spread, values + spread, color=colour, alpha=0.15, linewidth=0
            )
    if drawn and linear is not None:
        scale_sizes([ax], drawn, linear=linear)
    ax.margins(x=0.02)
    return drawn


def draw_random(ax: Axes, bands: pd.DataFrame, *, normalise: bool) -> None:
    """Draw the range of a few random circuits, averaged over neighbouring sizes.

    Normalised values are drawn only if the table has baselines on the same pairs.
    """
    names = ["edges_random", "loss_random_low", "loss_random_high"]
    own_baselines = ["baseline_random", "corrupted_baseline_random"]
    if not {*names, *(own_baselines if normalise else ())} <= {*bands.columns}:
        return
    table = bands.sort_values("edges_random").dropna(subset=names)
    if table.empty:
        return
    low, high = (table[name].rolling(3, center=True, min_periods=1).mean() for name in names[1:])
    if normalise:
        low, high = (normalised(x, *(table[name] for name in own_baselines)) for x in (low, high))
    ax.fill_between(
        table["edges_random"], low, high,
        color=GREY, alpha=0.3, linewidth=0, label="random circuits", zorder=0.5,
    )  # fmt: skip
    # The band has no height for one random circuit, or if all random circuits do nothing.
    ax.plot(table["edges_random"], (low + high) / 2, color=GREY, linewidth=1.6, zorder=0.5)


def total_edges(model: str, *tables: pd.DataFrame | None) -> int | None:
    """The number of edges of the whole graph, from the first table that has it."""
    for table in tables:
        if table is not None and "total_edges" in table:
            return int(table["total_edges"].iloc[0])
    return GPT2_EDGES if Path(model).name == "gpt2" else None


def edges_label(total: int | None, *, logarithmic: bool = False) -> str:
    """Label of the axis of circuit sizes."""
    what = "edges, log scale" if logarithmic else "edges in circuit"
    return what if total is None else f"{what} (of {total:,})"


@styled
def curve_figure(
    tables: Mapping[str, Table],
    *,
    normalise: bool,
    model: str,
    columns: int = 3,
    linear: bool = False,
    exact: Mapping[str, Table] | None = None,
    methods: Sequence[str] | None = None,
    finish: Callable[[Axes, int | None], None] | None = None,
) -> Figure:
    """Draw one panel of faithfulness curves per task.

    Args:
        tables: table of each task; the bands are read from the file in the same folder.
        normalise: whether to draw normalised faithfulness instead of the metric.
        model: name of the model, for the number of edges if the tables do not have it.
        columns: number of panels per row.
        linear: whether size axes are linear.
        exact: tables of get_real_values.py by task, whose curves from exact values are added.
        methods: curves of `tables` to draw; None: all.
        finish: function that is called with each panel and the number of all edges.

    Raises:
        UserError: the tables are of different models, or one task's tables are of different data or
            metrics.
    """
    exact = exact or {}
    everything = [*tables.values(), *exact.values()]
    check_comparable(everything)
    figure, axes = panels(len(tables), columns=columns)
    sizes: list[float] = []
    totals = []
    for ax, (task, table) in zip(axes, tables.items(), strict=True):
        bands = read_bands(table)
        sizes += draw_curves(
            ax, table.frame, bands=bands, normalise=normalise, methods=methods, linear=None
        )
        if task in exact:
            sizes += draw_curves(
                ax, exact[task].frame, bands=read_bands(exact[task]), normalise=normalise,
                methods=EXACT, linear=None,
            )  # fmt: skip
        totals.append(total_edges(model, table.frame, bands))
        ax.set_title(display_name(task))
        if normalise:
            limit_outliers(ax)
        else:
            ax.set_ylabel(metric_name(table.metric))
    logarithmic = scale_sizes(axes, sizes, linear=linear) if sizes else False
    for ax, total in zip(axes, totals, strict=True):
        ax.set_xlabel(edges_label(total, logarithmic=logarithmic))
        if finish is not None:
            finish(ax, total)
    if normalise:
        label_y(axes, "normalised faithfulness")
    shared_legend(figure, axes, columns=4 if len(axes) > 2 else 3)
    add_note(figure, origin_note(everything))
    return figure


EXACT = ("real", "real-KL")
"""Columns of the curves from exact values."""


def limit_outliers(ax: Axes) -> None:
    """Limit the axis of normalised faithfulness to -0.5 to 1.5; values outside are cut off."""
    low, high = ax.get_ylim()
    ax.set_ylim(max(low, -0.5), min(high, 1.5))
    ax.yaxis.set_major_locator(MultipleLocator(0.25))  # the same in all panels


@styled
def task_panels(
    tables: Mapping[str, Table], draw: Callable[[Axes, Table], None], *, y_label: str
) -> Figure:
    """Draw one panel per task with `draw`, and add a shared legend and a shared y label."""
    figure, axes = panels(len(tables))
    for ax, (task, table) in zip(axes, tables.items(), strict=True):
        draw(ax, table)
        ax.set_title(display_name(task))
    label_y(axes, y_label)
    shared_legend(figure, axes)
    add_note(figure, origin_note(tables.values()))
    return figure

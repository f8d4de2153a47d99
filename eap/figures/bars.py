"""Agreement of estimates with exact values: bars per task, and lines against a depth."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes

from eap.figures.style import (
    BLACK,
    METHODS,
    display_name,
    method_look,
    task_colour,
)


def draw_method_bars(
    ax: Axes, values: Mapping[str, float], tasks: Sequence[str], *, suffix: str
) -> None:
    """Two bars per task: `<task>_vanilla<suffix>` (EAP) and `<task>_ig<suffix>` (EAP-IG)."""
    for offset, (method, key) in zip(
        (-0.2, 0.2), (("EAP", "vanilla"), ("EAP-IG", "ig")), strict=True
    ):
        label, colour, _, _ = METHODS[method]
        heights = [values[f"{task}_{key}{suffix}"] for task in tasks]
        places = [place + offset for place in range(len(tasks))]
        ax.bar(places, heights, 0.38, color=colour, label=label)
    ax.set_xticks(range(len(tasks)), [display_name(task) for task in tasks], rotation=35)
    for text in ax.get_xticklabels():
        text.set_horizontalalignment("right")
        text.set_rotation_mode("anchor")
    ax.tick_params(axis="x", length=0)


def draw_task_lines(
    ax: Axes,
    table: pd.DataFrame,
    tasks: Sequence[str],
    columns: Mapping[str, str],
    *,
    start: int = 0,
) -> None:
    """Columns `<task>_<column>` against `depth`, from row `start`: colour by task, dots for EAP."""
    for task in tasks:
        for method, column in columns.items():
            ax.plot(
                table["depth"][start:],
                table[f"{task}_{column}"][start:],
                ":" if method == "EAP" else "-",
                color=task_colour(task),
                label=display_name(task) if method != "EAP" else None,
            )
    for method in columns:
        line = ":" if method == "EAP" else "-"
        ax.plot([], [], line, color=BLACK, label=f"{method_look(method)[0]} against exact values")


def draw_method_lines(ax: Axes, table: pd.DataFrame, task: str, columns: Mapping[str, str]) -> None:
    """Columns `<task>_<column>` against `depth`, in the colours of the methods."""
    for method, column in columns.items():
        label, colour, _, _ = method_look(method)
        ax.plot(table["depth"], table[f"{task}_{column}"], color=colour, label=label)
    ax.set_title(display_name(task))
    ax.set_ylim(-0.03, 1.03)

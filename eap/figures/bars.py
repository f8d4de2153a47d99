"""Agreement of estimates with exact values: bars per task, and lines over depth in the ranking."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes

from eap.figures.style import BLACK, METHODS, TASK_MARKERS, display_name, method_look, task_colour
from eap.methods import METHODS as ALL_METHODS
from eap.studies.settings import file_suffix


def draw_method_bars(
    ax: Axes, values: Mapping[str, float], tasks: Sequence[str], *, suffix: str
) -> None:
    """Draw a bar per task and method: `<task>_vanilla<suffix>` is EAP, `<task>_ig<suffix>` EAP-IG.

    Other methods, with keys by name, are drawn if all tasks have a value.
    """
    keys = {"EAP": "vanilla", "EAP-IG": "ig"}
    keys |= {name: file_suffix(name) for name in (*METHODS, *ALL_METHODS) if name not in keys}
    drawn = {
        name: [values[f"{task}_{key}{suffix}"] for task in tasks]
        for name, key in keys.items()
        if all(f"{task}_{key}{suffix}" in values for task in tasks)
    }
    width = 0.8 / len(drawn)
    for number, (method, heights) in enumerate(drawn.items()):
        label, colour, _, _ = method_look(method)
        offset = (number + 0.5) * width - 0.4
        places = [place + offset for place in range(len(tasks))]
        ax.bar(places, heights, 0.95 * width, color=colour, label=label)
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
    """Draw columns `<task>_<column>` over `depth`, from row `start`, with a look per task.

    Lines of EAP are dotted.
    """
    every = max(1, (len(table) - start) // 7)
    for number, task in enumerate(tasks):
        for method, column in columns.items():
            ax.plot(
                table["depth"][start:],
                table[f"{task}_{column}"][start:],
                ":" if method == "EAP" else "-",
                color=task_colour(task),
                marker=TASK_MARKERS.get(task, "h"),
                markevery=(number * every // len(tasks), every),
                label=display_name(task) if method != "EAP" else None,
            )
    for method in columns:
        line = ":" if method == "EAP" else "-"
        ax.plot([], [], line, color=BLACK, label=f"{method_look(method)[0]} against exact values")


def draw_method_lines(ax: Axes, table: pd.DataFrame, task: str, columns: Mapping[str, str]) -> None:
    """Draw columns `<task>_<column>` over `depth`, in the colours of the methods."""
    for method, column in columns.items():
        label, colour, _, _ = method_look(method)
        ax.plot(table["depth"], table[f"{task}_{column}"], color=colour, label=label)
    ax.set_title(display_name(task))
    ax.set_ylim(-0.03, 1.03)

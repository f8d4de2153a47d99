"""Heat maps of square tables of tasks, with the numbers in the cells."""

import textwrap
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from eap.figures.style import PAPER_WIDTH, number, panels, short_name, styled

# Probabilities below this value all have the darkest colour.
SMALLEST_P = 1e-10


@styled
def heatmap_figure(
    table: pd.DataFrame,
    *,
    title: str,
    probabilities: bool = False,
    sizes: Mapping[str, int] | None = None,
) -> Figure:
    """Draw one square table.

    Args:
        table: table with one row and one column per task.
        title: title of the figure.
        probabilities: whether the numbers are p-values, which have a logarithmic colour scale.
        sizes: numbers of edges of the tasks' circuits, written after the names of the rows.
    """
    figure, (ax,) = panels(1, height=4.2)
    image = draw_heatmap(ax, table, title=title, probabilities=probabilities, sizes=sizes)
    figure.colorbar(
        image, ax=ax, shrink=0.6, pad=0.03, extend="min" if probabilities else "neither"
    )
    return figure


@styled
def heatmap_row(
    tables: Mapping[str, pd.DataFrame],
    *,
    labels: Mapping[str, tuple[str, str]] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Figure:
    """Draw square tables side by side with one colour bar.

    Row names are shown at the first table, and at each table whose rows differ from the first.

    Args:
        tables: tables by title.
        labels: labels of the x and y axes, by title.
        sizes: numbers of edges of the tasks' circuits, written after the row names of the first
            table.
    """
    figure, axes = plt.subplots(1, len(tables), figsize=(1.5 * PAPER_WIDTH, 4.1), squeeze=False)
    flat = list(axes.flat)
    first = next(iter(tables.values()))
    for place, (ax, (title, table)) in enumerate(zip(flat, tables.items(), strict=True)):
        image = draw_heatmap(ax, table, title=title, sizes=None if place else sizes)
        if place and list(table.index) == list(first.index):
            ax.set_yticks([])
        columns, rows = (labels or {}).get(title, ("", ""))
        ax.set_xlabel(columns)
        ax.set_ylabel(rows)
    figure.colorbar(image, ax=flat, shrink=0.6, pad=0.01, extend="both")
    return figure


@styled
def draw_heatmap(
    ax: Axes,
    table: pd.DataFrame,
    *,
    title: str,
    low: float = 0.0,
    high: float = 1.0,
    probabilities: bool = False,
    sizes: Mapping[str, int] | None = None,
) -> AxesImage:
    """Draw a table with the numbers in the cells, and rows and columns by display name.

    Colours run from `low` to `high`; numbers outside have the colour of the nearer end, and cells
    without a number are grey. For `probabilities`, the colour scale is logarithmic, and small
    values are dark.
    """
    values = table.to_numpy(dtype=float).copy()
    if probabilities:
        np.fill_diagonal(values, np.nan)  # a circuit's overlap with itself is no evidence
    norm: Normalize = LogNorm(SMALLEST_P, 1.0, clip=True) if probabilities else Normalize(low, high)
    colours: Colormap = plt.get_cmap("Blues_r" if probabilities else "Blues").with_extremes(
        bad="#DDDDDD"
    )
    # A probability too small for a float is 0, which has no logarithm.
    shown = np.maximum(values, SMALLEST_P) if probabilities else values
    image = ax.imshow(np.ma.masked_invalid(shown), cmap=colours, norm=norm)
    backgrounds = np.asarray(colours(norm(np.ma.masked_invalid(shown))))
    write = write_probability if probabilities else number
    texts = {place: write(float(values[place])) for place in np.ndindex(values.shape)}
    size = cell_size(len(table), max(map(len, texts.values())))
    for (row, column), text in texts.items():
        ax.text(
            column, row, text, ha="center", va="center", fontsize=size,
            color=readable_on(backgrounds[row, column, :3]),
        )  # fmt: skip
    names = [short_name(str(name)) for name in table.columns]
    ax.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    rows = [
        short_name(str(name)) + (f" ({sizes[name]:,})" if sizes and name in sizes else "")
        for name in table.index
    ]
    ax.set_yticks(range(len(rows)), rows)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    # White lines between the cells.
    for place in range(1, max(values.shape)):
        for line in (ax.axhline, ax.axvline):
            line(place - 0.5, color="white", linewidth=0.8)
    ax.set_title(textwrap.fill(title, 32))  # narrow, because of the colour bar
    return image


def write_probability(value: float) -> str:
    """Format a p-value briefly for a cell: 3e-5, not 3e-05, and "<1e-10" below `SMALLEST_P`."""
    if value < SMALLEST_P:
        return f"<{write_probability(SMALLEST_P)}"
    if value >= 0.01:
        return number(value, ".2g")
    text = number(value, ".0e")
    mantissa, e, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if e else text


def cell_size(n: int, longest: int = 4) -> float:
    """Font size in points for the cells of a table of `n` rows with `longest` letters in a cell."""
    return float(np.clip(56 / n, 3.5, 8) * min(1.0, 3.8 / longest))


def readable_on(background: Float[np.ndarray, "3"]) -> str:
    """Black or white, whichever has the larger contrast (by WCAG 2) with a colour."""
    linear = np.where(
        background <= 0.04045, background / 12.92, ((background + 0.055) / 1.055) ** 2.4
    )
    luminance = float(linear @ (0.2126, 0.7152, 0.0722))
    return "black" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "white"

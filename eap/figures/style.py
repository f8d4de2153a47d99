"""The style of all figures: colours, names, panels, legends, files.

A public function that makes a figure sets the style only while it runs. The caller's style stays
unchanged, and `figure.savefig("x.png")` needs no style.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from itertools import cycle
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from zlib import crc32

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, SymmetricalLogLocator

from eap.data.tasks import TASKS
from eap.runtime.atomic import write_atomically
from eap.studies.paths import shown

# Okabe and Ito's colours, which colour-blind readers can distinguish.
BLACK, ORANGE, SKY, GREEN, BLUE, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#CC79A7",
)  # fmt: skip
GREY = "#8C8C8C"

METHODS: dict[str, tuple[str, str, str, str]] = {
    # column: (name in the legend, colour, line, marker)
    # EAP blue and EAP-IG orange, as in the paper's figures
    "EAP": ("EAP", BLUE, "-", "o"),
    "EAP-IG": ("EAP-IG", ORANGE, "-", "s"),
    "EAP-IG-KL": ("EAP-IG (KL)", GREEN, "-", "^"),
    "real": ("activation patching", BLACK, "--", "D"),
    "real-KL": ("activation patching (KL)", PURPLE, "--", "v"),
    "EAP-IG-JS": ("EAP-IG (JS)", SKY, "-", "X"),
}
"""Look of each method in all figures."""

# Paul Tol's muted colours, also distinguishable; no method has one of them.
_MUTED = ("#332288", "#CC6677", "#117733", "#DDCC77", "#AA4499", "#88CCEE", "#882255", "#999933")
TASK_COLOURS = dict(zip(TASKS, cycle(_MUTED), strict=False))
TASK_MARKERS = dict(zip(TASKS, cycle("osD^vPX*"), strict=False))
"""Markers of the tasks, because colour-blind readers cannot distinguish some of the colours."""

METRIC_NAMES = {
    "logit_diff": "logit difference",
    "prob_diff": "probability difference",
    "kl": "KL divergence (nats)",
    "js": "JS divergence (nats)",
}

# Width of a two-column figure in a paper, in inches.
PAPER_WIDTH = 7.0

STYLE = {
    "axes.labelsize": 9,
    "axes.linewidth": 0.9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "font.family": "sans-serif",
    "font.size": 9,
    "legend.fontsize": 8.3,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 3.5,
    "pdf.fonttype": 42,
    "xtick.labelsize": 8.3,
    "ytick.labelsize": 8.3,
}

P = ParamSpec("P")
T = TypeVar("T")


@contextmanager
def paper_style() -> Iterator[None]:
    """Apply the style of the figures, independently of the caller's style."""
    with plt.style.context(["default", STYLE]):
        yield


def styled(draw: Callable[P, T]) -> Callable[P, T]:
    """Decorate a drawing function so that it runs in `paper_style`."""

    @wraps(draw)
    def draw_in_style(*args: P.args, **kwargs: P.kwargs) -> T:
        with paper_style():
            return draw(*args, **kwargs)

    return draw_in_style


# ---- texts ---------------------------------------------------------------------------------------


def plain(text: str) -> str:
    """Escape a text so that matplotlib draws it literally, without mathematics."""
    text = " ".join(text.split()).replace("$", r"\$")
    # A legend omits labels that begin with an underscore.
    return f"\N{ZERO WIDTH SPACE}{text}" if text.startswith("_") else text


def typed_name(task: str) -> str:
    """Display name of a task, as plain text."""
    return TASKS[task].display_name if task in TASKS else task


def display_name(task: str) -> str:
    """Display name of a task, escaped for matplotlib."""
    return plain(typed_name(task))


def short_name(task: str) -> str:
    """Display name of a task, shortened for crowded figures."""
    return display_name(task).replace("Greater-Than (", "GT (")


def metric_name(metric: str | None) -> str:
    """Name of a metric for axis labels; None if the metric is not recorded."""
    return "metric (not recorded)" if metric is None else METRIC_NAMES.get(
        metric, plain(metric)
    )  # fmt: skip


def method_look(method: str) -> tuple[str, str, str, str]:
    """Legend name, colour, line and marker of a method.

    The look of a method that is not in `METHODS` is derived from a hash of its name.
    """
    if method in METHODS:
        return METHODS[method]
    number = crc32(method.encode())
    return plain(method), _MUTED[number % len(_MUTED)], "-.", "xP*p<>"[number // len(_MUTED) % 6]


def task_colour(task: str) -> str:
    """Colour of a task; for user-defined tasks, derived from a hash of the name."""
    return TASK_COLOURS.get(task, _MUTED[crc32(task.encode()) % len(_MUTED)])


def number(value: float, spec: str = ".2f") -> str:
    """Format a number, without "-0.00", and with a dash for a missing number."""
    if not np.isfinite(value):
        return "–"  # noqa: RUF001
    text = format(value, spec)
    return text[1:] if re.fullmatch(r"-[0.]+(e[+-]00)?", text) else text


# ---- panels --------------------------------------------------------------------------------------


@styled
def panels(
    n: int, *, columns: int = 3, height: float = 2.2, width: float = PAPER_WIDTH, **options: Any
) -> tuple[Figure, list[Axes]]:
    """Make a figure of `n` panels in rows of at most `columns`, each `height` inches high."""
    columns = min(n, columns)
    rows = -(-n // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(width if columns > 1 else 0.62 * width, height * rows + 0.4),
        squeeze=False,
        **options,
    )
    flat = list(axes.flat)
    for ax in flat[n:]:
        ax.remove()
    return figure, flat[:n]


def label_y(axes: Sequence[Axes], text: str) -> None:
    """Label the y axes of the leftmost panels, in a figure whose panels share one y label."""
    for ax in axes:
        place = ax.get_subplotspec()
        if place is None or place.is_first_col():
            ax.set_ylabel(text)


def shared_legend(figure: Figure, axes: Sequence[Axes], *, columns: int = 3) -> None:
    """Add one legend for all panels below them, in even rows; none if nothing has a label."""
    entries: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        rows = math.ceil(len(entries) / columns)
        figure.legend(
            entries.values(),
            entries.keys(),
            loc="outside lower center",
            ncols=math.ceil(len(entries) / rows),
        )


def add_note(figure: Figure, note: str) -> None:
    """Add a small line of text at the top of a figure, unless it is empty."""
    if note:
        figure.suptitle(plain(note), fontsize="x-small", color="#555555", x=0.01, ha="left")


# ---- the axis of sizes ---------------------------------------------------------------------------


def crowds_left(sizes: Sequence[float]) -> bool:
    """Whether most sizes would be in the first third of a linear axis."""
    values = np.unique(np.asarray(sizes, dtype=float))
    if len(values) < 4:
        return False
    span = values[-1] - values[0]
    return bool(np.median(values) - values[0] < span / 3)


def scale_sizes(axes: Sequence[Axes], sizes: Sequence[float], *, linear: bool) -> bool:
    """Set one scale for all size axes of a figure, so that its panels can be compared.

    The scale is logarithmic if the sizes would crowd at the left, unless `linear` is true. A
    circuit without edges is drawn at 0, left of the logarithmic part.

    Returns:
        Whether the scale is logarithmic, for the label of the axis.
    """
    logarithmic = not linear and crowds_left(sizes)
    for ax in axes:
        if logarithmic:
            _scale_logarithmically(ax, sizes)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:,.6g}"))
    return logarithmic


def _scale_logarithmically(ax: Axes, sizes: Sequence[float]) -> None:
    smallest = min((size for size in sizes if size > 0), default=1)
    # More tick labels would overlap in a small panel.
    steps = (1, 3) if max(sizes) < 50 * smallest and min(sizes) > 0 else (1,)
    right = 1.12 * max(sizes)
    if min(sizes) > 0:
        ax.set_xscale("log")
        ax.set_xlim(smallest / 1.12, right)
        ax.xaxis.set_major_locator(LogLocator(10, subs=steps))
    else:
        threshold = 10 ** np.floor(np.log10(smallest))
        ax.set_xscale("symlog", linthresh=threshold, linscale=0.3)
        ax.xaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=threshold, subs=steps))
        ax.set_xlim(-0.3 * threshold, right)
    ax.xaxis.set_minor_locator(NullLocator())


# ---- files ---------------------------------------------------------------------------------------


@styled
def save_figure(figure: Figure, folder: Path, name: str) -> None:
    """Write `<folder>/png/<name>.png` and `<folder>/pdf/<name>.pdf`, and print the paths.

    The files have no date, so the same figure always gives the same bytes.
    """
    for suffix in ("png", "pdf"):
        path = folder / suffix / f"{name}.{suffix}"
        undated = {"CreationDate": None} if suffix == "pdf" else {}
        with write_atomically(path) as temporary:
            figure.savefig(temporary, format=suffix, bbox_inches="tight", dpi=200, metadata=undated)
        print(f"wrote {shown(path)}")
    plt.close(figure)

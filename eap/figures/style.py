"""What the figure scripts share: arguments, one style, reading results, faithfulness curves.

Results of others plot as they are: extra columns, another order of columns, an unnamed index and a
missing total number of edges are all fine.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eap.data.tasks import PARETO_TASKS, TASKS
from eap.errors import UserError
from eap.graph.graph import Graph
from eap.runtime.atomic import write_atomically
from eap.studies.shell import ROOT, OneLineParser, folder, shown

# Okabe and Ito's colours, which colour-blind people can tell apart.
BLACK, ORANGE, SKY, GREEN, BLUE, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#CC79A7",
)  # fmt: skip
GREY = "#8C8C8C"

METHODS: dict[str, tuple[str, str, str, str]] = {
    # column: (name in the legend, colour, line, marker)
    "EAP": ("EAP", ORANGE, "-", "o"),
    "EAP-IG": ("EAP-IG", BLUE, "-", "s"),
    "EAP-IG-KL": ("EAP-IG (KL)", GREEN, "-", "^"),
    "real": ("activation patching", BLACK, "--", "D"),
    "real-KL": ("activation patching (KL)", PURPLE, "--", "v"),
    "EAP-IG-JS": ("EAP-IG (JS)", SKY, "-", "X"),
}
"""How each method is drawn, everywhere."""

# Paul Tol's muted colours: safe as well, and none of them means a method.
_MUTED = ("#332288", "#CC6677", "#117733", "#DDCC77", "#AA4499", "#88CCEE", "#882255", "#999933")
TASK_COLOURS = dict(zip(TASKS, cycle(_MUTED), strict=False))
"""How each task is drawn, everywhere."""

METRIC_NAMES = {
    "logit_diff": "logit difference",
    "prob_diff": "probability difference",
    "kl": "KL divergence (nats)",
    "js": "JS divergence (nats)",
}

# Width of a figure over both columns of a paper, in inches.
PAPER_WIDTH = 7.0


# ---- arguments and files -------------------------------------------------------------------------


def make_parser(
    description: str | None, *, tasks: Sequence[str] = PARETO_TASKS
) -> argparse.ArgumentParser:
    """The arguments that every figure script has."""
    parser = OneLineParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("-m", "--model", default="toy", help="the model whose results to draw")
    parser.add_argument("--tasks", nargs="+", default=list(tasks), help="those present are drawn")
    parser.add_argument(
        "--output", type=folder, default=ROOT, help="folder with results/ and graphs/"
    )
    return parser


def model_folder(args: argparse.Namespace, study: str) -> Path:
    """`results/<study>/<model>`."""
    return args.output / "results" / study / Path(args.model).name


def find_graph(args: argparse.Namespace, name: str) -> Graph:
    """`graphs/<model>/<name>.json` or `.safetensors`.

    Raises:
        FileNotFoundError: neither is there.
    """
    base = args.output / "graphs" / Path(args.model).name / name
    for path in (base.with_name(f"{base.name}{suffix}") for suffix in (".json", ".safetensors")):
        if path.exists():
            return Graph.load(path)
    raise FileNotFoundError(f"{shown(base)}.json")


def read_table(path: Path, *, needs: Sequence[str] = ()) -> pd.DataFrame:
    """A CSV of results; an unnamed index column that pandas wrote is dropped.

    Raises:
        FileNotFoundError: it is not there.
        UserError: it is not a CSV, has no rows, or lacks a column that is needed.
    """
    if not path.exists():
        raise FileNotFoundError(shown(path))
    try:
        frame = pd.read_csv(path)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise UserError(f"{shown(path)} is not a CSV: {error}") from None
    if missing := [name for name in needs if name not in frame]:
        raise UserError(f"{shown(path)} has no column {', '.join(missing)}")
    if frame.empty:
        raise UserError(f"{shown(path)} has no rows")
    return frame.loc[:, [not str(name).startswith("Unnamed") for name in frame.columns]]


def read_tasks(
    args: argparse.Namespace,
    study: str,
    command: str,
    *,
    name_of: Callable[[str], str] = str,
    needs: Sequence[str] = ("baseline", "corrupted_baseline"),
) -> dict[str, pd.DataFrame]:
    """The tables `results/<study>/<model>/csv/<name>.csv` of the tasks that are present.

    The name is the task, or what `name_of` makes of it.

    Says which are not, and the command that makes them.

    Raises:
        UserError: none is present, or one lacks a column that is needed.
    """
    frames = {}
    for task in args.tasks:
        path = model_folder(args, study) / "csv" / f"{name_of(task)}.csv"
        try:
            frames[task] = read_table(path, needs=needs)
        except FileNotFoundError as error:
            say_missing(error, command.format(task=task))
    if not frames:
        first = command.format(task=args.tasks[0])
        raise UserError(f"nothing to draw for {args.model}; begin with: {first}")
    return frames


def say_missing(error: FileNotFoundError, command: str) -> None:
    """Name a file that is not there, and the command that makes it."""
    print(f"left out: no {error}; make it with: {command}")


def required_table(path: Path, command: str, *, needs: Sequence[str] = ()) -> pd.DataFrame:
    """A CSV without which there is nothing to draw; a `UserError` says what makes it."""
    try:
        return read_table(path, needs=needs)
    except FileNotFoundError as error:
        raise UserError(f"no {error}; make it with: {command}") from None


def read_correlations(args: argparse.Namespace, command: str) -> tuple[dict[str, float], list[str]]:
    """What compare_real.py found of each task, and the tasks that it has."""
    path = model_folder(args, "real_rank") / "correlations.json"
    try:
        correlations = json.loads(path.read_text(encoding="utf8"))
    except FileNotFoundError:
        raise UserError(f"no {shown(path)}; make it with: {command}") from None
    tasks = [task for task in args.tasks if f"{task}_vanilla" in correlations]
    if not tasks:
        raise UserError(f"{shown(path)} has none of {', '.join(args.tasks)}")
    return correlations, tasks


def save_figure(figure: Figure, folder: Path, name: str) -> None:
    """Write `<folder>/png/<name>.png` and `<folder>/pdf/<name>.pdf`, and say where."""
    for suffix in ("png", "pdf"):
        path = folder / suffix / f"{name}.{suffix}"
        with write_atomically(path) as temporary:
            figure.savefig(temporary, format=suffix, bbox_inches="tight", dpi=200)
        print(f"wrote {shown(path)}")
    plt.close(figure)


# ---- style ---------------------------------------------------------------------------------------


def set_style() -> None:
    """One style for all figures: readable at paper width, drawn without a display."""
    mpl.use("Agg")
    sns.set_theme(context="paper", style="ticks", font_scale=0.95)
    mpl.rcParams.update(
        {
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": "medium",
            "axes.titleweight": "bold",
            "figure.constrained_layout.use": True,
            "legend.frameon": False,
            "lines.linewidth": 1.4,
            "lines.markersize": 3.5,
            "pdf.fonttype": 42,
        }
    )


def metric_of(task: str) -> str:
    """The metric of a task in the Pareto study; a task of one's own has `logit_diff`."""
    return TASKS[task].metric if task in TASKS else "logit_diff"


def display_name(task: str) -> str:
    """A task as figures name it."""
    return TASKS[task].display_name if task in TASKS else task


def panels(n: int, *, columns: int = 3, height: float = 2.2) -> tuple[Figure, list[Axes]]:
    """A figure of `n` panels in rows of at most `columns`."""
    columns = min(n, columns)
    rows = -(-n // columns)
    width = PAPER_WIDTH if columns > 1 else 0.62 * PAPER_WIDTH
    figure, axes = plt.subplots(rows, columns, figsize=(width, height * rows + 0.4), squeeze=False)
    flat = list(axes.flat)
    for ax in flat[n:]:
        ax.remove()
    return figure, flat[:n]


def label_y(axes: Sequence[Axes], text: str) -> None:
    """Label the axes at the left of a figure whose panels all have the same one."""
    for ax in axes:
        place = ax.get_subplotspec()
        if place is None or place.is_first_col():
            ax.set_ylabel(text)


def shared_legend(figure: Figure, axes: Sequence[Axes], *, columns: int = 3) -> None:
    """One legend for all panels, below them."""
    entries: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(
        entries.values(),
        entries.keys(),
        loc="outside lower center",
        ncols=min(len(entries), columns),
    )


# ---- methods and tasks -----------------------------------------------------------------------


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
        colour = TASK_COLOURS.get(task, GREY)
        for method, column in columns.items():
            ax.plot(
                table["depth"][start:],
                table[f"{task}_{column}"][start:],
                ":" if method == "EAP" else "-",
                color=colour,
                label=display_name(task) if method != "EAP" else None,
            )
    for method in columns:
        line = ":" if method == "EAP" else "-"
        ax.plot([], [], line, color=BLACK, label=f"{METHODS[method][0]} against exact values")


# ---- heat maps -----------------------------------------------------------------------------------


def short_name(task: str) -> str:
    """A task as crowded figures name it."""
    return display_name(task).replace("Greater-Than (", "GT (")


def draw_heatmap(
    ax: Axes,
    table: pd.DataFrame,
    *,
    title: str,
    low: float = 0.0,
    high: float = 1.0,
    number_format: str = ".2f",
    colour_bar: bool = True,
) -> None:
    """A square table with its numbers written in; rows and columns by display name.

    Colours run from `low` to `high`; numbers beyond have the colour of the nearer end.
    """
    sns.heatmap(
        table.rename(index=short_name, columns=short_name).astype(float),
        ax=ax,
        vmin=low,
        vmax=high,
        cmap="Blues",
        annot=True,
        fmt=number_format,
        annot_kws={"size": "x-small"},
        cbar=colour_bar,
        cbar_kws={"shrink": 0.8} if colour_bar else None,
        square=True,
        linewidths=0.5,
    )
    ax.set_title(title)
    ax.tick_params(axis="x", rotation=45, length=0)
    for label in ax.get_xticklabels():
        label.set_horizontalalignment("right")
        label.set_rotation_mode("anchor")
    ax.tick_params(axis="y", rotation=0, length=0)


def heatmap_row(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, list[Axes]]:
    """Square tables side by side by title, names of rows on the first only, one colour bar."""
    figure, axes = plt.subplots(
        1, len(tables), figsize=(1.5 * PAPER_WIDTH, 4.1), sharey=True, squeeze=False
    )
    flat = list(axes.flat)
    for ax, (title, table) in zip(flat, tables.items(), strict=True):
        draw_heatmap(ax, table, title=title, colour_bar=False)
    mesh: Any = flat[-1].collections[0]
    figure.colorbar(mesh, ax=flat, shrink=0.6, pad=0.01, extend="both")
    return figure, flat

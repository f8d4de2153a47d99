"""What the figure scripts share: arguments, one style, reading results, faithfulness curves.

Results of others plot as they are: extra columns, another order of columns, an unnamed index and a
missing total number of edges are all fine.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eap.cli import ROOT, OneLineParser, shown
from eap.errors import UserError
from eap.files import write_atomically
from eap.graph import Graph
from eap.tasks import PARETO_TASKS, TASKS

# Okabe and Ito's colours, which colour-blind people can tell apart.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
GREY = "#8C8C8C"

METHODS: dict[str, tuple[str, str, str, str]] = {
    # column: (name in the legend, colour, line, marker)
    "EAP": ("EAP", ORANGE, "-", "o"),
    "EAP-IG": ("EAP-IG", BLUE, "-", "s"),
    "EAP-IG-KL": ("EAP-IG (KL)", GREEN, "-", "^"),
    "real": ("activation patching", BLACK, "--", "D"),
    "real-KL": ("activation patching (KL)", PURPLE, "--", "v"),
}
"""How each method is drawn, everywhere."""

TASK_COLOURS = dict(
    zip(TASKS, (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK, "#A6761D"), strict=True)
)
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
        "--output", type=Path, default=ROOT, help="folder with results/ and graphs/"
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


def read_table(path: Path, *, index: bool = False) -> pd.DataFrame:
    """A CSV of results; an unnamed index column that pandas wrote is dropped.

    Raises:
        FileNotFoundError: it is not there.
        UserError: it is not a CSV.
    """
    if not path.exists():
        raise FileNotFoundError(shown(path))
    try:
        frame = pd.read_csv(path, index_col=0 if index else None)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise UserError(f"{shown(path)} is not a CSV: {error}") from None
    return frame.loc[:, [not str(name).startswith("Unnamed") for name in frame.columns]]


def read_tasks(
    args: argparse.Namespace, study: str, command: str, *, suffix: str = ""
) -> dict[str, pd.DataFrame]:
    """The tables `results/<study>/<model>/csv/<task><suffix>.csv` of the tasks that are present.

    Says which are not, and the command that makes them.

    Raises:
        UserError: none is present.
    """
    folder = model_folder(args, study) / "csv"
    paths = {task: folder / f"{task}{suffix}.csv" for task in args.tasks}
    for task, path in paths.items():
        if not path.exists():
            print(f"left out: no {shown(path)}; make it with: {command.format(task=task)}")
    frames = {task: read_table(path) for task, path in paths.items() if path.exists()}
    if not frames:
        first = command.format(task=args.tasks[0])
        raise UserError(f"nothing to draw for {args.model}; begin with: {first}")
    return frames


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


def shared_legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend for all panels, below them."""
    entries: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(
        entries.values(),
        entries.keys(),
        loc="outside lower center",
        ncols=min(len(entries), 4),
    )


# ---- faithfulness curves -------------------------------------------------------------------------


def methods_of(frame: pd.DataFrame) -> list[str]:
    """The methods with a curve in a table: those we know in our order, then others."""
    found = [name.removeprefix("loss_") for name in frame.columns if name.startswith("loss_")]
    return [name for name in METHODS if name in found] + [n for n in found if n not in METHODS]


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
    clean, corrupted = frame["baseline"].iloc[0], frame["corrupted_baseline"].iloc[0]

    def scale(values: Any) -> Any:
        return (values - corrupted) / (clean - corrupted) if normalise else values

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


def total_edges(frame: pd.DataFrame, bands: pd.DataFrame | None = None) -> int | None:
    """The number of edges of the whole graph, where a table has it."""
    for table in (frame, bands):
        if table is not None and "total_edges" in table:
            return int(table["total_edges"].iloc[0])
    return None


def edges_label(total: int | None) -> str:
    """Label of the axis of edges."""
    return "edges in the circuit" if total is None else f"edges in the circuit (of {total:,})"


def curve_figure(
    frames: Mapping[str, pd.DataFrame],
    bands: Mapping[str, pd.DataFrame],
    *,
    normalise: bool,
    metric_of: Mapping[str, str] | None = None,
    columns: int = 3,
) -> Figure:
    """One panel of faithfulness curves per task.

    Args:
        frames: table of each task.
        bands: what surrounds the curves, of the tasks that have it.
        normalise: draw normalised faithfulness, not the metric.
        metric_of: the metric of each task, where known.
        columns: panels side by side.
    """
    figure, axes = panels(len(frames), columns=columns)
    for ax, (task, frame) in zip(axes, frames.items(), strict=True):
        own = bands.get(task)
        draw_curves(ax, frame, bands=own, normalise=normalise)
        ax.set_title(display_name(task))
        ax.set_xlabel(edges_label(total_edges(frame, own)))
        if normalise:
            _limit_outliers(ax)
            ax.set_ylabel("normalised faithfulness")
        else:
            metric = (metric_of or {}).get(task) or (TASKS[task].metric if task in TASKS else "")
            ax.set_ylabel(METRIC_NAMES.get(metric, "metric"))
    shared_legend(figure, axes)
    return figure


def _limit_outliers(ax: Axes) -> None:
    """Normalised faithfulness between -0.5 and 1.5, unless nothing lies outside."""
    low, high = ax.get_ylim()
    ax.set_ylim(max(low, -0.5), min(high, 1.5))


def read_bands(args: argparse.Namespace, study: str, tasks: Sequence[str]) -> dict[str, Any]:
    """What surrounds the curves of those tasks that have such a table."""
    folder = model_folder(args, study) / "csv"
    paths = {task: folder / f"{task}_bands.csv" for task in tasks}
    return {task: read_table(path) for task, path in paths.items() if path.exists()}


# ---- heat maps -----------------------------------------------------------------------------------


def draw_heatmap(
    ax: Axes,
    table: pd.DataFrame,
    *,
    title: str,
    low: float = 0.0,
    high: float = 1.0,
    centre: float | None = None,
    decimals: int = 2,
    cmap: str = "viridis",
) -> None:
    """A square table with its numbers written in; rows and columns by display name."""
    named = table.rename(index=display_name, columns=display_name)
    sns.heatmap(
        named.astype(float),
        ax=ax,
        vmin=low,
        vmax=high,
        center=centre,
        cmap=cmap,
        annot=True,
        fmt=f".{decimals}f",
        annot_kws={"size": "x-small"},
        cbar_kws={"shrink": 0.8},
        square=True,
        linewidths=0.5,
    )
    ax.set_title(title)
    ax.tick_params(axis="x", rotation=45)
    for label in ax.get_xticklabels():
        label.set_horizontalalignment("right")
    ax.tick_params(axis="y", rotation=0)

"""What the figures of estimates against exact values share: reading compare_real.py's tables."""

import argparse
import json

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from eap import plotting
from eap.errors import UserError

METHODS = {"vanilla": "EAP", "ig": "EAP-IG"}


def read(args: argparse.Namespace, name: str) -> pd.DataFrame:
    """One of the tables."""
    path = plotting.model_folder(args, "real_rank") / "csv" / f"{name}.csv"
    try:
        return plotting.read_table(path)
    except FileNotFoundError as error:
        raise UserError(f"no {error}; make it with: {command(args)}") from None


def read_correlations(args: argparse.Namespace) -> dict[str, float]:
    """correlations.json."""
    path = plotting.model_folder(args, "real_rank") / "csv" / "correlations.json"
    if not path.exists():
        raise UserError(f"no {path}; make it with: {command(args)}")
    return json.loads(path.read_text(encoding="utf8"))


def command(args: argparse.Namespace) -> str:
    """What makes the tables."""
    return f"python results/real_rank/compare_real.py --model {args.model}"


def tasks_in(args: argparse.Namespace, names: list[str]) -> list[str]:
    """The tasks that have a column or entry that begins with their name."""
    return [task for task in args.tasks if any(name.startswith(f"{task}_") for name in names)]


def draw_bars(
    ax: Axes, correlations: dict[str, float], tasks: list[str], *, suffix: str = "", label: str
) -> None:
    """A pair of bars per task: EAP and EAP-IG."""
    x, width = np.arange(len(tasks)), 0.38
    for number, (key, method) in enumerate(METHODS.items()):
        name, colour, _, _ = plotting.METHODS[method]
        heights = [correlations[f"{task}_{key}{suffix}"] for task in tasks]
        ax.bar(x + (number - 0.5) * width, heights, width, color=colour, label=name)
    ax.set_xticks(x, [plotting.display_name(task) for task in tasks], rotation=30, ha="right")
    ax.set_ylabel(label)
    ax.axhline(0, color=plotting.GREY, linewidth=0.8)

"""Figure 7: faithfulness of circuits by the number of steps of integrated gradients."""

from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import eap_circuits
from eap.figures import curves, style, tables
from eap.runtime.errors import UserError
from eap.statistics.measures import normalised
from eap.studies import shell
from eap.studies.settings import default_metric


def main() -> None:
    """Draw results/ig_test/<model>/{png,pdf}/ig_test."""
    parser = shell.figure_parser(__doc__, tasks=["ioi", "greater-than", "gender-bias"], sizes=True)
    parser.add_argument("--eval_metric", help="metric of faithfulness (default: the task's metric)")
    args = parser.parse_args()
    results = tables.Results(args.output, args.model)

    def metric_of(task: str) -> str:
        return args.eval_metric or default_metric(task)

    found = tables.read_tasks(
        results,
        "ig_test",
        args.tasks,
        results.command("test_ig_iterations.py", "--task {task}"),
        name_of=lambda task: f"{task}_{metric_of(task)}_ig_test",
        needs=["n_edges", "baseline"],
    )
    tables.check_comparable(found.values())
    found = {
        task: with_baseline(results, task, metric_of(task), table) for task, table in found.items()
    }
    figure = draw(found, model=args.model, linear=args.linear)
    style.save_figure(figure, results.folder("ig_test"), "ig_test")


def with_baseline(
    results: tables.Results, task: str, metric: str, table: tables.Table
) -> tables.Table:
    """Add the metric of the corrupted run, which one of the published tables lacks.

    The value is taken from the table of the Pareto study, if that table has the same metric and the
    same clean run.

    Raises:
        UserError: there is no such table.
    """
    if "corrupted_baseline" in table.frame:
        return table
    path = results.csv("pareto", task)
    command = results.command("pareto.py", f"--task {task} --metric {metric}")
    pareto = tables.required_table(path, command, needs=tables.BASELINES)
    same_metric = metric == (pareto.metric or default_metric(task))
    clean, corrupted = pareto.baselines
    if not same_metric or not np.isclose(clean, table.frame["baseline"].iloc[0], rtol=1e-2):
        raise UserError(
            f"{shell.shown(table.path)} has no corrupted_baseline, and {shell.shown(path)} is of "
            f"another metric or other data; make it with: {command}"
        )
    frame = table.frame.assign(corrupted_baseline=corrupted)
    return tables.Table(frame, table.path, table.metadata, table.names)


@style.styled
def draw(found: dict[str, tables.Table], *, model: str, linear: bool) -> Figure:
    """Draw one panel per task."""
    figure, axes = style.panels(len(found), height=2.6)
    sizes: list[float] = []
    totals = []
    for ax, (task, table) in zip(axes, found.items(), strict=True):
        bands = tables.read_bands(table, sizes="n_edges")
        sizes += draw_steps(ax, table.frame, bands)
        ax.set_title(style.display_name(task))
        totals.append(curves.total_edges(model, table.frame, bands))
    logarithmic = style.scale_sizes(axes, sizes, linear=linear) if sizes else False
    for ax, total in zip(axes, totals, strict=True):
        ax.set_xlabel(curves.edges_label(total, logarithmic=logarithmic))
    style.label_y(axes, "normalised faithfulness")
    style.shared_legend(figure, axes, columns=5)
    style.add_note(figure, tables.origin_note(found.values()))
    return figure


MARKERS = "osD^vPX*<>"


def draw_steps(ax: Axes, frame: pd.DataFrame, bands: pd.DataFrame | None) -> list[float]:
    """Draw EAP, and one line per number of steps, darker for more steps.

    Only EAP and the largest number of steps have 95% confidence bands, because more bands would
    overlap.

    Returns:
        The sizes of the circuits.
    """
    clean, corrupted = (float(frame[name].iloc[0]) for name in tables.BASELINES)
    columns = [name for name in map(str, frame) if name.startswith("results_")]
    names = [name.removeprefix("results_") for name in columns]
    steps = sorted((name for name in names if name.isdigit()), key=int)
    # From yellow through green to dark blue: neighbours differ in hue, lightness and marker.
    shades = plt.get_cmap("viridis_r")(np.linspace(0.08, 1, len(steps)))
    sizes: list[float] = []
    looks = [("vanilla", style.BLACK, ""), *zip(steps, shades, cycle(MARKERS), strict=False)]
    for name, colour, marker in looks:
        if name not in names:
            continue
        edges = frame[f"n_edges_{name}"] if f"n_edges_{name}" in frame else frame["n_edges"]
        sizes += edges.tolist()
        values = normalised(frame[f"results_{name}"], clean, corrupted)
        ax.plot(
            edges, values, "--" if name == "vanilla" else "-", color=colour, marker=marker,
            markersize=3, label="EAP" if name == "vanilla" else f"{name} steps",
        )  # fmt: skip
        error = f"stderr_share_{name}"
        if name in ("vanilla", *steps[-1:]) and bands is not None and error in bands:
            spread = curves.CONFIDENCE * bands[error].fillna(0.0).to_numpy()
            ax.fill_between(
                edges, values - spread, values + spread, color=colour, alpha=0.12, linewidth=0
            )
    for share, line in ((1, "-"), (0, ":")):
        ax.axhline(share, color=style.GREY, linewidth=0.8, linestyle=line, zorder=0)
    curves.limit_outliers(ax)
    return sizes


if __name__ == "__main__":
    eap_circuits.run(main)

"""Normalised faithfulness by share of all edges, one panel per task (results of pareto_big.py)."""

from matplotlib.axes import Axes
from matplotlib.ticker import MultipleLocator, PercentFormatter

import eap_circuits
from eap.figures import curves, style, tables
from eap.studies import shell


def show_shares(ax: Axes, total: int | None) -> None:
    """Label the size axis in percent of all edges, if the number of all edges is known."""
    if total is not None:
        low, high = ax.get_xlim()
        steps = [digit * 10**power for power in range(-5, 2) for digit in (1, 2, 5)]
        step = next(step for step in steps if (high - low) / total <= 6 * step)
        ax.xaxis.set_major_locator(MultipleLocator(step * total))
        ax.xaxis.set_major_formatter(PercentFormatter(xmax=total, decimals=None))
        ax.set_xlabel(f"share of all {total:,} edges")


def main() -> None:
    """Draw results/pareto/<model>/{png,pdf}/pareto_big."""
    args = shell.figure_parser(__doc__).parse_args()
    results = tables.Results(args.output, args.model)
    command = results.command("pareto_big.py", "--task {task}")
    found = tables.read_tasks(results, "pareto", args.tasks, command)
    figure = curves.curve_figure(
        found, normalise=True, model=args.model, linear=True, finish=show_shares
    )
    style.save_figure(figure, results.folder("pareto"), "pareto_big")


if __name__ == "__main__":
    eap_circuits.run(main)

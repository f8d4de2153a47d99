"""Metric of circuits by size, with one panel per task (results of pareto.py)."""

import eap_circuits
from eap.figures import curves, style, tables
from eap.studies import shell


def main() -> None:
    """Draw results/pareto/<model>/{png,pdf}/pareto."""
    args = shell.figure_parser(__doc__, sizes=True).parse_args()
    results = tables.Results(args.output, args.model)
    command = results.command("pareto.py", "--task {task}")
    found = tables.read_tasks(results, "pareto", args.tasks, command)
    figure = curves.curve_figure(found, normalise=False, model=args.model, linear=args.linear)
    style.save_figure(figure, results.folder("pareto"), "pareto")


if __name__ == "__main__":
    eap_circuits.run(main)

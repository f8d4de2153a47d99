"""Figure 10: normalised faithfulness for a few tasks (default: variants of greater-than)."""

import eap_circuits
from eap.figures import curves, style, tables
from eap.studies import shell

TASKS = ("greater-than-price", "greater-than-sequence")


def main() -> None:
    """Draw results/pareto/<model>/{png,pdf}/pareto_normalized_<tasks>."""
    args = shell.figure_parser(__doc__, tasks=TASKS, sizes=True).parse_args()
    results = tables.Results(args.output, args.model)
    command = results.command("pareto.py", "--task {task}")
    found = tables.read_tasks(results, "pareto", args.tasks, command)
    figure = curves.curve_figure(
        found, normalise=True, model=args.model, columns=2, linear=args.linear
    )
    name = f"pareto_normalized_{'_'.join(found)}"
    style.save_figure(figure, results.folder("pareto"), name)


if __name__ == "__main__":
    eap_circuits.run(main)

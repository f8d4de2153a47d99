"""Normalised faithfulness of circuits by size, with one panel per task (results of pareto.py)."""

import eap_circuits
from eap.figures import curves, published, style, tables
from eap.studies import shell


def main() -> None:
    """Draw results/pareto/<model>/{png,pdf}/pareto_normalized."""
    parser = shell.figure_parser(__doc__, sizes=True)
    parser.add_argument(
        "--compare-paper",
        action="store_true",
        help="also print the numbers with the paper's numbers for GPT-2 small, including the "
        "comparison with exact values",
    )
    args = parser.parse_args()
    results = tables.Results(args.output, args.model)
    command = results.command("pareto.py", "--task {task}")
    found = tables.read_tasks(results, "pareto", args.tasks, command)
    figure = curves.curve_figure(found, normalise=True, model=args.model, linear=args.linear)
    style.save_figure(figure, results.folder("pareto"), "pareto_normalized")
    if args.compare_paper:
        shell.say(published.compare(results, args.tasks))


if __name__ == "__main__":
    eap_circuits.run(main)

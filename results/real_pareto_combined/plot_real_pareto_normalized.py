"""Figures 3 and 11: normalised faithfulness of circuits from estimates and from exact values.

EAP, EAP-IG and EAP-IG-KL are results of pareto.py (or pareto_big.py); activation patching and its
KL form are results of get_real_values.py. Without exact values (large models), only the estimates
are drawn.
"""

import eap_circuits
from eap.figures import curves, style, tables
from eap.studies import shell

ESTIMATES = ("EAP", "EAP-IG", "EAP-IG-KL")


def main() -> None:
    """Draw results/real_pareto_combined/<model>/{png,pdf}/real_pareto_normalized."""
    args = shell.figure_parser(__doc__, sizes=True).parse_args()
    results = tables.Results(args.output, args.model)
    command = results.command("pareto.py", "--task {task}")
    found = tables.read_tasks(results, "pareto", args.tasks, command)
    exact = {}
    for task in found:
        try:
            path = results.csv("real", task)
            exact[task] = tables.read_table(path, needs=["edges", *tables.BASELINES])
        except FileNotFoundError as error:
            tables.say_missing(error, results.command("get_real_values.py", f"--task {task}"))
    figure = curves.curve_figure(
        found, normalise=True, model=args.model, linear=args.linear, exact=exact, methods=ESTIMATES
    )
    style.save_figure(figure, results.folder("real_pareto_combined"), "real_pareto_normalized")


if __name__ == "__main__":
    eap_circuits.run(main)

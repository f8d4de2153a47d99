"""The paper's claims, tested on a model's results and compared with values for GPT-2 small.

Reads all available results of the experiments and of compare_real.py, and writes
results/claims/<model>/csv/claims.csv: for each claim, the measured quantity, its 95% interval over
tasks, the verdict, the published value, and whether the result replicates it (*replicates*,
*differs*, *inconclusive*, or *new* if the paper does not report the quantity).
"""

import eap_circuits

# isort: split
from collections.abc import Mapping

import numpy as np

from eap.figures import claims, cross_task, published, replication, tables
from eap.figures.tables import Table
from eap.studies import shell
from eap.studies.catalogue import POINTS_TASKS
from eap.studies.settings import default_metric


def main() -> None:
    """Write the table, and print it."""
    args = shell.figure_parser(__doc__).parse_args()
    results = tables.Results(args.output, args.model)
    answered: list[claims.Claim] = []
    sources: list[Table] = []
    others = []
    undone: set[str] = set()

    def posed(tables: Mapping[str, Table]) -> dict[str, Table]:
        """Keep the tables of tasks that the model does."""
        undone.update(task for task, table in tables.items() if not claims.does_task(table))
        return {task: table for task, table in tables.items() if task not in undone}

    # 1. Faithfulness of circuits by size.
    command = results.command("pareto.py", "--task {task}")
    curves = tables.read_tasks(results, "pareto", args.tasks, command)
    answered += claims.about_curves(posed(curves))
    sources += curves.values()

    # 2. Agreement with exact values.
    correlations_file = results.folder("real_rank") / "correlations.json"
    if correlations_file.exists():
        command = results.command("results/real_rank/compare_real.py")
        correlations, of_tasks = tables.read_correlations(results, args.tasks, command)
        overlaps = tables.required_table(results.csv("real_rank", "all-overlap"), command)
        metric_by_task = published.compared_metrics(results)
        other = {task for task, by in metric_by_task.items() if by != default_metric(task)}
        if other & set(of_tasks):
            listed = ", ".join(sorted(other & set(of_tasks)))
            shell.say(f"left out of the agreement with exact values, as by other metrics: {listed}")
        of_tasks = [task for task in of_tasks if task not in undone | other]
        answered += claims.about_agreement(correlations, of_tasks, overlaps)
        sources.append(overlaps)
        others.append(correlations_file)

    # 3. Circuits on other tasks.
    if results.csv("cross-task", "faithfulness").exists():
        squares = cross_task.read_squares(results, "node_ious", "edge_ious")
        every = cross_task.tasks_done(cross_task.align(*squares)[-1])
        done = [task for task in every if task not in undone]
        if (n := claims.n_independent(done)) < claims.FEWEST_TASKS:
            shell.say(
                f"left out: overlap of circuits, of which {n} tasks (variants of a task count "
                f"once) say too little; at least {claims.FEWEST_TASKS} are needed"
            )
        else:
            nodes, edges, metric = cross_task.align(*squares, tasks=done)
            shares = cross_task.share_of_own(metric)
            answered += claims.about_overlap({"node IoU": nodes, "edge IoU": edges}, shares)
        sources += squares

    # 4. Points of integration.
    names = {task: f"{task}_{default_metric(task)}_ig_test" for task in POINTS_TASKS}
    paths = {task: results.csv("ig_test", name) for task, name in names.items()}
    of_points = {
        task: tables.read_table(path, needs=tables.BASELINES)
        for task, path in paths.items()
        if task in args.tasks and path.exists()
    }
    answered += claims.about_points(posed(of_points))
    sources += of_points.values()

    if undone:
        shell.say(
            f"left out: {', '.join(sorted(undone))}, where the clean run is no better than the "
            "corrupted one"
        )
    # Exact values may use fewer pairs than the curves, so only the model must be the same.
    tables.check_one_model(sources)
    if not answered:
        shell.say(f"the results of {args.model} do not test any claim: the table has no rows")
    frame = replication.beside(claims.to_frame(answered))
    path = results.csv("claims", "claims")
    origin = tables.origin_of(sources, results, method="claims of the paper", others=others)
    shell.save_csv(frame, path, origin)
    for claim, value, word in zip(
        answered, frame["published"].tolist(), frame["replication"], strict=True
    ):
        known = "" if np.isnan(value) else f"; GPT-2, published: {value:.3f}"
        shell.say(f"{claim}{known}: {word}")
    shell.say(f"\nwrote {shell.shown(path)}")


if __name__ == "__main__":
    eap_circuits.run(main)

"""The paper's claims, asked of a model's results: each holds, does not hold, or cannot be told.

Reads what the experiments and compare_real.py have written, as far as it is there, and writes
results/claims/<model>/csv/claims.csv: the quantity behind each claim, its 95% interval over tasks,
and the verdict.
"""

import eap_circuits

# isort: split
from eap.errors import UserError
from eap.figures import claims, cross_task, style, tables
from eap.figures.tables import Table
from eap.studies import shell
from eap.studies.catalogue import POINTS_TASKS


def main() -> None:
    """Write the table, and say it."""
    args = shell.figure_parser(__doc__).parse_args()
    results = tables.Results(args.output, args.model)
    answered: list[claims.Claim] = []
    sources: list[Table] = []
    others = []

    # 1. Faithfulness of circuits by size.
    curves = tables.read_tasks(
        results, "pareto", args.tasks, results.command("pareto.py", "--task {task}")
    )
    posed = {task: table for task, table in curves.items() if does_task(task, table)}
    if posed:
        answered += claims.about_curves(posed)
    sources += curves.values()

    # 2. Agreement with exact values.
    correlations_file = results.folder("real_rank") / "correlations.json"
    if correlations_file.exists():
        command = results.command("results/real_rank/compare_real.py")
        correlations, of_tasks = tables.read_correlations(results, args.tasks, command)
        overlaps = tables.required_table(results.csv("real_rank", "all-overlap"), command)
        answered += claims.about_agreement(correlations, of_tasks, overlaps)
        sources.append(overlaps)
        others.append(correlations_file)

    # 3. Circuits on other tasks.
    if results.csv("cross-task", "faithfulness").exists():
        squares = [
            cross_task.read_square(results, "node_ious"),
            cross_task.read_square(results, "edge_ious"),
            cross_task.read_faithfulness(results),
        ]
        nodes, edges, metric = cross_task.align(*squares)
        shares = cross_task.share_of_own(metric)
        answered += claims.about_overlap({"node IoU": nodes, "edge IoU": edges}, shares)
        sources += squares

    # 4. Points of integration.
    names = {task: f"{task}_{style.metric_of(task)}_ig_test" for task in POINTS_TASKS}
    paths = {task: results.csv("ig_test", name) for task, name in names.items()}
    of_points = {
        task: tables.read_table(path, needs=tables.BASELINES)
        for task, path in paths.items()
        if task in args.tasks and path.exists()
    }
    answered += claims.about_points(of_points)
    sources += of_points.values()

    # Exact values may be of fewer pairs than the curves: only the model must be one.
    tables.check_one_model(sources)
    if not answered:
        raise UserError(f"the results of {args.model} say nothing of any claim")
    frame = claims.to_frame(answered)
    path = results.csv("claims", "claims")
    origin = tables.origin_of(sources, results, method="claims of the paper", others=others)
    shell.save_csv(frame, path, origin)
    for claim in answered:
        shell.say(
            f"{claim.verdict:15} {claim.text}: {claim.quantity} {claim.value:.3f} "
            f"[{claim.low:.3f}, {claim.high:.3f}] over {claim.n_tasks} tasks"
        )
    shell.say(f"\nwrote {shell.shown(path)}")


def does_task(task: str, table: Table) -> bool:
    """Whether the model does the task, so that a share of what it does says something."""
    clean, corrupted = table.baselines
    if clean > corrupted or (table.metric in ("kl", "js") and clean != corrupted):
        return True
    shell.say(f"left out: {task}, where the clean run is no better than the corrupted one")
    return False


if __name__ == "__main__":
    eap_circuits.run(main)

"""Every experiment and every figure of the paper for one model, from one command.

    python results/paper.py --model toy --head 100

Runs what is missing or older than what it is made from, and ends with results/<model>/report.html.
A second run does no model work; deleting a file redoes it and what depends on it.
"""

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from eap import cli, plotting
from eap.errors import UserError
from eap.tasks import PARETO_TASKS, TASKS

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Step:
    """A command, what it reads and what it writes."""

    command: tuple[str, ...]
    reads: tuple[Path, ...]
    writes: tuple[Path, ...]

    @property
    def is_done(self) -> bool:
        """Whether all it writes is there and no older than what it reads."""
        if not all(path.exists() for path in self.writes):
            return False
        oldest = min(path.stat().st_mtime for path in self.writes)
        return all(path.stat().st_mtime <= oldest for path in self.reads if path.exists())


def main() -> None:
    """Run all steps in order."""
    parser = plotting.make_parser(__doc__, tasks=tuple(TASKS))
    parser.add_argument("--head", type=cli.positive, help="pairs of every task (default: all)")
    parser.add_argument("--batch_size", type=cli.positive, help="passed on to the experiments")
    parser.add_argument("--device", help="passed on to the experiments")
    parser.add_argument("--dtype", help="passed on to the experiments")
    parser.add_argument("--no-exact", action="store_true", help="leave exact patching out")
    args = parser.parse_args()
    begun = time.monotonic()
    steps = plan(args)
    ran = 0
    for number, step in enumerate(steps, start=1):
        if step.is_done:
            continue
        print(f"[{number}/{len(steps)}] python {' '.join(step.command)}", flush=True)
        result = subprocess.run([sys.executable, *step.command], cwd=ROOT, check=False)
        if result.returncode:
            raise UserError(f"python {' '.join(step.command)} ended with {result.returncode}")
        ran += 1
    print(
        f"{len(steps) - ran} of {len(steps)} steps were done before, {ran} ran "
        f"({cli.duration(time.monotonic() - begun)}): "
        f"{cli.shown(args.output / 'results' / Path(args.model).name / 'report.html')}"
    )


def plan(args: argparse.Namespace) -> list[Step]:
    """All steps in order."""
    name = Path(args.model).name
    results, graphs = args.output / "results", args.output / "graphs" / name
    given = ["--model", args.model, "--output", str(args.output)]
    run = list(given)
    for option in ("head", "batch_size", "device", "dtype"):
        if getattr(args, option) is not None:
            run += [f"--{option}", str(getattr(args, option))]
    tasks = [task for task in args.tasks if task in TASKS]
    main_tasks = [task for task in tasks if task in PARETO_TASKS] or tasks
    chosen = ["--tasks", *tasks]

    def csv(study: str, table: str) -> Path:
        return results / study / name / "csv" / f"{table}.csv"

    def pictures(study: str, *names: str) -> tuple[Path, ...]:
        folder = results / study / name
        return tuple(folder / kind / f"{n}.{kind}" for n in names for kind in ("png", "pdf"))

    def graph(table: str) -> Path:
        large = graphs / f"{table}.safetensors"
        return large if large.exists() else graphs / f"{table}.json"

    steps: list[Step] = []

    def add(command: list[str], reads: list[Path], writes: list[Path] | tuple[Path, ...]) -> None:
        steps.append(Step(tuple(command), tuple(reads), tuple(writes)))

    # Experiments.
    for task in tasks:
        scored = [graph(f"{task}_{suffix}") for suffix in ("vanilla", "task", "kl")]
        add(["pareto.py", "--task", task, *run], [], [csv("pareto", task), *scored])
    if not args.no_exact:
        for task in main_tasks:
            metric = TASKS[task].metric
            made = [graph(f"real_test/{task}_{metric}_{s}") for s in ("real", "vanilla", "ig")]
            made += [graph(f"real_test/{task}_kl_{s}") for s in ("real", "ig")]
            add(["get_real_values.py", "--task", task, *run], [], [csv("real", task), *made])
    for task in main_tasks:
        table = f"{task}_{TASKS[task].metric}_ig_test"
        add(["test_ig_iterations.py", "--task", task, *run], [], [csv("ig_test", table)])
    circuits = [graph(f"{task}_circuit") for task in tasks]
    jaccard = [
        csv("jaccard", f"{k}_{t}") for k in ("edge", "node") for t in ("ious", "iou_ps", "overlap")
    ]
    scored = [graph(f"{task}_task") for task in tasks]
    add(["overlap_heatmaps.py", *chosen, *run], scored, [*jaccard, *circuits])
    faithfulness = csv("cross-task", "faithfulness")
    add(["all_cross_task_faithfulness.py", *chosen, *run], circuits, [faithfulness])

    # Figures.
    curves = [csv("pareto", task) for task in main_tasks]
    figure = ["--tasks", *main_tasks, *given]
    if "fact-retrieval-comma" in tasks:
        add(
            ["results/first_figure/first_figure.py", *given],
            [csv("pareto", "fact-retrieval-comma")],
            pictures("first_figure", "first_figure"),
        )
    small = main_tasks[0]
    add(
        ["results/circuit/plot_circuit.py", "--tasks", small, *given],
        [graph(f"{small}_task")],
        pictures("circuit", f"{small}_circuit"),
    )
    for script, picture in (
        ("plot_pareto", "pareto"),
        ("plot_pareto_normalized", "pareto_normalized"),
    ):
        add([f"results/pareto/{script}.py", *figure], curves, pictures("pareto", picture))
    variants = [task for task in ("greater-than-price", "greater-than-sequence") if task in tasks]
    if variants:
        add(
            ["results/pareto/plot_pareto_normalized_single.py", "--tasks", *variants, *given],
            [csv("pareto", task) for task in variants],
            pictures("pareto", f"pareto_normalized_{'_'.join(variants)}"),
        )
    exact = [] if args.no_exact else [csv("real", task) for task in main_tasks]
    add(
        ["results/real_pareto_combined/plot_real_pareto_normalized.py", *figure],
        [*curves, *exact],
        pictures("real_pareto_combined", "real_pareto_normalized"),
    )
    if not args.no_exact:
        metric_of = {task: TASKS[task].metric for task in main_tasks}
        values = [graph(f"real_test/{task}_{metric}_real") for task, metric in metric_of.items()]
        tables = [csv("real_rank", t) for t in ("all-overlap", "edge-overlap", "node-overlap")]
        add(["results/real_rank/compare_real.py", *figure], values, tables)
        for script, picture in (
            ("plot_overlap", "correlation_overlap"),
            ("plot_kendall", "kendall_difference"),
            ("node_edge_overlap_plot", "node_edge_overlap"),
        ):
            add([f"results/real_rank/{script}.py", *figure], tables, pictures("real_rank", picture))
    add(
        ["results/cross-task/make_all_heatmaps.py", *given],
        [*jaccard, faithfulness],
        pictures("cross-task", "cross_task"),
    )
    add(
        ["results/cross-task/recall_heatmaps.py", "--tasks", *tasks, *given],
        circuits,
        pictures("cross-task", "recall"),
    )
    add(
        ["results/ig_test/plot_ig_test.py", *figure],
        [csv("ig_test", f"{task}_{TASKS[task].metric}_ig_test") for task in main_tasks],
        pictures("ig_test", "ig_test"),
    )
    if has_gpt2_shape(args, graph(f"{tasks[0]}_task")):
        for script, task in (("ioi_overlap", "ioi"), ("greater_than_overlap", "greater-than")):
            if task in tasks:
                add(
                    [f"results/manual_overlap/{script}.py", *given],
                    [graph(f"{task}_vanilla"), graph(f"{task}_task")],
                    pictures("manual_overlap", f"{task}_precision_recall"),
                )

    report = results / name / "report.html"
    drawn = [path for step in steps for path in step.writes if path.suffix == ".png"]
    add(["results/report.py", *given], [*drawn, *curves, *exact], [report])
    return steps


def has_gpt2_shape(args: argparse.Namespace, scored: Path) -> bool:
    """Whether the model has 12 layers of 12 heads, as the hand-made circuits need."""
    from eap.graph import Graph
    from eap.models import load_config

    if scored.exists():
        config = Graph.load(scored).config
        return (config.n_layers, config.n_heads) == (12, 12)
    return load_config(args.model) == (12, 12)


if __name__ == "__main__":
    cli.run(main)

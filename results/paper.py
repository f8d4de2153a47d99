"""Every experiment and every figure of the paper for one model, from one command.

    python results/paper.py --model toy

Runs what is missing, what was run with other settings and what is older than what it is made from;
ends with one page, results/<model>/report.html. A second run does no model work. Delete a file, and
it and what depends on it are made anew.
"""

import argparse
import json
import runpy
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from eap.data.tasks import PARETO_TASKS, TASKS
from eap.errors import UserError
from eap.model.directory import TOY_MODEL
from eap.model.loading import load_config
from eap.runtime.atomic import write_atomically
from eap.studies import shell

# Pairs of every task that keep the toy model's run on two cores within ten minutes.
TOY_HEAD = 100
# Those of the paper's Figure 7, and its numbers of steps.
IG_TASKS = ("ioi", "greater-than", "gender-bias")
IG_STEPS = (2, 3, 5, 7, 10, 15, 20, 30, 50)
METRICS = ("logit_diff", "prob_diff", "kl", "js")


@dataclass(frozen=True)
class Step:
    """A script with its arguments, what it reads and what it writes."""

    command: tuple[str, ...]
    reads: tuple[Path, ...]
    writes: tuple[Path, ...]

    def why(self, record: dict[str, dict]) -> str | None:
        """Why it has to run; None if it need not.

        `record` has what ran before: by the first file written, the command, when it ended, and
        when each file was written.
        """
        if missing := [path for path in self.writes if not present(path).exists()]:
            return f"{missing[0].name} is missing"
        ran = record.get(str(self.writes[0]))
        if ran is None or ran["command"] != list(self.command):
            return "made with other settings, or not by this script"
        wrote = ran["wrote"]
        if changed := [path for path in self.writes if wrote.get(str(path)) != modified(path)]:
            return f"{changed[0].name} was written by something else"
        newer = [path for path in self.reads if modified(path) > ran["ended"]]
        return f"{newer[0].name} is newer" if newer else None


def present(path: Path) -> Path:
    """A graph's path, by the suffix that it has."""
    large = path.with_suffix(".safetensors")
    return large if path.suffix == ".json" and large.exists() else path


def modified(path: Path) -> float:
    """When a file was written, in seconds; 0 if it is not there."""
    path = present(path)
    return path.stat().st_mtime if path.exists() else 0.0


def main() -> None:
    """Run the steps that have to run, in order."""
    parser = shell.figure_parser(__doc__, tasks=tuple(TASKS))
    parser.add_argument(
        "--head",
        type=shell.positive,
        help=f"pairs of every task (default: {TOY_HEAD} for the toy model, else all)",
    )
    parser.add_argument("--batch_size", type=shell.positive, help="passed on to the experiments")
    parser.add_argument("--device", help="passed on to the experiments")
    parser.add_argument("--dtype", help="passed on to the experiments")
    parser.add_argument("--no_exact", action="store_true", help="leave exact patching out")
    parser.add_argument(
        "--large",
        action="store_true",
        help="for models like gpt2-xl: sizes of pareto_big.py, and no exact patching",
    )
    args = parser.parse_args()
    args.no_exact |= args.large
    if args.head is None and args.model == "toy":
        args.head = TOY_HEAD
    args.output = args.output.resolve()
    if unknown := [task for task in args.tasks if task not in TASKS]:
        raise UserError(f"unknown task {', '.join(unknown)}; known are {', '.join(TASKS)}")

    begun = time.monotonic()
    page = args.output / "results" / Path(args.model).name / "report.html"
    path = page.with_name("steps.json")
    record = json.loads(path.read_text(encoding="utf8")) if path.exists() else {}
    steps, ran, failed = plan(args, page), 0, []
    for number, step in enumerate(steps, start=1):
        why = step.why(record)
        if why is None:
            continue
        shell.say(f"\n[{number}/{len(steps)}] python {shlex.join(step.command)}   ({why})")
        try:
            run_script(step.command)
        except UserError as error:
            shell.say(f"error: {error}")
            failed.append(step.command[0])
            continue
        ran += 1
        record[str(step.writes[0])] = {
            "command": list(step.command),
            "ended": time.time(),
            "wrote": {str(own): modified(own) for own in step.writes},
        }
        with write_atomically(path) as temporary:
            temporary.write_text(json.dumps(record, indent=1), encoding="utf8")
    shell.say(
        f"\n{ran} steps ran in {shell.duration(time.monotonic() - begun)}, "
        f"{len(steps) - ran - len(failed)} were done before: {shell.shown(page)}"
    )
    if failed:
        raise UserError(f"{len(failed)} steps failed: {', '.join(failed)} (see above)")


def run_script(command: Sequence[str]) -> None:
    """Run a script of this repository in this process: no model library is loaded twice."""
    script = shell.ROOT / command[0]
    with arguments(script, command[1:]):
        runpy.run_path(str(script))["main"]()


@contextmanager
def arguments(script: Path, given: Sequence[str]):  # noqa: ANN201
    """What Python gives a script: its arguments, and the modules beside it."""
    before = sys.argv, list(sys.path)
    sys.argv = [str(script), *given]
    sys.path.insert(0, str(script.parent))
    try:
        yield
    finally:
        sys.argv, sys.path[:] = before


def plan(args: argparse.Namespace, page: Path) -> list[Step]:
    """All steps in order."""
    name = Path(args.model).name
    results, graphs = args.output / "results", args.output / "graphs" / name
    given = ["--model", args.model, "--output", str(args.output)]
    run = list(given)
    for option in ("head", "batch_size", "device", "dtype"):
        if getattr(args, option) is not None:
            run += [f"--{option}", str(getattr(args, option))]
    tasks = list(args.tasks)
    main_tasks = [task for task in tasks if task in PARETO_TASKS] or tasks
    directory = TOY_MODEL if args.model == "toy" else Path(args.model).expanduser()
    weights = sorted(directory.glob("*.safetensors")) if directory.is_dir() else []
    steps: list[Step] = []

    def add(command: list[str], reads: Sequence[Path], writes: Sequence[Path]) -> None:
        steps.append(Step(tuple(command), tuple(reads), tuple(writes)))

    def data(*names: str) -> list[Path]:
        return [*weights, *(p for n in names for p in (shell.ROOT / "data" / n).glob("*.csv"))]

    def csv(study: str, table: str) -> Path:
        return results / study / name / "csv" / f"{table}.csv"

    def graph(table: str) -> Path:
        return graphs / f"{table}.json"

    def pictures(study: str, *names: str) -> list[Path]:
        folder = results / study / name
        return [folder / kind / f"{n}.{kind}" for n in names for kind in ("png", "pdf")]

    # ---- experiments
    pareto = "pareto_big.py" if args.large else "pareto.py"
    for task in tasks:
        scored = [graph(f"{task}_{suffix}") for suffix in ("vanilla", "task", "kl")]
        tables = [csv("pareto", task), csv("pareto", f"{task}_bands")]
        add([pareto, "--task", task, *run], data(task), [*tables, *scored])
    exact: dict[str, list[Path]] = {}
    for task in [] if args.no_exact else main_tasks:
        kinds = ("real", "vanilla", "ig")
        exact[task] = [graph(f"real_test/{task}_{TASKS[task].metric}_{kind}") for kind in kinds]
        others = {graph(f"real_test/{task}_{name}_real") for name in METRICS} - {*exact[task]}
        others.add(graph(f"real_test/{task}_kl_ig"))
        made = [csv("real", task), csv("real", f"{task}_bands"), *exact[task], *sorted(others)]
        add(["get_real_values.py", "--task", task, *run], data(task), made)
    ig_tables = {
        task: csv("ig_test", f"{task}_{TASKS[task].metric}_ig_test")
        for task in IG_TASKS
        if task in tasks
    }
    for task, table in ig_tables.items():
        names = [f"ig_test/{task}_{TASKS[task].metric}_{n}" for n in ("vanilla", *IG_STEPS)]
        made = [table, table.with_stem(f"{table.stem}_bands"), *map(graph, names)]
        add(["test_ig_iterations.py", "--task", task, *run], data(task), made)
    jaccard = [
        csv("jaccard", f"{kind}_{table}")
        for kind in ("edge", "node")
        for table in ("ious", "iou_ps", "overlap")
    ]
    circuits = [graph(f"{task}_circuit") for task in tasks]
    chosen = ["--tasks", *tasks, *run]
    scored = [graph(f"{task}_task") for task in tasks]
    heatmaps = pictures("jaccard", *(path.stem for path in jaccard))
    add(["overlap_heatmaps.py", *chosen], scored, [*jaccard, *circuits, *heatmaps])
    faithfulness = csv("cross-task", "faithfulness")
    add(["all_cross_task_faithfulness.py", *chosen], circuits, [faithfulness])

    # ---- figures
    curves = {task: csv("pareto", task) for task in tasks}
    main_curves = [curves[task] for task in main_tasks]
    figure = ["--tasks", *main_tasks, *given]
    first = "fact-retrieval-comma" if "fact-retrieval-comma" in tasks else main_tasks[0]
    add(
        ["results/first_figure/first_figure.py", "--tasks", first, *given],
        [curves[first]],
        pictures("first_figure", "first_figure"),
    )
    add(
        ["results/circuit/plot_circuit.py", "--tasks", main_tasks[0], *given],
        [graph(f"{main_tasks[0]}_task")],
        pictures("circuit", f"{main_tasks[0]}_circuit"),
    )
    scripts = {"plot_pareto": "pareto", "plot_pareto_normalized": "pareto_normalized"}
    scripts |= {"plot_pareto_big": "pareto_big"} if args.large else {}
    for script, picture in scripts.items():
        made = pictures("pareto", picture)
        add([f"results/pareto/{script}.py", *figure], main_curves, made)
    if variants := [task for task in tasks if task not in main_tasks]:
        add(
            ["results/pareto/plot_pareto_normalized_single.py", "--tasks", *variants, *given],
            [curves[task] for task in variants],
            pictures("pareto", f"pareto_normalized_{'_'.join(variants)}"),
        )
    add(
        ["results/real_pareto_combined/plot_real_pareto_normalized.py", *figure],
        [*main_curves, *(csv("real", task) for task in exact)],
        pictures("real_pareto_combined", "real_pareto_normalized"),
    )
    if exact:
        ranks = [csv("real_rank", f"{kind}-overlap") for kind in ("all", "edge", "node")]
        ranks.append(ranks[0].parent.with_name("correlations.json"))
        values = [path for own in exact.values() for path in own]
        add(["results/real_rank/compare_real.py", *figure], values, ranks)
        for script, picture in (
            ("plot_overlap", "correlation_overlap"),
            ("plot_kendall", "kendall_difference"),
            ("node_edge_overlap_plot", "node_edge_overlap"),
        ):
            made = pictures("real_rank", picture)
            add([f"results/real_rank/{script}.py", *figure], ranks, made)
    cross = [*jaccard, faithfulness]
    made = pictures("cross-task", "cross_task", "cross_task_own")
    add(["results/cross-task/make_all_heatmaps.py", *given], cross, made)
    made = pictures("cross-task", "recall")
    add(["results/cross-task/recall_heatmaps.py", *given], cross, made)
    if ig_tables:
        add(
            ["results/ig_test/plot_ig_test.py", "--tasks", *ig_tables, *given],
            list(ig_tables.values()),
            pictures("ig_test", "ig_test"),
        )
    if load_config(args.model) == (12, 12):  # the shape of the hand-made circuits' model
        for script, task in (("ioi_overlap", "ioi"), ("greater_overlap", "greater-than")):
            if task in tasks:
                add(
                    [f"results/manual_overlap/{script}.py", *given],
                    [graph(f"{task}_vanilla"), graph(f"{task}_task")],
                    [
                        *pictures("manual_overlap", f"{task}_precision_recall"),
                        csv("manual_overlap", f"{task}_node_edge_precision_recall"),
                    ],
                )

    shown = [path for step in steps for path in step.writes if path.suffix in (".png", ".csv")]
    add(["results/report.py", *given], shown, [page])
    return steps


if __name__ == "__main__":
    shell.run(main)

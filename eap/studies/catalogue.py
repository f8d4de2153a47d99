"""Table of the paper's studies and figures: which script reads and writes which files.

`STEPS` lists the scripts of the whole paper in an order in which they can run; `FIGURES` (in
`paper_figures`) lists the figures that they make. The workflow (`workflow/Snakefile`), the report,
the tests and the documentation read both. Nothing here imports torch.

Paths are templates below the output folder, with these placeholders:

* `{model}`: last part of the model's name;
* `{task}`: a task;
* `{metric}`: metric of the task;
* `{exact}`: each graph of exact values (`<metric>_real` for four metrics if all edges are patched;
  `<metric>_verified` for two metrics if only some are);
* `{points}`: each number of integration points in Figure 7;
* `{tasks}`: names of all tasks of the step.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from eap.data.tasks import PARETO_TASKS

METRICS = ("logit_diff", "prob_diff", "kl", "js")
"""Metrics of the exact values."""

POINTS = ("vanilla", "2", "3", "5", "7", "10", "15", "20", "30", "50")
"""Curves of Figure 7: EAP, and EAP-IG with these numbers of points."""

POINTS_TASKS = ("ioi", "greater-than", "gender-bias")
"""Tasks of Figure 7."""

COUNTRIES = "fact-retrieval-comma"
"""The task of Figure 1."""


@dataclass(frozen=True)
class Run:
    """Scope of a run of the whole paper.

    Attributes:
        exact: whether exact values are measured.
        large: whether circuit sizes go up to a share of all edges, for models like gpt2-xl.
        gpt2_shaped: whether the model has 12 layers of 12 heads, like the circuits found by hand.
    """

    exact: bool = True
    large: bool = False
    gpt2_shaped: bool = False


Names = tuple[str, ...]


def every_task(tasks: Names) -> Names:
    """All requested tasks."""
    return tasks


def main_tasks(tasks: Names) -> Names:
    """Requested tasks of the main figures, or all requested tasks if none of them is one."""
    return tuple(task for task in tasks if task in PARETO_TASKS) or tasks


def variants(tasks: Names) -> Names:
    """Tasks that are not in the main figures."""
    return tuple(task for task in tasks if task not in main_tasks(tasks))


def countries(tasks: Names) -> Names:
    """The task of Figure 1 if requested, otherwise the first task."""
    return (COUNTRIES,) if COUNTRIES in tasks else first_task(tasks)


def first_task(tasks: Names) -> Names:
    """The first task of the main figures."""
    return main_tasks(tasks)[:1]


def only(*names: str) -> Callable[[Names], Names]:
    """A chooser of the given tasks, as far as they were requested."""
    return lambda tasks: tuple(task for task in tasks if task in names)


@dataclass(frozen=True)
class Step:
    """A script of the paper.

    Attributes:
        name: unique name of the step.
        script: path of the script in the repository.
        asks: question that the step answers, or name of the figure that it draws.
        tasks: function that chooses the step's tasks among the requested tasks.
        option: option that names the tasks: `--task` (one run per task), `--tasks`, or "" (none).
        runs_model: whether the step loads the model (and takes `--head`, `--batch_size`, etc.).
        reads: templates of the results of earlier steps that the step needs.
        also_reads: templates of results that the step uses if they exist.
        writes: templates of all files that the step writes.
        when: predicate that decides whether the step belongs to a run.
    """

    name: str
    script: str
    asks: str
    tasks: Callable[[Names], Names] = every_task
    option: Literal["--task", "--tasks", ""] = "--tasks"
    runs_model: bool = False
    reads: tuple[str, ...] = ()
    also_reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    when: Callable[[Run], bool] = lambda run: True


def _csv(study: str, *names: str) -> tuple[str, ...]:
    return tuple(f"results/{study}/{{model}}/csv/{name}.csv" for name in names)


def _graphs(*names: str) -> tuple[str, ...]:
    return tuple(f"graphs/{{model}}/{name}.json" for name in names)


def _pictures(study: str, *names: str) -> tuple[str, ...]:
    kinds = ("png", "pdf")
    return tuple(f"results/{study}/{{model}}/{k}/{n}.{k}" for n in names for k in kinds)


_CURVES = _csv("pareto", "{task}", "{task}_bands")
_SCORES = _graphs("{task}_vanilla", "{task}_task", "{task}_kl")
_EXACT = _graphs(
    "real_test/{task}_{exact}",
    "real_test/{task}_{metric}_vanilla",
    "real_test/{task}_{metric}_ig",
    "real_test/{task}_kl_ig",
)
_EXACT_CURVES = _csv("real", "{task}", "{task}_bands")
OVERLAPS = ("edge_ious", "edge_iou_ps", "edge_overlap", "node_ious", "node_iou_ps", "node_overlap")
_RANKS = (
    *_csv("real_rank", "all-overlap", "edge-overlap", "node-overlap"),
    "results/real_rank/{model}/correlations.json",
)
_CROSS = (*_csv("jaccard", *OVERLAPS), *_csv("cross-task", "faithfulness"))
_STABILITY = _csv("stability", "{task}", "{task}_edges", "{task}_areas", "{task}_verdicts")
_POINTS_CURVES = _csv("ig_test", "{task}_{metric}_ig_test", "{task}_{metric}_ig_test_bands")

STEPS: tuple[Step, ...] = (
    Step(
        "pareto", "pareto.py",
        "how faithful are circuits of each size? EAP, EAP-IG, EAP-IG with KL",
        option="--task", runs_model=True, writes=(*_CURVES, *_SCORES),
        when=lambda run: not run.large,
    ),
    Step(
        "pareto_big", "pareto_big.py", "the same, with sizes up to a share of all edges",
        option="--task", runs_model=True, writes=(*_CURVES, *_SCORES), when=lambda run: run.large,
    ),
    Step(
        "exact", "get_real_values.py", "what is the exact value of every edge?",
        tasks=main_tasks, option="--task", runs_model=True,
        writes=(*_EXACT_CURVES, *_EXACT), when=lambda run: run.exact,
    ),
    Step(
        "ig_test", "test_ig_iterations.py", "how many points of integrated gradients are enough?",
        tasks=only(*POINTS_TASKS), option="--task", runs_model=True,
        writes=(*_POINTS_CURVES, *_graphs("ig_test/{task}_{metric}_{points}")),
    ),
    Step(
        "overlap", "overlap_heatmaps.py",
        "how much do the tasks' circuits overlap, and how likely is that by chance?",
        runs_model=True, reads=_graphs("{task}_task"),
        writes=(
            *_csv("jaccard", *OVERLAPS), *_graphs("{task}_circuit"),
            *_pictures("jaccard", *OVERLAPS),
        ),
    ),
    Step(
        "cross_task", "all_cross_task_faithfulness.py", "does one task's circuit do another task?",
        runs_model=True, reads=_graphs("{task}_circuit"), writes=_csv("cross-task", "faithfulness"),
    ),
    Step(
        "figure_1", "results/first_figure/first_figure.py", "Figure 1",
        tasks=countries, reads=_CURVES, writes=_pictures("first_figure", "first_figure"),
    ),
    Step(
        "figure_2", "results/circuit/plot_circuit.py", "Figure 2",
        tasks=first_task, reads=(*_graphs("{task}_task"), *_CURVES),
        writes=_pictures("circuit", "{task}_circuit"),
    ),
    Step(
        "metrics", "results/pareto/plot_pareto.py", "the metrics themselves",
        tasks=main_tasks, reads=_CURVES, writes=_pictures("pareto", "pareto"),
    ),
    Step(
        "figure_11", "results/pareto/plot_pareto_normalized.py", "Figure 11",
        tasks=main_tasks, reads=_CURVES, writes=_pictures("pareto", "pareto_normalized"),
    ),
    Step(
        "figure_11_shares", "results/pareto/plot_pareto_big.py", "Figure 11, by share of all edges",
        tasks=main_tasks, reads=_CURVES, writes=_pictures("pareto", "pareto_big"),
        when=lambda run: run.large,
    ),
    Step(
        "figure_10", "results/pareto/plot_pareto_normalized_single.py", "Figure 10",
        tasks=variants, reads=_CURVES, writes=_pictures("pareto", "pareto_normalized_{tasks}"),
    ),
    Step(
        "figure_3", "results/real_pareto_combined/plot_real_pareto_normalized.py", "Figure 3",
        tasks=main_tasks, reads=_CURVES, also_reads=_EXACT_CURVES,
        writes=_pictures("real_pareto_combined", "real_pareto_normalized"),
    ),
    Step(
        "compare_real", "results/real_rank/compare_real.py",
        "how well do the estimates agree with exact values?",
        tasks=main_tasks, reads=_EXACT, writes=_RANKS, when=lambda run: run.exact,
    ),
    Step(
        "figure_4", "results/real_rank/plot_overlap.py", "Figure 4",
        tasks=main_tasks, reads=_RANKS, writes=_pictures("real_rank", "correlation_overlap"),
        when=lambda run: run.exact,
    ),
    Step(
        "figure_8", "results/real_rank/plot_kendall.py", "Figure 8",
        tasks=main_tasks, reads=_RANKS, writes=_pictures("real_rank", "kendall_difference"),
        when=lambda run: run.exact,
    ),
    Step(
        "figure_9", "results/real_rank/node_edge_overlap_plot.py", "Figure 9",
        tasks=main_tasks, reads=_RANKS, writes=_pictures("real_rank", "node_edge_overlap"),
        when=lambda run: run.exact,
    ),
    Step(
        "figure_5", "results/cross-task/make_all_heatmaps.py", "Figure 5",
        option="", reads=_CROSS, writes=_pictures("cross-task", "cross_task", "cross_task_own"),
    ),
    Step(
        "appendix_i", "results/cross-task/recall_heatmaps.py", "Appendix I",
        option="", reads=_CROSS, writes=_pictures("cross-task", "recall"),
    ),
    Step(
        "figure_7", "results/ig_test/plot_ig_test.py", "Figure 7",
        tasks=only(*POINTS_TASKS), reads=_POINTS_CURVES, writes=_pictures("ig_test", "ig_test"),
    ),
    *(
        Step(
            f"figure_6_{task.replace('-', '_')}", f"results/manual_overlap/{script}",
            f"Figure 6, {side}",
            tasks=only(task), option="", reads=_graphs("{task}_vanilla", "{task}_task"),
            writes=(
                *_csv("manual_overlap", "{task}_node_edge_precision_recall"),
                *_pictures("manual_overlap", "{task}_precision_recall"),
            ), when=lambda run: run.gpt2_shaped,
        )
        for task, script, side in (
            ("ioi", "ioi_overlap.py", "left"), ("greater-than", "greater_overlap.py", "right"),
        )
    ),
    Step(
        "stability", "stability.py",
        "how sure is a circuit over examples, how good is its ranking, and is it what it seems?",
        option="--task", runs_model=True, writes=_STABILITY,
    ),
    Step(
        "figure_stability", "results/stability/plot_stability.py", "stability of circuits",
        reads=_csv("stability", "{task}"), writes=_pictures("stability", "edges", "nodes"),
    ),
    Step(
        "positions", "positions.py",
        "are circuits whose edges are at spans of the prompt smaller at equal faithfulness?",
        tasks=main_tasks, option="--task", runs_model=True,
        writes=(*_csv("positions", "{task}"), "graphs/{model}/{task}_spans.safetensors"),
    ),
    Step(
        "figure_positions", "results/positions/plot_positions.py", "circuits at spans",
        tasks=main_tasks, reads=_csv("positions", "{task}"),
        writes=_pictures("positions", "pairs", "shares"),
    ),
    Step(
        "parts", "parts.py",
        "how many hidden units and channels of a circuit's nodes keep it faithful?",
        option="--task", runs_model=True, writes=_csv("parts", "{task}", "{task}_top"),
    ),
    Step(
        "figure_parts", "results/parts/plot_parts.py", "faithfulness by number of parts",
        reads=_csv("parts", "{task}"), writes=_pictures("parts", "parts"),
    ),
    Step(
        "claims", "results/claims/claims.py", "which of the paper's claims hold for this model?",
        tasks=main_tasks, reads=_CURVES, also_reads=(*_RANKS, *_CROSS, *_POINTS_CURVES),
        writes=_csv("claims", "claims"),
    ),
    Step(
        "report", "results/report.py", "all figures and tables on one page",
        option="", writes=("results/{model}/report.html",),
    ),
)  # fmt: skip
"""Steps in an order in which they can run. The report reads all pictures and tables of the others.
"""


def as_pattern(template: str) -> str:
    """A template as a glob pattern: `{task}_circuit` -> `*_circuit`."""
    return re.sub(r"\{\w+\}", "*", template)

"""The one table of the paper's studies and figures: which script reads and writes what.

`STEPS` are the scripts of the whole paper in an order in which they can run; `FIGURES` is what
comes out of them. The workflow (`workflow/Snakefile`), the report, the tests and the documentation
read both. Nothing here imports torch.

Paths are templates below the output folder: `{model}` is the last part of the model's name,
`{task}` a task, `{metric}` that task's metric, `{exact}` each of the graphs of exact values (of all
edges: `<metric>_real` for four metrics; of a choice: `<metric>_verified` for two), `{points}` each
of Figure 7's numbers of integration points, `{tasks}` the names of all tasks that a step has.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from eap.data.tasks import PARETO_TASKS

METRICS = ("logit_diff", "prob_diff", "kl", "js")
"""Of the exact values."""

POINTS = ("vanilla", "2", "3", "5", "7", "10", "15", "20", "30", "50")
"""Of Figure 7: EAP, and EAP-IG with so many points."""

POINTS_TASKS = ("ioi", "greater-than", "gender-bias")
"""Those of Figure 7."""

COUNTRIES = "fact-retrieval-comma"
"""The task of Figure 1."""


@dataclass(frozen=True)
class Run:
    """What a run of the whole paper is of.

    Attributes:
        exact: exact values are measured.
        large: circuits have sizes up to a share of all edges, for models like gpt2-xl.
        gpt2_shaped: the model has 12 layers of 12 heads, as the hand-made circuits have.
    """

    exact: bool = True
    large: bool = False
    gpt2_shaped: bool = False


def always(run: Run) -> bool:
    """Belongs to every run."""
    return True


def small(run: Run) -> bool:
    """Belongs to runs of circuits with up to 1,000 edges."""
    return not run.large


def large(run: Run) -> bool:
    """Belongs to runs of circuits up to a share of all edges."""
    return run.large


def exact(run: Run) -> bool:
    """Belongs to runs that measure exact values."""
    return run.exact


def gpt2_shaped(run: Run) -> bool:
    """Belongs to runs of models of GPT-2 small's shape."""
    return run.gpt2_shaped


Names = tuple[str, ...]


def every_task(tasks: Names) -> Names:
    """All tasks that were asked for."""
    return tasks


def main_tasks(tasks: Names) -> Names:
    """Tasks of the main figures; others stand in them if they are all there is."""
    return tuple(task for task in tasks if task in PARETO_TASKS) or tasks


def variants(tasks: Names) -> Names:
    """Tasks that the main figures do not have."""
    return tuple(task for task in tasks if task not in main_tasks(tasks))


def points_tasks(tasks: Names) -> Names:
    """Tasks of Figure 7."""
    return tuple(task for task in tasks if task in POINTS_TASKS)


def countries(tasks: Names) -> Names:
    """The task of Figure 1, or the first."""
    return (COUNTRIES,) if COUNTRIES in tasks else first_task(tasks)


def first_task(tasks: Names) -> Names:
    """The first task of the main figures."""
    return main_tasks(tasks)[:1]


def named(name: str) -> Callable[[Names], Names]:
    """One task, if it was asked for."""
    return lambda tasks: tuple(task for task in tasks if task == name)


@dataclass(frozen=True)
class Step:
    """A script of the paper.

    Attributes:
        name: name of the step, unique.
        script: path in the repository.
        asks: the question it answers, or what it draws.
        tasks: chooses those that it works on among the tasks that were asked for.
        option: option that names the tasks: `--task` (a run for each), `--tasks`, or "" (not at
            all).
        runs_model: whether it loads the model (and takes `--head`, `--batch_size`, ..).
        reads: templates of the results of earlier steps that it needs.
        also_reads: those that it uses where there are any.
        writes: templates of all that it writes.
        when: says whether it belongs to a run.
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
    when: Callable[[Run], bool] = always


@dataclass(frozen=True)
class Figure:
    """A figure of the paper, or a table that stands in its place in the report.

    Attributes:
        label: "Figure 3", or a title where the paper has no number for it.
        title: what it shows, in a few words.
        caption: what one sees, in a sentence or two.
        script: script that draws it; "" for tables alone.
        study: folder below results/ that it is in.
        pictures: names of the pictures (templates), without folder and suffix.
        tables: names (templates) of the CSVs behind it.
    """

    label: str
    title: str
    caption: str
    script: str
    study: str
    pictures: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()


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
_OVERLAPS = ("edge_ious", "edge_iou_ps", "edge_overlap", "node_ious", "node_iou_ps", "node_overlap")
_RANKS = (
    *_csv("real_rank", "all-overlap", "edge-overlap", "node-overlap"),
    "results/real_rank/{model}/correlations.json",
)
_CROSS = (*_csv("jaccard", *_OVERLAPS), *_csv("cross-task", "faithfulness"))
_STABILITY = _csv("stability", "{task}", "{task}_edges", "{task}_areas", "{task}_verdicts")
_POINTS_CURVES = _csv("ig_test", "{task}_{metric}_ig_test", "{task}_{metric}_ig_test_bands")

STEPS: tuple[Step, ...] = (
    Step(
        "pareto", "pareto.py",
        "how faithful are circuits of each size? EAP, EAP-IG, EAP-IG with KL",
        option="--task", runs_model=True, writes=(*_CURVES, *_SCORES), when=small,
    ),
    Step(
        "pareto_big", "pareto_big.py", "the same, with sizes up to a share of all edges",
        option="--task", runs_model=True, writes=(*_CURVES, *_SCORES), when=large,
    ),
    Step(
        "exact", "get_real_values.py", "what is the exact value of every edge?",
        tasks=main_tasks, option="--task", runs_model=True,
        writes=(*_EXACT_CURVES, *_EXACT), when=exact,
    ),
    Step(
        "ig_test", "test_ig_iterations.py", "how many points of integrated gradients are enough?",
        tasks=points_tasks, option="--task", runs_model=True,
        writes=(*_POINTS_CURVES, *_graphs("ig_test/{task}_{metric}_{points}")),
    ),
    Step(
        "overlap", "overlap_heatmaps.py",
        "how much do the tasks' circuits overlap, and how likely is that by chance?",
        runs_model=True, reads=_graphs("{task}_task"),
        writes=(
            *_csv("jaccard", *_OVERLAPS), *_graphs("{task}_circuit"),
            *_pictures("jaccard", *_OVERLAPS),
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
        tasks=main_tasks, reads=_CURVES, writes=_pictures("pareto", "pareto_big"), when=large,
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
        tasks=main_tasks, reads=_EXACT, writes=_RANKS, when=exact,
    ),
    Step(
        "figure_4", "results/real_rank/plot_overlap.py", "Figure 4",
        tasks=main_tasks, reads=_RANKS, writes=_pictures("real_rank", "correlation_overlap"),
        when=exact,
    ),
    Step(
        "figure_8", "results/real_rank/plot_kendall.py", "Figure 8",
        tasks=main_tasks, reads=_RANKS, writes=_pictures("real_rank", "kendall_difference"),
        when=exact,
    ),
    Step(
        "figure_9", "results/real_rank/node_edge_overlap_plot.py", "Figure 9",
        tasks=main_tasks, reads=_RANKS, writes=_pictures("real_rank", "node_edge_overlap"),
        when=exact,
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
        tasks=points_tasks, reads=_POINTS_CURVES, writes=_pictures("ig_test", "ig_test"),
    ),
    Step(
        "figure_6_ioi", "results/manual_overlap/ioi_overlap.py", "Figure 6, left",
        tasks=named("ioi"), option="", reads=_graphs("{task}_vanilla", "{task}_task"),
        writes=(
            *_csv("manual_overlap", "{task}_node_edge_precision_recall"),
            *_pictures("manual_overlap", "{task}_precision_recall"),
        ), when=gpt2_shaped,
    ),
    Step(
        "figure_6_greater_than", "results/manual_overlap/greater_overlap.py",
        "Figure 6, right",
        tasks=named("greater-than"), option="", reads=_graphs("{task}_vanilla", "{task}_task"),
        writes=(
            *_csv("manual_overlap", "{task}_node_edge_precision_recall"),
            *_pictures("manual_overlap", "{task}_precision_recall"),
        ), when=gpt2_shaped,
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
"""In an order in which they can run. The report reads every picture and table of the others."""

FIGURES: tuple[Figure, ...] = (
    Figure(
        "Figure 1", "Why integrated gradients",
        "Left: where a GELU is flat at the clean input, its gradient there (EAP) says that nothing "
        "would change; the mean gradient along the path (EAP-IG) says better. Right: what that "
        "does for the faithfulness of circuits.",
        "results/first_figure/first_figure.py", "first_figure", ("first_figure",),
    ),
    Figure(
        "Figure 2", "A circuit",
        "The smallest measured circuit that does the task; or, if that is too large to be read, a "
        "smaller one that does not, which is said. Layers upwards. Lines into a head end at the "
        "q, k or v in its box; the "
        "wider a line, the larger the edge's score.",
        "results/circuit/plot_circuit.py", "circuit", ("{task}_circuit",),
    ),
    Figure(
        "Figure 3", "Faithfulness of circuits by size",
        "Normalised faithfulness of circuits by size: 1 is the whole model, 0 the corrupted run. "
        "Bands: 95% confidence of the share over examples; grey: from the lowest to the highest of "
        "a few circuits of the same size that were selected by random scores, averaged over three "
        "neighbouring sizes.",
        "results/real_pareto_combined/plot_real_pareto_normalized.py", "real_pareto_combined",
        ("real_pareto_normalized",),
    ),
    Figure(
        "Figure 4", "Agreement of estimates with exact values",
        "How the estimates' absolute scores agree with exact ones: correlation over all edges "
        "(where a choice of edges has exact values, its sample stands for the others), and average "
        "overlap of the edges that rank highest.",
        "results/real_rank/plot_overlap.py", "real_rank", ("correlation_overlap",),
        ("all-overlap",),
    ),
    Figure(
        "Figure 5", "One task's circuit on another task",
        "Overlap of the tasks' circuits beside the faithfulness of each circuit (column) on each "
        "task (row): first as a share of the whole model's, then of the task's own circuit's.",
        "results/cross-task/make_all_heatmaps.py", "cross-task", ("cross_task", "cross_task_own"),
        ("faithfulness",),
    ),
    Figure(
        "Figure 6", "Circuits found by hand",
        "The edges that rank highest against circuits that people found by hand.",
        "results/manual_overlap/ioi_overlap.py", "manual_overlap", ("{task}_precision_recall",),
        ("{task}_node_edge_precision_recall",),
    ),
    Figure(
        "Figure 7", "Points of integrated gradients",
        "Normalised faithfulness by the number of points of integrated gradients.",
        "results/ig_test/plot_ig_test.py", "ig_test", ("ig_test",), ("{task}_{metric}_ig_test",),
    ),
    Figure(
        "Figure 8", "Differences and rank agreement",
        "Mean absolute difference of estimates from exact values, and rank agreement with them.",
        "results/real_rank/plot_kendall.py", "real_rank", ("kendall_difference",),
    ),
    Figure(
        "Figure 9", "Nodes and edges shared with exact circuits",
        "Nodes and edges that circuits from estimates share with circuits from exact values.",
        "results/real_rank/node_edge_overlap_plot.py", "real_rank", ("node_edge_overlap",),
        ("node-overlap", "edge-overlap"),
    ),
    Figure(
        "Figure 10", "The variants of greater-than",
        "As Figure 3 without the exact curves, for the variants of greater-than.",
        "results/pareto/plot_pareto_normalized_single.py", "pareto", ("pareto_normalized_{tasks}",),
    ),
    Figure(
        "Figure 11", "Other models",
        "As Figure 3 without the exact curves; large models have sizes up to a share of all edges.",
        "results/pareto/plot_pareto_normalized.py", "pareto", ("pareto_normalized", "pareto_big"),
    ),
    Figure(
        "The metrics themselves", "Metrics of circuits by size",
        "As Figure 3, not normalised: solid line the clean run, dotted line the corrupted one.",
        "results/pareto/plot_pareto.py", "pareto", ("pareto",), ("{task}",),
    ),
    Figure(
        "Appendix I", "Recall of circuits across tasks",
        "The share of a task's circuit (row) that another's (column) has, beside faithfulness.",
        "results/cross-task/recall_heatmaps.py", "cross-task", ("recall",),
    ),
    Figure(
        "Overlap, and chance", "Overlap of the tasks' circuits",
        "Intersection over union of the tasks' circuits, the share of the row's circuit in the "
        "column's, and the probability of an overlap this large by chance (hypergeometric).",
        "overlap_heatmaps.py", "jaccard", _OVERLAPS, _OVERLAPS,
    ),
    Figure(
        "Positions", "Edges at spans of the prompt",
        "Normalised faithfulness of circuits that consist of pairs of an edge and a span of the "
        "prompt, and of circuits whose edges are everywhere, against what they keep: pairs, and "
        "their share of all pairs that can change something. Bands: 95% confidence of the share.",
        "results/positions/plot_positions.py", "positions", ("pairs", "shares"), ("{task}",),
    ),
    Figure(
        "Stability", "How far the circuits can be trusted",
        "Mean Jaccard similarity of circuits found on resampled examples, beside that of random "
        "circuits and of a null task, whose answers are shuffled: what a null task reaches is no "
        "evidence. The tables: areas of the ranking with 95% intervals over examples (CPR above 1 "
        "is overshoot, CMD 0 is best), verdicts on one circuit with their p-values, and the "
        "similarities.",
        "results/stability/plot_stability.py", "stability", ("edges", "nodes"),
        ("{task}_areas", "{task}_verdicts", "{task}"),
    ),
    Figure(
        "Parts", "How many parts of a circuit's nodes it needs",
        "Normalised faithfulness of a circuit whose MLPs keep only their best hidden units, or "
        "whose heads keep only their best channels, by the share that is kept, with 95% confidence "
        "over examples; dashed: as many that are drawn by chance.",
        "results/parts/plot_parts.py", "parts", ("parts",), ("{task}", "{task}_top"),
    ),
    Figure(
        "Claims", "The paper's claims, asked of this model",
        "The quantity behind each claim, averaged over tasks, and its 95% interval over tasks: a "
        "claim holds if the whole interval lies above holds_above, does not hold if it lies below, "
        "and is inconclusive otherwise.",
        "results/claims/claims.py", "claims", (), ("claims",),
    ),
    Figure(
        "Exact values", "Circuits from exact values",
        "The curves of Figure 3 from exact values.",
        "", "real", (), ("{task}",),
    ),
)  # fmt: skip
"""In the order of the report."""


def as_pattern(template: str) -> str:
    """A template as a glob pattern: `{task}_circuit` -> `*_circuit`."""
    return re.sub(r"\{\w+\}", "*", template)

"""Figures that the steps of `catalogue` make, each with its title and caption."""

from dataclasses import dataclass

from eap.studies.catalogue import OVERLAPS


@dataclass(frozen=True)
class Figure:
    """A figure of the paper, or a table that takes the place of a figure in the report.

    Attributes:
        label: number in the paper, such as "Figure 3", or a title if there is no number.
        title: subject of the figure in a few words.
        caption: description of the figure in a sentence or two.
        script: script that draws the figure; "" if there are only tables.
        study: name of the folder below results/.
        pictures: templates of the names of the pictures, without folder and suffix.
        tables: templates of the names of the CSV files behind the figure.
    """

    label: str
    title: str
    caption: str
    script: str
    study: str
    pictures: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()


BANDS = (
    "Bands: 95% confidence interval over examples. Grey: range (lowest to highest) of a few "
    "circuits of the same size selected by random scores, averaged over three neighbouring sizes."
)

FIGURES: tuple[Figure, ...] = (
    Figure(
        "Figure 1", "Why integrated gradients",
        "Left: if a GELU is flat at the clean input, the gradient at that point (EAP) predicts no "
        "change; the mean gradient along the path (EAP-IG) predicts the change better. Right: "
        "the effect on the faithfulness of circuits.",
        "results/first_figure/first_figure.py", "first_figure", ("first_figure",),
    ),
    Figure(
        "Figure 2", "A circuit",
        "The smallest measured circuit that does the task. If that circuit is too large to read, "
        "the picture shows a smaller circuit that does not do the task, and says so. The first "
        "layer is at the bottom. Edges into a head end at the q, k or v in the head's box; the "
        "wider a line, the larger the edge's score.",
        "results/circuit/plot_circuit.py", "circuit", ("{task}_circuit",),
    ),
    Figure(
        "Figure 3", "Faithfulness of circuits by size",
        "Normalised faithfulness of circuits by size: 1 is the whole model, 0 the corrupted run. "
        f"{BANDS}",
        "results/real_pareto_combined/plot_real_pareto_normalized.py", "real_pareto_combined",
        ("real_pareto_normalized",),
    ),
    Figure(
        "Figure 4", "Agreement of estimates with exact values",
        "Agreement of the absolute scores of estimates with exact values: the correlation over "
        "all edges, and the average overlap of the edges that rank highest. If only some edges "
        "have exact values, the random sample represents the edges that were not chosen.",
        "results/real_rank/plot_overlap.py", "real_rank", ("correlation_overlap",),
        ("all-overlap",),
    ),
    Figure(
        "Figure 5", "One task's circuit on another task",
        "The overlap of the tasks' circuits, and the faithfulness of each circuit (column) on each "
        "task (row): first as a share of the whole model's faithfulness, then as a share of the "
        "faithfulness of the task's own circuit.",
        "results/cross-task/make_all_heatmaps.py", "cross-task", ("cross_task", "cross_task_own"),
        ("faithfulness",),
    ),
    Figure(
        "Figure 6", "Circuits found by hand",
        "Precision and recall of the highest-ranking edges, compared with circuits found by hand.",
        "results/manual_overlap/ioi_overlap.py", "manual_overlap", ("{task}_precision_recall",),
        ("{task}_node_edge_precision_recall",),
    ),
    Figure(
        "Figure 7", "Points of integrated gradients",
        "Normalised faithfulness by number of integration points.",
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
        "Figure 10", "Faithfulness of single tasks' circuits",
        "Figure 3 without the exact curves, for single tasks; in the paper, for the variants of "
        f"greater-than. {BANDS}",
        "results/pareto/plot_pareto_normalized_single.py", "pareto", ("pareto_normalized_{tasks}",),
    ),
    Figure(
        "Figure 11", "Other models",
        "Figure 3 without the exact curves; on large models, sizes go up to a share of all edges. "
        f"{BANDS}",
        "results/pareto/plot_pareto_normalized.py", "pareto", ("pareto_normalized", "pareto_big"),
    ),
    Figure(
        "The metrics themselves", "Metrics of circuits by size",
        "Figure 3 without normalisation. Solid line: clean run; dotted line: corrupted run.",
        "results/pareto/plot_pareto.py", "pareto", ("pareto",), ("{task}",),
    ),
    Figure(
        "Appendix I", "Recall of circuits across tasks",
        "The share of one task's circuit (row) that is in another task's circuit (column), and "
        "the faithfulness of the circuits.",
        "results/cross-task/recall_heatmaps.py", "cross-task", ("recall",),
    ),
    Figure(
        "Overlap, and chance", "Overlap of the tasks' circuits",
        "Intersection over union of the tasks' circuits, the share of the row's circuit in the "
        "column's, and the probability of an overlap this large by chance (hypergeometric).",
        "overlap_heatmaps.py", "jaccard", OVERLAPS, OVERLAPS,
    ),
    Figure(
        "Positions", "Edges at spans of the prompt",
        "Normalised faithfulness of circuits made of pairs of an edge and a span of the prompt, "
        "and of circuits with edges at all positions, against the number of pairs kept, and "
        "against its share of all pairs that can change the metric. Bands: 95% confidence "
        "interval.",
        "results/positions/plot_positions.py", "positions", ("pairs", "shares"), ("{task}",),
    ),
    Figure(
        "Stability", "How far the circuits can be trusted",
        "Mean Jaccard similarity of circuits found on resampled examples, compared with random "
        "circuits and with a null task, whose answers are shuffled. A similarity that the null "
        "task also reaches is no evidence for a circuit. Tables: areas of the ranking with 95% "
        "intervals over examples (CPR above 1 is overshoot, CMD 0 is best), verdicts on one "
        "circuit with their p-values, and the similarities.",
        "results/stability/plot_stability.py", "stability", ("edges", "nodes"),
        ("{task}_areas", "{task}_verdicts", "{task}"),
    ),
    Figure(
        "Parts", "How many parts of a circuit's nodes it needs",
        "Normalised faithfulness of a circuit whose MLPs keep only their best hidden units, or "
        "whose heads keep only their best channels, by the share of parts kept, with 95% "
        "confidence intervals over examples. Dashed: the same number of parts drawn at random.",
        "results/parts/plot_parts.py", "parts", ("parts",), ("{task}", "{task}_top"),
    ),
    Figure(
        "Claims", "The paper's claims, asked of this model",
        "The quantity behind each claim, averaged over tasks, and its 95% interval over tasks. A "
        "claim holds if the whole interval lies above holds_above, does not hold if the whole "
        "interval lies below, and is inconclusive otherwise.",
        "results/claims/claims.py", "claims", (), ("claims",),
    ),
    Figure(
        "Exact values", "Circuits from exact values",
        "The curves of Figure 3 for circuits selected by exact values.",
        "", "real", (), ("{task}",),
    ),
)  # fmt: skip
"""Figures in the order of the report."""

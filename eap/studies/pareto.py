"""Faithfulness of circuits by size, from the scores of EAP, EAP-IG, EAP-IG-KL or other methods."""

from collections.abc import Sequence

import pandas as pd

from eap.data.dataset import Dataset
from eap.model.model import Model
from eap.runtime.progress import say
from eap.studies.paths import shown, table_file
from eap.studies.provenance import save_csv
from eap.studies.scoring import count_edges, describe, say_next, scored_curves
from eap.studies.settings import PAPER_CURVES, Settings, file_suffix
from eap.studies.sweep import baseline_note, curve_summary, faithfulness_curves


def pareto_study(
    settings: Settings,
    model: Model,
    dataset: Dataset,
    *,
    metric: str,
    sizes: Sequence[int],
    n_random: int,
    curves: Sequence[str] = tuple(PAPER_CURVES),
    batch_size: int | None = None,
    total_edges: bool = False,
) -> pd.DataFrame:
    """Score every edge with each method, measure circuits of every size, and save the results.

    Writes graphs/<model>/<task>_{vanilla,task,kl}.json (for other methods: <task>_<method>),
    results/pareto/<model>/csv/<task>.csv with the curves, and <task>_bands.csv in the same folder
    with standard errors and random circuits.

    Args:
        settings: settings of the experiment.
        model: model of `load_model_of`.
        dataset: data set of `load_task`.
        metric: metric of the scores and of faithfulness.
        sizes: numbers of edges to select.
        n_random: number of circuits with random scores per size.
        curves: names from `CURVES`; each curve X has the columns edges_X and loss_X.
        batch_size: batch size for measuring circuits; None: batch size of the settings.
        total_edges: whether to add a column with the number of all edges.

    Returns:
        The table of curves; see `faithfulness_curves`.
    """
    task = dataset.task
    csv = table_file(settings.output, "pareto", settings.model, task)
    n_edges = count_edges(settings, model)
    say(
        f"{task} by {metric} on {model.name}: {len(dataset)} pairs, {n_edges:,} edges, "
        f"circuits of {sizes[0]:,} to {sizes[-1]:,} edges -> {shown(csv)}"
    )
    scored = {}
    for name in dict.fromkeys(curves):
        suffix, method, other = PAPER_CURVES.get(name, (file_suffix(name), name, None))
        scored[name] = (f"{task}_{suffix}", method, other)
    graphs = scored_curves(settings, model, dataset, metric=metric, curves=scored)
    frame, bands = faithfulness_curves(
        model, graphs, dataset, metric=metric, sizes=sizes, n_random=n_random, seed=settings.seed,
        batch_size=batch_size or settings.batch_size, memory_budget=settings.memory,
    )  # fmt: skip
    if total_edges:
        frame.insert(3, "total_edges", n_edges)
    ig = {"ig_steps": settings.ig_steps, "ig_rule": settings.ig_rule}
    origin = describe(
        settings, model, dataset, metric=metric,
        method="faithfulness of circuits", methods=list(graphs),
        options={**ig, "n_random": n_random, "seed": settings.seed},
    )  # fmt: skip
    save_csv(frame, csv, origin)
    save_csv(bands, csv.with_name(f"{task}_bands.csv"), origin)
    clean, corrupted = frame[["baseline", "corrupted_baseline"]].iloc[0]
    say(f"\n{metric}: clean {clean:.3f}, corrupted {corrupted:.3f}; normalised faithfulness:")
    say(curve_summary(frame, list(graphs)))
    if note := baseline_note(frame, metric):
        say(note)
    script = "results/pareto/plot_pareto_normalized_single.py"
    say_next(csv, "draw it with", script, "--tasks", task, settings=settings)
    return frame

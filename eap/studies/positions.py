"""Faithfulness of circuits with edges at spans of the prompt, and of circuits without spans."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch

from eap.circuits import faithfulness
from eap.data.dataset import Dataset
from eap.graph.graph import Graph
from eap.model.model import Model
from eap.runtime.progress import say
from eap.studies.exact import ExactStudy, check_exact_metric
from eap.studies.paths import table_file
from eap.studies.provenance import save_csv
from eap.studies.scoring import attributed, describe, say_next
from eap.studies.settings import Settings

SHARES = (0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5)
"""Default shares of all pairs (or edges) to select."""


def positions_study(
    settings: Settings,
    model: Model,
    dataset: Dataset,
    *,
    metric: str,
    shares: Sequence[float] = SHARES,
    verify: int | None = None,
    sample: int = 200,
) -> pd.DataFrame:
    """Score every edge at every span once, and measure circuits with and without spans.

    Circuits of both kinds are selected greedily by absolute score and pruned: pairs of an edge and
    a span by their own scores, edges by the sums of scores over spans. The size of both kinds is
    counted in pairs. A pair whose score is exactly 0 cannot change the metric (for example before
    the first token that differs, or where the last layer is not read) and is not counted.

    Writes graphs/<model>/<task>_spans.safetensors and results/positions/<model>/csv/<task>.csv.

    Args:
        settings: settings of the experiment.
        model: model of `load_model_of`.
        dataset: dataset with spans, from `load_task`.
        metric: metric of the scores and of faithfulness.
        shares: shares to select of all pairs (or edges) that can change the metric.
        verify: number of best pairs to patch exactly, whose circuits are also measured; None:
            circuits by estimates only.
        sample: number of other pairs to patch, which show what the estimates miss.

    Returns:
        One row per circuit: `circuits` ('pairs', 'edges' or 'verified'), `share` (selected), the
        size after pruning (`n_edges`, `n_pairs` and `share_pairs` of all pairs that count), `loss`
        (mean of the metric), `stderr`, `normalised`, `stderr_share`, `baseline` and
        `corrupted_baseline`.
    """
    task = dataset.task
    if verify is not None:
        check_exact_metric(metric)
    csv = table_file(settings.output, "positions", settings.model, task)
    graph = attributed(
        settings, model, dataset, f"{task}_spans", method="EAP-IG", metric=metric, spans=True
    )
    rankings, screening = {"pairs": graph, "edges": graph.over_spans()}, {}
    if verify is not None:
        screening = {"verify": verify, "sample": sample, "seed": settings.seed}
        study = ExactStudy(settings, model, dataset, spans=True)
        exact = study.verify({metric: graph}, top=verify, sample=sample)
        rankings["verified"] = exact[metric]
    frame = measure_circuits(model, dataset, rankings, metric, shares, settings.resources)
    origin = describe(
        settings, model, dataset, metric=metric,
        method="faithfulness of circuits at spans", methods=["EAP-IG"],
        options={"ig_steps": settings.ig_steps, "ig_rule": settings.ig_rule, **screening},
        spans=dataset.span_names,
    )  # fmt: skip
    save_csv(frame, csv, origin)
    columns = ["circuits", "share", "n_edges", "n_pairs", "share_pairs", "normalised"]
    say(f"\n{task} by {metric} at {', '.join(dataset.span_names)}:")
    say(frame[columns].to_string(index=False, float_format="%.3f"))
    script = "results/positions/plot_positions.py"
    say_next(csv, "draw it with", script, "--tasks", task, settings=settings)
    return frame


def measure_circuits(
    model: Model,
    dataset: Dataset,
    rankings: Mapping[str, Graph],
    metric: str,
    shares: Sequence[float],
    resources: Mapping[str, Any],
) -> pd.DataFrame:
    """The table of `positions_study` for rankings by name, with or without spans.

    The ranking 'pairs' is required: only pairs with a nonzero score in that ranking are counted.
    """
    pairs = rankings["pairs"]
    counts = pairs.scores != 0
    rows, circuits = [], []
    for kind, scored in rankings.items():
        n_live = int((counts if scored.span_names else counts.any(dim=0)).sum())
        sizes = [max(1, round(share * n_live)) for share in shares]
        for share, selected in zip(shares, scored.greedy_circuits(sizes), strict=True):
            circuit = selected.prune()
            spread = circuit if scored.span_names else circuit.at_all_spans(pairs.span_names)
            n_pairs = int((spread.in_graph & counts).sum())
            rows.append(
                {
                    "circuits": kind,
                    "share": share,
                    "n_edges": int(circuit.in_any_span.sum()),
                    "n_pairs": n_pairs,
                    "share_pairs": n_pairs / int(counts.sum()),
                }
            )
            circuits.append(circuit)
    measured = faithfulness(model, circuits, dataset, metric=metric, quiet=False, **resources)
    values, n = measured.circuits.double(), len(dataset)
    # one example has no standard error
    errors = values.std(1) / n**0.5 if n > 1 else torch.full_like(values[:, 0], torch.nan)
    return pd.DataFrame(rows).assign(
        loss=values.mean(1).numpy(),
        stderr=errors.numpy(),
        normalised=measured.normalised,
        stderr_share=measured.standard_error,
        baseline=float(measured.clean.double().mean()),
        corrupted_baseline=float(measured.ablated.double().mean()),
    )

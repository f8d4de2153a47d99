"""Study of exact edge values: expected cost, files, and resuming after an interruption."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import Tensor

from eap.analysis.screening import choose_edges, merge, report
from eap.data.dataset import Dataset
from eap.engine.patch_plan import make_plan
from eap.graph.graph import Graph
from eap.model.model import Model
from eap.patching import measure_seconds, run_plan
from eap.runtime import distributed
from eap.runtime.checkpoint import Checkpoint, checkpoint_file
from eap.runtime.code import score_code
from eap.runtime.errors import UserError
from eap.runtime.progress import duration, say
from eap.runtime.resources import Resources
from eap.studies.paths import shown
from eap.studies.scoring import (
    check_finite,
    describe,
    graph_path,
    reusable,
    save_graph,
    scored_curves,
)
from eap.studies.settings import EXACT_CURVES, Settings, file_suffix

EXACT_METRICS = ("logit_diff", "prob_diff", "kl", "js")
"""Metrics that are measured in one pass; an additional metric costs almost nothing."""


@dataclass(frozen=True)
class ExactStudy:
    """Exact values of one task's edges.

    Attributes:
        settings: settings of the experiment.
        model: model of `load_model_of`.
        dataset: data set of `load_task`.
        save_every: seconds between two writes of the progress.
        spans: whether to measure every edge at every span of the data set's prompts.
    """

    settings: Settings
    model: Model
    dataset: Dataset
    save_every: float = 10.0
    spans: bool = False

    def every_edge(self) -> dict[str, Graph]:
        """The exact graphs of all metrics: reused if finished, resumed if interrupted.

        The graphs are saved as graphs/<model>/real_test/<task>_<metric>_real.json.
        """
        settings, model, dataset = self.settings, self.model, self.dataset
        paths = {
            metric: graph_path(settings, model, f"real_test/{dataset.task}_{metric}_real")
            for metric in EXACT_METRICS
        }
        origins = {
            metric: describe(
                settings, model, dataset, metric=metric, method="exact", code=score_code()
            )
            for metric in EXACT_METRICS
        }
        checkpoint = self._checkpoint(dataset.task)
        finished = self._finished(paths, origins)
        if finished is None:
            finished = self._patch(checkpoint, edges=None)
            self._keep(finished, paths)
        checkpoint.delete()
        return finished

    def verify(
        self, estimates: Mapping[str, Graph], *, also: Sequence[Graph] = (), top: int, sample: int
    ) -> dict[str, Graph]:
        """Exact values of the edges that the estimates rank highest, and of a sample of the others.

        The graphs are saved as <task>_<metric>_verified.json (with spans,
        <task>_<metric>_spans_verified.safetensors); edges that are not patched have estimates on
        the scale of exact values (`eap.analysis.screening.merge`). Prints what the sample says
        about the edges that are not patched.

        Args:
            estimates: scored graphs by metric, for edges without an exact value.
            also: further graphs that take part in the choice of edges.
            top: number of best edges; an edge counts by its best rank in any of the graphs.
            sample: number of other edges to patch.

        Returns:
            Graphs by metric, with exact scores where `is_exact` and scaled estimates elsewhere.
        """
        settings, dataset = self.settings, self.dataset
        chosen = choose_edges(
            [*also, *estimates.values()], top=top, sample=sample, seed=settings.seed
        )
        # The choice depends on all estimates, and so on metrics that a graph does not name.
        edges = sha256(chosen.all.numpy().tobytes()).hexdigest()[:16]
        of_screening = {"verify": top, "sample": sample, "seed": settings.seed, "edges": edges,
                        "others": "scaled"}  # fmt: skip
        paths, origins, at = {}, {}, "_spans" if self.spans else ""
        for metric in estimates:
            name = f"real_test/{dataset.task}_{metric}{at}_verified"
            path = graph_path(settings, self.model, name)
            paths[metric] = path.with_suffix(".safetensors") if self.spans else path
            origins[metric] = describe(
                settings, self.model, dataset, metric=metric, method="EAP-IG, verified",
                options={"steps": settings.ig_steps, "rule": settings.ig_rule, **of_screening},
                code=score_code(), spans=dataset.span_names if self.spans else (),
            )  # fmt: skip
        checkpoint = self._checkpoint(f"{dataset.task}{at}_verify", **of_screening)
        finished = self._finished(paths, origins)
        if finished is None:
            exact = self._patch(checkpoint, edges=chosen.all)
            finished = {
                metric: replace(merge(graph, exact[metric], chosen), provenance=origins[metric])
                for metric, graph in estimates.items()
            }
            self._keep(finished, paths)
        checkpoint.delete()
        for metric, estimate in estimates.items():
            say(f"\n{metric}\n{report(estimate, finished[metric], chosen)}")
        return finished

    def _finished(
        self, paths: Mapping[str, Path], origins: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, Graph] | None:
        """The saved graphs of all metrics, or None unless all exist with the same provenance."""
        graphs = {
            metric: reusable(path, origins[metric], overwrite=self.settings.overwrite)
            for metric, path in paths.items()
        }
        existing = {metric: graph for metric, graph in graphs.items() if graph is not None}
        return existing if len(existing) == len(paths) else None

    def _keep(self, graphs: Mapping[str, Graph], paths: Mapping[str, Path]) -> None:
        """Save all graphs, or none if a score is not finite."""
        check_finite({paths[metric].name: graph for metric, graph in graphs.items()})
        for metric, graph in graphs.items():
            save_graph(graph, paths[metric])

    def _checkpoint(self, name: str, **more: Any) -> Checkpoint:
        """The checkpoint of this run; runs with other settings have checkpoints of their own."""
        identity = describe(
            self.settings,
            self.model,
            self.dataset,
            metric="logit_diff",
            method="exact",
            code=score_code(),
            **more,
        )
        for key in ("command", "metric"):
            del identity[key]
        folder = graph_path(self.settings, self.model, f"real_test/{name}").parent
        path = checkpoint_file(folder, name, identity)
        others = sorted({*folder.glob(f"{name}-*.part*.safetensors")} - {path})
        if others and distributed.count() == 1:
            say(
                f"note: {shown(others[0])} is the progress of another run (other data, settings "
                "or code); delete this file if that run will not be resumed"
            )
        return Checkpoint(path, identity, self.save_every, overwrite=self.settings.overwrite)

    def _patch(self, checkpoint: Checkpoint, *, edges: Tensor | None) -> dict[str, Graph]:
        """Patch all edges (None) or the given ones: print the cost, and resume a stopped run."""
        settings, model, dataset = self.settings, self.model, self.dataset
        # A resumed run keeps its batch size, whatever memory is free now.
        earlier = checkpoint.setting("batch_size")
        limits = Resources(settings.batch_size or earlier, settings.memory)
        plan = make_plan(
            model, dataset, EXACT_METRICS, edges, limits,
            expanded_kv=settings.expanded_kv, spans=self.spans,
        )  # fmt: skip
        if model.dtype != model.residual_dtype:
            say(
                f"note: in {settings.dtype}, rounding errors are larger than the values of most "
                "edges; use float32 to resolve small values"
            )
        seconds = measure_seconds(plan)
        at = " at spans" if self.spans else ""
        say(
            f"exact values: {int(plan.edges.sum()):,} edges{at} x {len(dataset)} pairs in "
            f"{len(plan.units):,} pieces; up to {plan.work.n_bytes() / 2**20:,.0f} MiB beside "
            f"the weights, about {duration(seconds)} in all"
            + ("; resuming where an earlier run was stopped" if earlier else "")
        )
        return run_plan(plan, checkpoint=checkpoint, quiet=False)


def exact_estimates(
    settings: Settings, model: Model, dataset: Dataset, *, metric: str, curves: Sequence[str]
) -> dict[str, Graph]:
    """Estimates to compare with a task's exact values, by the names of their curves.

    The graphs are saved as graphs/<model>/real_test/<task>_<metric>_{vanilla,ig,<method>}.

    Args:
        settings: settings of the experiment.
        model: model of `load_model_of`.
        dataset: data set to score on.
        metric: metric of the scores.
        curves: names from `CURVES`.

    Raises:
        UserError: the metric's gradient at the clean input is zero, and every method needs it.
    """
    chosen = {}
    for name in dict.fromkeys(curves):
        suffix, method, scored_by = EXACT_CURVES.get(
            name, (f"{{metric}}_{file_suffix(name)}", name, None)
        )
        file = f"real_test/{dataset.task}_{suffix.format(metric=metric)}"
        chosen[name] = (file, method, scored_by)
    return scored_curves(settings, model, dataset, metric=metric, curves=chosen)


def check_exact_metric(metric: str) -> str:
    """Return the metric if exact values are measured for it.

    Raises:
        UserError: exact values are not measured for this metric.
    """
    if metric not in EXACT_METRICS:
        raise UserError(f"exact values are of {', '.join(EXACT_METRICS)}, not of {metric}")
    return metric

"""Study of exact edge values: expected cost, files, and resuming after an interruption."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
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
from eap.studies.scoring import describe, graph_path, kept_graphs, scored_curves
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
        origins = {metric: self._describe(metric) for metric in EXACT_METRICS}
        checkpoint = self._checkpoint(self.dataset.task)
        return self._kept(
            "real", origins, checkpoint, lambda: self._patch(checkpoint, edges=None).values()
        )

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
        options = {"steps": settings.ig_steps, "rule": settings.ig_rule, **of_screening}
        spans = dataset.span_names if self.spans else ()
        at = "spans_" if self.spans else ""
        origins = {
            metric: self._describe(metric, method="EAP-IG, verified", options=options, spans=spans)
            for metric in estimates
        }
        checkpoint = self._checkpoint(f"{dataset.task}_{at}verify", **of_screening)

        def patch() -> Iterable[Graph]:
            exact = self._patch(checkpoint, edges=chosen.all)
            for metric, graph in estimates.items():
                yield replace(merge(graph, exact[metric], chosen), provenance=origins[metric])

        finished = self._kept(f"{at}verified", origins, checkpoint, patch)
        for metric, estimate in estimates.items():
            say(f"\n{metric}\n{report(estimate, finished[metric], chosen)}")
        return finished

    def _kept(
        self,
        suffix: str,
        origins: Mapping[str, Mapping[str, Any]],
        checkpoint: Checkpoint,
        make: Callable[[], Iterable[Graph]],
    ) -> dict[str, Graph]:
        """The graphs <task>_<metric>_<suffix> of all metrics, reused or made; no progress is left.

        Args:
            suffix: end of the names of the files.
            origins: provenance of the graphs, by metric.
            checkpoint: progress of `make`.
            make: function that makes the graphs, in the order of `origins`.
        """
        task = self.dataset.task
        named = {f"real_test/{task}_{metric}_{suffix}": origins[metric] for metric in origins}
        graphs = kept_graphs(self.settings, self.model, named, make)
        checkpoint.delete()
        return dict(zip(origins, graphs, strict=True))

    def _describe(self, metric: str, *, method: str = "exact", **more: Any) -> dict[str, Any]:
        """Provenance of exact values of a metric."""
        more |= {"metric": metric, "method": method, "code": score_code()}
        return describe(self.settings, self.model, self.dataset, **more)

    def _checkpoint(self, name: str, **more: Any) -> Checkpoint:
        """The checkpoint of this run; runs with other settings have checkpoints of their own."""
        identity = self._describe("logit_diff", **more)
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

"""Exact values of edges as a study: what they cost, where they are kept, going on after a stop."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from eap.data.dataset import Dataset
from eap.engine.patch_plan import make_plan
from eap.errors import UserError
from eap.graph.graph import Graph
from eap.model.model import Model
from eap.patching import measure_seconds, run_plan
from eap.runtime import distributed
from eap.runtime.checkpoint import Checkpoint, checkpoint_file
from eap.runtime.progress import duration, say
from eap.runtime.resources import Resources
from eap.screening import choose_edges, merge, report
from eap.studies.paths import shown
from eap.studies.scoring import check_finite, describe, graph_path, reusable, save_graph
from eap.studies.settings import Settings

EXACT_METRICS = ("logit_diff", "prob_diff", "kl", "js")
"""Measured in one pass: a metric more costs next to nothing."""


@dataclass(frozen=True)
class ExactStudy:
    """Exact values of one task's edges.

    Attributes:
        settings: of the experiment.
        model: from `load_model_of`.
        dataset: from `load_task`.
        save_every: seconds between two writings of the progress.
    """

    settings: Settings
    model: Model
    dataset: Dataset
    save_every: float = 10.0

    def every_edge(self) -> dict[str, Graph]:
        """The exact graphs of all metrics: reused if finished, continued if begun.

        Kept as graphs/<model>/real_test/<task>_<metric>_real.json.
        """
        settings, model, dataset = self.settings, self.model, self.dataset
        paths = {
            metric: graph_path(settings, model, f"real_test/{dataset.task}_{metric}_real")
            for metric in EXACT_METRICS
        }
        origins = {
            metric: describe(settings, model, dataset, metric=metric, method="exact")
            for metric in EXACT_METRICS
        }
        finished = {
            metric: reusable(paths[metric], origins[metric], overwrite=settings.overwrite)
            for metric in EXACT_METRICS
        }
        checkpoint = self._checkpoint(dataset.task)
        if all(finished.values()):
            checkpoint.delete()
            return {metric: graph for metric, graph in finished.items() if graph is not None}
        graphs = self._patch(checkpoint, edges=None)
        check_finite({paths[metric].name: graph for metric, graph in graphs.items()})
        for metric, graph in graphs.items():
            save_graph(graph, paths[metric])
        checkpoint.delete()
        return graphs

    def verify(self, estimates: Mapping[str, Graph], *, top: int, sample: int) -> str:
        """Exact values of the edges that an estimate ranks highest, and of a sample of the others.

        Kept, beside the estimates of the rest, as <task>_<metric>_verified.json.

        Args:
            estimates: scored graphs by metric; each says which edges are its own best.
            top: how many of the highest.
            sample: how many of the others.

        Returns:
            By metric, what the sample says of the edges that are left out.
        """
        settings, dataset = self.settings, self.dataset
        chosen = {
            metric: choose_edges(estimate, top=top, sample=sample, seed=settings.seed)
            for metric, estimate in estimates.items()
        }
        of_screening = {"verify": top, "sample": sample, "seed": settings.seed}
        checkpoint = self._checkpoint(f"{dataset.task}_verify", **of_screening)
        edges = torch.stack([choice.all for choice in chosen.values()]).any(dim=0)
        exact = self._patch(checkpoint, edges=edges)
        for name, graph in estimates.items():
            origin = describe(
                settings, self.model, dataset, metric=name, method="EAP-IG, verified",
                options={"steps": settings.ig_steps, "rule": settings.ig_rule, **of_screening},
            )  # fmt: skip
            path = graph_path(settings, self.model, f"real_test/{dataset.task}_{name}_verified")
            save_graph(replace(merge(graph, exact[name]), provenance=origin), path)
        checkpoint.delete()
        return "\n\n".join(
            f"{metric}\n{report(estimate, exact[metric], chosen[metric])}"
            for metric, estimate in estimates.items()
        )

    def _checkpoint(self, name: str, **more: Any) -> Checkpoint:
        """Where the progress of a run is kept: every run, of whatever settings, has its own."""
        identity = describe(
            self.settings, self.model, self.dataset, metric="logit_diff", method="exact", **more
        )
        for key in ("command", "metric"):
            del identity[key]
        folder = graph_path(self.settings, self.model, f"real_test/{name}").parent
        path = checkpoint_file(folder, name, identity)
        others = sorted({*folder.glob(f"{name}-*.part*.safetensors")} - {path})
        if others and distributed.count() == 1:
            say(
                f"note: {shown(others[0])} is the progress of another run (other data, settings "
                "or code); delete it if nobody goes on with it"
            )
        return Checkpoint(path, identity, self.save_every, overwrite=self.settings.overwrite)

    def _patch(self, checkpoint: Checkpoint, *, edges: Tensor | None) -> dict[str, Graph]:
        """Exact values of all edges (None) or some: says the cost, goes on after a stop."""
        settings, model, dataset = self.settings, self.model, self.dataset
        # A batch size that was chosen by the memory that was free stays what it was.
        earlier = checkpoint.setting("batch_size")
        limits = Resources(settings.batch_size or earlier, settings.memory)
        plan = make_plan(
            model, dataset, EXACT_METRICS, edges, limits, expanded_kv=settings.expanded_kv
        )
        if model.dtype != model.residual_dtype:
            say(
                f"note: in {settings.dtype} a run's rounding is larger than the values of most "
                "edges; float32 tells small values apart"
            )
        seconds = measure_seconds(plan)
        say(
            f"exact values: {int(plan.edges.sum()):,} edges x {len(dataset)} pairs in "
            f"{len(plan.units):,} pieces; up to {plan.work.n_bytes() / 2**20:,.0f} MiB beside "
            f"the weights, about {duration(seconds)} in all"
            + ("; going on where an earlier run was stopped" if earlier else "")
        )
        return run_plan(plan, checkpoint=checkpoint, quiet=False)


def check_exact_metric(metric: str) -> str:
    """The metric, if exact values are of it.

    Raises:
        UserError: they are not.
    """
    if metric not in EXACT_METRICS:
        raise UserError(f"exact values are of {', '.join(EXACT_METRICS)}, not of {metric}")
    return metric

"""Faithfulness: the metric of the model when every edge outside a circuit is ablated.

The input of each receiver starts from its value when every edge is ablated (under resample
ablation, the corrupted run's residual stream). The edges of the circuit then add the change of
their senders:

    input of v = ablated input of v + sum over circuit edges u -> v of (a_u - a_u_ablated).

The normalised faithfulness of a circuit is (m(circuit) - m(ablated)) / (m(clean) - m(ablated))
(Hanna, Pezzelle and Belinkov 2024, section 3; the path-patching view of edges is that of
Goldowsky-Dill et al. 2023 and Conmy et al. 2023; circuits for a task, Wang et al. 2022).

A node with no circuit edge into any of its inputs computes the same output as when every edge is
ablated, so evaluating a circuit runs only the circuit's nodes (`eap.engine.circuit_runs`). The
clean and the ablated run are made once per batch and shared by all circuits and metrics.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import chain
from typing import Any, Literal, Unpack, overload

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from eap.ablation import AblatedCoefficients, Ablation, coefficients_of, get_ablation
from eap.data.batches import named_spans
from eap.data.dataset import Dataset
from eap.engine.circuit_runs import KeptParts, ablated_heads, plan_circuit, run_circuit
from eap.engine.prepared import Demand, Work
from eap.engine.signature import sign
from eap.graph import Graph
from eap.metrics.metric import (
    Metric,
    Predictions,
    check_values,
    get_metric,
    get_metrics,
    measure_all,
    warn_of_direction,
)
from eap.model.model import Model
from eap.model.shapes import graph_config
from eap.model.verbs import verb
from eap.parts.basis import PartCircuit, PartLayout, get_parts
from eap.runtime import distributed
from eap.runtime.errors import UserError, quoted
from eap.runtime.memory import Extent, Need, Shapes, evaluation_need
from eap.runtime.notebooks import html_table, listed
from eap.runtime.resources import ResourceOptions, Resources
from eap.statistics.measures import faithfulness_errors, normalised

Circuit = Graph | PartCircuit
N_ROWS = 20  # rows shown in a notebook


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """Faithfulness of circuits: the metric of the clean run, the ablated model and each circuit.

    Attributes:
        clean: metric of the whole model on every example.
        ablated: metric of the model with every edge ablated, on every example.
        circuits: metric [circuit, example] of each circuit.
        edges: number of edges of each circuit.
        provenance: origin of the values: model, data, metric, ablation, versions.

    Example:
        >>> result = eap.faithfulness(model, circuit, dataset)
        >>> result.circuits.shape, len(result.edges)
        (torch.Size([1, 8]), 1)
    """

    clean: Float[Tensor, " example"]
    ablated: Float[Tensor, " example"]
    circuits: Float[Tensor, "circuit example"]
    edges: tuple[int, ...]
    provenance: dict[str, Any]

    @property
    def corrupted(self) -> Float[Tensor, " example"]:
        """Former name of `ablated`."""
        message = "Faithfulness.corrupted is now Faithfulness.ablated"
        warnings.warn(message, FutureWarning, stacklevel=2)
        return self.ablated

    @property
    def normalised(self) -> Float[np.ndarray, " circuit"]:
        """(m(circuit) - m(ablated)) / (m(clean) - m(ablated)), with means over examples.

        Raises:
            UserError: the clean and the ablated mean are equal.
        """
        means = self.circuits.double().mean(1).numpy()
        return normalised(means, float(self.clean.double().mean()), self._low)

    @property
    def standard_error(self) -> Float[np.ndarray, " circuit"]:
        """Standard error of `normalised` over examples.

        This is the standard error of a ratio, because the clean, the ablated and the circuit's
        values vary together over the same examples.
        """
        return faithfulness_errors(self.circuits.numpy(), self.clean.numpy(), self.ablated.numpy())

    @property
    def _low(self) -> float:
        return float(self.ablated.double().mean())

    def to_frame(self) -> pd.DataFrame:
        """Make a table with a row per circuit.

        The columns are `edges`, `mean` (of the metric), `normalised` and `standard_error`.

        Raises:
            UserError: the clean and the ablated mean are equal.
        """
        means = self.circuits.double().mean(1).numpy()
        columns = {"normalised": self.normalised, "standard_error": self.standard_error}
        return pd.DataFrame({"edges": self.edges, "mean": means} | columns)

    def __repr__(self) -> str:
        metric, n = self.provenance.get("metric", "metric"), len(self.clean)
        return (
            f"Faithfulness({len(self.edges)} circuits of {listed(self.edges)} edges, {n} examples: "
            f"mean {metric} {float(self.clean.double().mean()):.4g} clean, {self._low:.4g} ablated)"
        )

    def _repr_html_(self) -> str:
        """Table with a row per circuit, for notebooks."""
        if float(self.clean.double().mean()) == self._low:
            return escape(repr(self))  # nothing to normalise by
        rows = self.to_frame().head(N_ROWS).round(4)
        more = len(self.edges) - len(rows)
        return html_table(
            repr(self), [*rows.columns], [*rows.itertuples(index=False)]
            + ([(f"{more:,} more",)] if more else []),
        )  # fmt: skip


@verb
def faithfulness(
    model: Model,
    circuits: Circuit | Sequence[Circuit],
    dataset: Dataset,
    *,
    metric: str | Metric = "logit_diff",
    ablation: str | Ablation | None = None,
    **resources: Unpack[ResourceOptions],
) -> Faithfulness:
    """Faithfulness of circuits: how much of the model's behaviour on a task each circuit keeps.

    Normalised faithfulness is `(m(circuit) - m(ablated)) / (m(clean) - m(ablated))`, with means
    over examples taken first: 1 for the whole model, 0 for the model with every edge ablated
    (Hanna et al. 2024, section 3).

    Args:
        model: loaded model (`eap.load_model`).
        circuits: one graph, or several of one shape (which share the clean and the ablated runs); a
            `PartCircuit` keeps only some parts of some senders.
        dataset: pairs of prompts (`eap.load_dataset`).
        metric: name of a metric in `eap.metrics.METRICS`, or an `eap.Metric`; kl and js compare
            with the clean run.
        ablation: activation that edges outside the circuit carry; None: that on the corrupted
            prompt.
        **resources: batch_size, memory_budget (bytes), quiet; see `eap.runtime.resources`.

    Returns:
        Values on every example; `.normalised` and `.standard_error` have one value per circuit.

    Raises:
        UserError: as for `eap.evaluate`; reading `.normalised` also fails if the clean and the
            ablated mean are equal.

    Example:
        >>> result = eap.faithfulness(model, circuit, dataset, metric="logit_diff")
        >>> eap.faithfulness(model, graph.full(), dataset).normalised.round(3).tolist()
        [1.0]
    """
    graphs = _listed(circuits)
    measured, ablated = get_metric(metric), get_ablation(ablation)
    limits = Resources(**resources)
    values = _run(model, graphs, dataset, [measured], ablated, limits)[measured.name]
    warn_of_direction(measured, *values[:2].double().mean(1).tolist())
    spans = next((names for one in graphs if (names := _edges_of(one).span_names)), ())
    kinds = {get_parts(one.parts).kind for one in graphs if isinstance(one, PartCircuit)}
    parts: dict[str, Any] = {"parts": sorted(kinds)} if kinds else {}
    provenance = sign(
        model, dataset, metric=measured, method="evaluation", ablation=ablated,
        expanded_kv=any(has_expanded_kv(_edges_of(one), model) for one in graphs),
        spans=spans, **parts,
    )  # fmt: skip
    return Faithfulness(
        clean=values[0],
        ablated=values[1],
        circuits=values[2:],
        edges=tuple(graph.count_edges() for graph in graphs),
        provenance=provenance,
    )


@overload
def evaluate(
    model: Model,
    circuits: Circuit | Sequence[Circuit],
    dataset: Dataset,
    *,
    metrics: str | Metric | Sequence[str | Metric] = ...,
    ablation: str | Ablation | None = ...,
    as_frame: Literal[False] = ...,
    **resources: Unpack[ResourceOptions],
) -> dict[str, Float[Tensor, "*circuit example"]]: ...


@overload
def evaluate(
    model: Model,
    circuits: Circuit | Sequence[Circuit],
    dataset: Dataset,
    *,
    metrics: str | Metric | Sequence[str | Metric] = ...,
    ablation: str | Ablation | None = ...,
    as_frame: Literal[True],
    **resources: Unpack[ResourceOptions],
) -> pd.DataFrame: ...


@verb
def evaluate(
    model: Model,
    circuits: Circuit | Sequence[Circuit],
    dataset: Dataset,
    *,
    metrics: str | Metric | Sequence[str | Metric] = ("logit_diff",),
    ablation: str | Ablation | None = None,
    as_frame: bool = False,
    **resources: Unpack[ResourceOptions],
) -> dict[str, Float[Tensor, "*circuit example"]] | pd.DataFrame:
    """Evaluate metrics on every example while all edges outside a circuit are ablated.

    Args:
        model: loaded model (`eap.load_model`).
        circuits: one graph, or several of one shape (which share the clean and the ablated runs); a
            `PartCircuit` keeps only some parts of some senders.
        dataset: pairs of prompts (`eap.load_dataset`).
        metrics: names of metrics in `eap.metrics.METRICS`, or `eap.Metric` objects; kl and js
            compare with the clean run.
        ablation: activation that edges outside the circuit carry; None: that on the corrupted
            prompt.
        as_frame: whether to return a table instead of tensors.
        **resources: batch_size, memory_budget (bytes), quiet; see `eap.runtime.resources`.

    Returns:
        Values by metric name: [example] for one graph, [circuit, example] for several. The graphs
        are not modified. As a table: a row per circuit and example, with `circuit` (its number),
        `edges` (the circuit's size), `example` (its number in the data set) and a column per
        metric.

    Raises:
        UserError: an unknown metric, a circuit of another model, circuits of several shapes, or
            spans that the data set does not have.

    Example:
        >>> values = eap.evaluate(model, circuit, dataset, metrics=["logit_diff", "kl"])
        >>> values["kl"].shape
        torch.Size([8])
    """
    graphs = _listed(circuits)
    values = _run(
        model, graphs, dataset, get_metrics(metrics), get_ablation(ablation),
        Resources(**resources), baselines=False,
    )  # fmt: skip
    if as_frame:
        sizes, n = [graph.count_edges() for graph in graphs], len(dataset)
        columns = {
            "circuit": np.repeat(np.arange(len(graphs)), n),
            "edges": np.repeat(sizes, n),
            "example": np.tile(np.arange(n), len(graphs)),
        }
        return pd.DataFrame(
            columns | {name: rows.flatten().numpy() for name, rows in values.items()}
        )
    index = 0 if isinstance(circuits, Circuit) else slice(None)
    return {name: rows[index] for name, rows in values.items()}


@verb
def evaluate_baselines(
    model: Model,
    dataset: Dataset,
    *,
    metrics: str | Metric | Sequence[str | Metric] = ("logit_diff",),
    ablation: str | Ablation | None = None,
    **resources: Unpack[ResourceOptions],
) -> tuple[dict[str, Float[Tensor, " example"]], dict[str, Float[Tensor, " example"]]]:
    """Metrics of the clean model and of the ablated model, which normalise faithfulness.

    Args:
        model: loaded model (`eap.load_model`).
        dataset: pairs of prompts (`eap.load_dataset`).
        metrics: names of metrics in `eap.metrics.METRICS`, or `eap.Metric` objects.
        ablation: activation that every edge carries in the ablated model; None: that on the
            corrupted prompt.
        **resources: batch_size, memory_budget (bytes), quiet; see `eap.runtime.resources`.

    Returns:
        Two dicts from metric name to values [example]: of the clean and of the ablated model.

    Raises:
        UserError: an unknown metric, or an example that the model cannot run.

    Example:
        >>> clean, ablated = eap.evaluate_baselines(model, dataset)
        >>> float(clean["logit_diff"].mean()) > float(ablated["logit_diff"].mean())
        True
    """
    values = _run(
        model, [], dataset, get_metrics(metrics), get_ablation(ablation), Resources(**resources)
    )
    clean = {name: rows[0] for name, rows in values.items()}
    return clean, {name: rows[1] for name, rows in values.items()}


def _listed(circuits: Circuit | Sequence[Circuit]) -> list[Circuit]:
    """Circuits as a list, given one circuit or several.

    Raises:
        UserError: no circuit is given.
    """
    several = [circuits] if isinstance(circuits, Circuit) else list(circuits)
    if not several:
        raise UserError("no circuit is given; at least one is needed")
    return several


def _edges_of(circuit: Circuit) -> Graph:
    return circuit.graph if isinstance(circuit, PartCircuit) else circuit


def has_expanded_kv(graph: Graph, model: Model) -> bool:
    """Whether a graph has one k and one v receiver per query head, as published graphs do."""
    return graph.config.expanded_kv or of_model(graph, model).config.expanded_kv


def of_model(graph: Graph, model: Model) -> Graph:
    """The graph with the model's own config; published graphs do not record key/value heads.

    Raises:
        UserError: the shape or the d_model of the graph differs from the model's.
    """
    expanded = graph.config.n_kv_receivers != graph_config(model).n_kv_heads
    config = graph_config(model, expanded_kv=expanded)
    widths = {graph.config.d_model, model.config.d_model} - {0}  # 0: older files lack d_model
    if graph.config.shape != config.shape or len(widths) > 1:
        raise UserError(f"{graph} is not a circuit of {model}")
    return replace(graph, config=config)


def _kept(model: Model, circuits: Sequence[Circuit], ablation: Ablation) -> list[KeptParts | None]:
    """The parts that each circuit keeps (None: all); a mean of parts is computed only once."""
    known: dict[tuple[Any, ...], AblatedCoefficients] = {}
    kept: list[KeptParts | None] = []
    for circuit in circuits:
        if isinstance(circuit, Graph) or not circuit.kept:
            kept.append(None)
            continue
        parts, masks = get_parts(circuit.parts), circuit.masks(model)
        key = (id(circuit.parts), *circuit.kept)
        if key not in known:
            layout = PartLayout.of(model, parts, list(circuit.kept))
            known[key] = coefficients_of(ablation)(model, parts, layout)
        kept.append(KeptParts(parts, masks, known[key]))
    return kept


def _run(
    model: Model,
    circuits: Sequence[Circuit],
    dataset: Dataset,
    metrics: Sequence[Metric],
    ablation: Ablation,
    limits: Resources,
    *,
    baselines: bool = True,
) -> dict[str, Float[Tensor, "run example"]]:
    """Metrics on every example: of the clean run and the ablated model, then of every circuit.

    Without `baselines`, the result has the circuits alone, and the clean run is made only if a
    metric reads it.
    """
    graphs = [of_model(_edges_of(circuit), model) for circuit in circuits]
    if len({graph.config for graph in graphs}) > 1:
        raise UserError("circuits that are evaluated together must have the same shape")
    for names in {graph.span_names for graph in graphs if graph.span_names}:
        if names != named_spans(model, dataset):
            raise UserError(
                f"a circuit has the spans {quoted(', '.join(names), 100)}, and the data set "
                f"{quoted(', '.join(dataset.span_names), 100)}; they must be the same"
            )

    def need(shapes: Shapes, extent: Extent, n_columns: int) -> Need:
        return evaluation_need(shapes, extent, len(graphs), n_columns)

    config = graphs[0].config if graphs else graph_config(model)
    n_runs = len(graphs) + (2 if baselines else 0)
    # Memory of circuits and plans: at most a flag and a number for every edge.
    n_kept = sum(6 * graph.in_graph.numel() for graph in graphs)
    n_kept += 12 * len(metrics) * n_runs * len(dataset)
    demand = Demand("evaluation", need, 0, n_kept)
    work = Work.plan(model, dataset, metrics, ablation, config, limits, demand)
    plans = [
        plan_circuit(model, graph, prune=ablation.has_pair, kept=kept)
        for graph, kept in zip(graphs, _kept(model, circuits, ablation), strict=True)
    ]
    shape = (len(metrics), n_runs, len(dataset))
    values = torch.zeros(shape, dtype=model.residual_dtype, device=model.device)
    run_clean = baselines or any(metric.reads_clean for metric in metrics)
    what = f"{len(graphs)} circuits" if graphs else "baselines"
    with torch.no_grad():
        for batch in work.batches(what, quiet=limits.quiet):
            base = ablated_heads(model, batch)
            clean = Predictions(batch.unembed(batch.run_clean()[:, 0])) if run_clean else None
            finals = [batch.ablated_run.final[:, 0]] if baselines else []
            finals += [run_circuit(model, plan, base, batch) for plan in plans]
            # One run at a time: the logits of all circuits would be the largest tensor here.
            runs = (Predictions(batch.unembed(final), clean) for final in finals)
            firsts = [clean] if baselines and clean is not None else []
            measured = [measure_all(metrics, run, batch.answers) for run in chain(firsts, runs)]
            if measured:
                values[:, :, list(batch.rows)] = torch.stack(measured, dim=1).to(values)
    values = distributed.sum_over_processes(values.cpu())
    check_values(metrics, values)
    return {metric.name: rows for metric, rows in zip(metrics, values, strict=True)}

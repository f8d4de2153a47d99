"""The model as a graph: which sender reaches which receiver, with what score, and what is kept."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import networkx as nx
import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor

import eap
from eap.errors import UserError
from eap.graph import selection, spans
from eap.graph.contents import edge_exists
from eap.graph.formats import export, files
from eap.graph.formats.files import Schema
from eap.graph.labels import check_labels, read_labels
from eap.graph.named_edges import Edge as Edge
from eap.graph.named_edges import NamedEdges
from eap.graph.numbering import GraphConfig
from eap.graph.selection import By
from eap.runtime.kinds import checked, shown


@dataclass(frozen=True, eq=False, repr=False)
class Graph(NamedEdges):
    """Scores of all edges and the circuit selected from them.

    Never modified: selections return a new graph.

    Attributes:
        config: the shape.
        scores: mean over examples of `metric(patched) - metric(clean)`, exact or estimated.
        in_graph: which edges belong to the circuit.
        standard_errors: of the scores, over examples; None if unknown.
        is_exact: which scores are exact values rather than estimates; None if all are estimates.
        provenance: where the scores come from (model, task, metric, method, versions, ...).
        node_scores: of the senders, in the same convention; None if nodes were not scored.
        node_errors: standard errors of the node scores.
        higher_is_better: whether a high value of the metric is the better one, so that corrupting
            a helpful edge lowers it; None if unknown.
        span_names: of the spans of the prompt at which edges are scored; then all tensors have an
            axis of spans before the others, and a circuit consists of pairs of a span and an edge.
        labels: text by node, given by people; saved with the graph and shown on its page.
        groups: name of a group by node, given by people.
    """

    @classmethod
    @checked
    def from_config(cls, config: GraphConfig, span_names: Sequence[str] = ()) -> "Graph":
        """A graph with zero scores that contains every edge (at every span)."""
        exists = edge_exists(config)
        if span_names:
            exists = exists.expand(len(span_names), -1, -1)
        return cls(
            config,
            scores=torch.zeros(exists.shape, dtype=torch.float32, device=exists.device),
            in_graph=exists.clone(),
            span_names=tuple(span_names),
        )

    @classmethod
    def from_model(cls, model: Any, *, expanded_kv: bool = False) -> "Graph":
        """The graph of a loaded `eap.Model`, with zero scores and every edge.

        Raises:
            UserError: it is something else.
        """
        if not isinstance(getattr(model, "config", None), GraphConfig):
            raise UserError(f"model is {shown(model)}; give what eap.load_model returns")
        return cls.from_config(replace(model.config, expanded_kv=expanded_kv))

    # ---- spans ---------------------------------------------------------------------------------

    def over_spans(self) -> "Graph":
        """The plain graph: scores summed over spans, and the edges in the circuit at any of them.

        The sums are those of methods that are linear in what a sender sends, and of IFR. They have
        no standard errors: spans vary together over the examples.
        """
        return spans.over_spans(self)

    def at_span(self, name: str) -> "Graph":
        """The plain graph of one span.

        Raises:
            UserError: this graph has no such span.
        """
        return spans.at_span(self, name)

    def at_all_spans(self, span_names: Sequence[str]) -> "Graph":
        """The circuit of a plain graph with every edge at every span; scores are unknown.

        Raises:
            UserError: this graph has spans already, or no span is named.
        """
        return spans.at_all_spans(self, span_names)

    # ---- selections ----------------------------------------------------------------------------

    def with_edges(self, in_graph: Bool[Tensor, "*span n_forward n_backward"]) -> "Graph":
        """The same scores with the circuit `in_graph`; pairs that are not edges must be False."""
        exists = self.edge_exists
        is_table = isinstance(in_graph, Tensor) and in_graph.dtype == torch.bool
        if not is_table or in_graph.shape != exists.shape or (in_graph & ~exists).any():
            raise UserError(
                f"a circuit of this graph is a boolean tensor {list(exists.shape)} that "
                "is True only where edge_exists is"
            )
        return replace(self, in_graph=in_graph.clone())

    def full(self) -> "Graph":
        """The whole graph."""
        return replace(self, in_graph=self.edge_exists)

    def empty(self) -> "Graph":
        """No edge at all."""
        return replace(self, in_graph=torch.zeros_like(self.in_graph))

    def top_n(self, n: int, *, by: By = "magnitude") -> "Graph":
        """The `n` edges that rank highest; ties go to the earlier edge.

        Args:
            n: how many, before any pruning.
            by: `magnitude` of the score (the paper's), `helpful` (corrupting the edge makes the
                metric worse) or `harmful` (better).

        Raises:
            UserError: there are fewer edges, some scores are NaN, or helpful edges are asked of a
                graph that does not say whether high or low values of its metric are better.
        """
        return replace(self, in_graph=selection.top_n(self, n, by))

    def threshold(self, minimum: float | Tensor, *, by: By = "magnitude") -> "Graph":
        """All edges that rank at least as high as `minimum`, in units of the metric.

        `by` and errors as for `top_n`; `threshold(0.1, by="helpful")` keeps the edges whose
        corruption makes the metric worse by at least 0.1.
        """
        return replace(self, in_graph=selection.threshold(self, minimum, by))

    def greedy(self, n: int, *, by: By = "magnitude") -> "Graph":
        """`n` times, add the best edge whose receiver's node is in the circuit, and its sender.

        Starts from the logits alone (Hanna et al. 2024, section 4.1). Ties go to the earlier
        receiver, then to the earlier sender. `by` and errors as for `top_n`.
        """
        return replace(self, in_graph=selection.greedy(self, n, by))

    def greedy_circuits(self, sizes: Sequence[int], *, by: By = "magnitude") -> Iterator["Graph"]:
        """`greedy(n)` for every n of `sizes`, one after the other, from one search."""
        numbers = [selection.check_number(n, self.n_edges) for n in sizes]
        order = selection.greedy_order(self, max(numbers, default=0), by)
        for n in numbers:
            yield replace(self, in_graph=selection.first_edges(self, order[:, :n]))

    def top_n_nodes(self, n: int, *, by: By = "magnitude", rank_input: bool = False) -> "Graph":
        """All edges among the `n` heads and MLPs that rank highest by node score.

        The input and the logits are always kept and not counted; so is a node without a score
        (NaN). `rank_input=True` ranks and counts the input too, as MIB does: a circuit without it
        is empty once pruned. Ties go to the earlier node. `by` as for `top_n`.

        Raises:
            UserError: there are no node scores, fewer than `n`, or `by` cannot be told.
        """
        return replace(
            self,
            in_graph=selection.top_n_nodes(self, n, by, rank_input=rank_input),
            provenance=self.provenance | {"level": "node"},
        )

    def prune(self) -> "Graph":
        """Without the nodes that no path from the input, or none to the logits, runs through.

        A head stays if any of its q, k and v inputs has an edge and its output has one.
        """
        return replace(self, in_graph=selection.prune(self.config, self.in_graph))

    # ---- labels --------------------------------------------------------------------------------

    def with_labels(
        self,
        labels: Mapping[str, str] | str | Path | None = None,
        *,
        groups: Mapping[str, str] | None = None,
    ) -> "Graph":
        """The graph with labels and groups of nodes, besides those that it has.

            graph = graph.with_labels({"a1.h0": "induction"}, groups={"a1.h0": "copying"})

        Args:
            labels: text by name of a node, at most 60 characters; an empty text takes the label
                away. Or the file of a page that was saved with its labels and groups.
            groups: name of a group by name of a node.

        Returns:
            The graph; `save` keeps its labels and groups, and `to_html` shows them.

        Raises:
            UserError: a node that the graph does not have, text that is too long, or a file that
                is no page of a circuit.
        """
        if isinstance(labels, (str, Path)):
            labels, groups = read_labels(Path(labels), groups or {})
        return replace(
            self,
            labels=self._joined(self.labels, labels or {}),
            groups=self._joined(self.groups, groups or {}),
        )

    def _joined(self, old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str]:
        check_labels(self.config, new)
        return {node: text for node, text in {**old, **new}.items() if text}

    # ---- circuits as sets ----------------------------------------------------------------------

    def __and__(self, other: "Graph") -> "Graph":
        """The edges in both circuits, with this graph's scores."""
        return replace(self, in_graph=self.in_graph & self._same_shape(other).in_graph)

    def __or__(self, other: "Graph") -> "Graph":
        """The edges in either circuit, with this graph's scores."""
        return replace(self, in_graph=self.in_graph | self._same_shape(other).in_graph)

    def __sub__(self, other: "Graph") -> "Graph":
        """The edges of this circuit that are not in the other, with this graph's scores."""
        return replace(self, in_graph=self.in_graph & ~self._same_shape(other).in_graph)

    def add(self, *edges: str) -> "Graph":
        """The circuit with these edges too, by name: `circuit.add("m0->m1", "m1->logits")`.

        Raises:
            UserError: the model has no edge of one of the names.
        """
        return self._with(edges, present=True)

    def remove(self, *edges: str) -> "Graph":
        """The circuit without these edges, by name.

        Raises:
            UserError: the model has no edge of one of the names.
        """
        return self._with(edges, present=False)

    def _with(self, edges: tuple[str, ...], *, present: bool) -> "Graph":
        in_graph = self.in_graph.clone()
        for edge in edges:
            in_graph[self._place(edge)] = present
        return replace(self, in_graph=in_graph)

    def _same_shape(self, other: "Graph") -> "Graph":
        if not isinstance(other, Graph):
            raise UserError(f"a circuit goes with another circuit, not {type(other).__name__}")
        if other.config.shape != self.config.shape:
            raise UserError(
                f"these circuits are of different graphs, with {self.n_edges:,} and "
                f"{other.n_edges:,} edges"
            )
        if other.span_names != self.span_names:
            raise UserError("these circuits are of graphs with different spans")
        return other

    # ---- for other programs --------------------------------------------------------------------

    def to_frame(self, *, in_graph_only: bool = False) -> pd.DataFrame:
        """A table with a row per edge, of the whole graph or of the circuit alone.

        Columns: `edge` (its name), `sender`, `receiver`, `input` (`q`, `k`, `v`, or empty),
        `sender_layer` (-1: the input), `receiver_layer` (the number of layers: the logits),
        `score`, `standard_error` and `exact` where known, `in_graph`; with spans first `span`, a
        row per pair of an edge and a span.
        """
        return export.to_frame(self, in_graph_only=in_graph_only)

    def to_networkx(self) -> nx.MultiDiGraph:
        """The circuit as a directed multigraph of its nodes.

        Nodes have `kind` (`input`, `head`, `mlp`, `logits`), `layer` and, where known, `score`;
        edges are keyed by the input (`q`, `k`, `v`) they go into, and have `edge` (the name),
        `input`, `score` and, where known, `standard_error` and `exact`. An edge into a shared key
        or value goes to the heads that share it and send along an edge of the circuit. A circuit
        that was not pruned may have edges into nodes that send nothing: the network has these
        nodes, too, though `nodes_in_graph` does not.
        """
        return export.to_networkx(self)

    def to_graphml(self, path: str | Path) -> None:
        """Write `to_networkx` as GraphML, which Gephi, yEd and Cytoscape open."""
        export.write_graphml(self, Path(path))

    def to_dot(self, path: str | Path) -> None:
        """Write the circuit in Graphviz's language, lines as wide as scores are large."""
        export.write_dot(self, Path(path))

    def to_html(self, path: str | Path, other: "Graph | None" = None, **options: Any) -> Path:
        """Write one HTML page to look around in: no network and no other file is needed.

        Layers upwards, a slider over circuits of many sizes, a search, a table of edges; with
        `other`, which edges are in one circuit or both. `options` as for
        `eap.figures.viewer.write_page`, which says more.
        """
        # Pictures stand above graphs: through the package's public door, which loads them now.
        return eap.write_page(self, path, other, **options)

    # ---- files ---------------------------------------------------------------------------------

    @checked
    def save(self, path: str | Path, *, schema: Schema = "library") -> None:
        """Write the graph by the suffix of `path`, whole or not at all.

        - `.json`: what the EAP-IG library and MIB read (`Graph.from_json`), with what a graph knows
          beyond that; `schema="paper"` writes the paper's older form, nodes as booleans.
        - `.pt`: what the EAP-IG library reads (`Graph.from_pt`).
        - `.safetensors`: this package's alone; the choice for large graphs, and for those with
          spans, which the others have no place for.

        Other programs take a positive score for a helpful edge, so `.json` and `.pt` files hold
        scores with their sign turned, unless low values of the metric are better; the file says so
        and `load` turns them back.

        Raises:
            UserError: another suffix or schema; infinite scores as JSON; or key/value heads that
                several heads share, which the library and the paper do not know (`.pt`,
                `schema="paper"`): make the graph with `expanded_kv=True`.
        """
        files.write(self, Path(path), schema=schema)

    @classmethod
    @checked
    def load(cls, path: str | Path, *, sign: int | None = None) -> "Graph":
        """Read a graph that `save` wrote, or one of the EAP-IG library, MIB or the paper.

        Files may list every edge, those of a circuit alone (other scores are then NaN), or none
        with scores of nodes (all edges among the nodes in the circuit are then in it).

        Args:
            path: a `.json`, `.pt` or `.safetensors` file.
            sign: what the file's scores are multiplied by. None: what its origin says. This
                package's files say it themselves; in all others a positive score is taken for a
                helpful edge, so they are turned, as of a metric whose high values are better, and
                `provenance["read_from"]` says so. 1 for files whose scores are
                `metric(corrupted edge) - metric(clean)` already, as the paper's exact ones are.

        Raises:
            UserError: no file, no graph, or a damaged one; one line of at most 400 characters.
        """
        return cls(**vars(files.read(Path(path), sign=sign)))

"""The model as a graph: senders, receivers, the edges between them, scores and a circuit."""

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
from eap.graph import selection
from eap.graph.contents import EDGE_TENSORS, NODE_TENSORS, GraphContents, edge_exists
from eap.graph.contents import Edge as Edge
from eap.graph.formats import export, files
from eap.graph.formats.files import Schema
from eap.graph.labels import check_labels, read_labels
from eap.graph.numbering import GraphConfig
from eap.graph.selection import By
from eap.runtime.errors import UserError
from eap.runtime.kinds import checked, shown


@dataclass(frozen=True, eq=False, repr=False)
class Graph(GraphContents):
    """Scores of all edges, and the circuit that is selected from them.

    A graph is never modified: selections return a new graph.

    Attributes:
        config: shape of the graph.
        scores: mean over examples of `metric(patched) - metric(clean)`, exact or estimated.
        in_graph: mask of the edges in the circuit.
        standard_errors: standard errors of the scores over examples; None: unknown.
        is_exact: mask of the scores that are exact values; None: all scores are estimates.
        provenance: origin of the scores (model, task, metric, method, versions, ...).
        node_scores: scores of the senders as nodes, with the same sign convention; None: nodes were
            not scored.
        node_errors: standard errors of the node scores.
        higher_is_better: whether high values of the metric are better, so that corrupting a helpful
            edge lowers the metric; None: unknown.
        span_names: names of the spans of the prompt at which edges are scored. With spans, all
            tensors have an axis of spans first, and a circuit consists of pairs of a span and an
            edge.
        labels: labels of nodes, by node name; saved with the graph and shown on its page.
        groups: names of groups of nodes, by node name.

    Example:
        >>> graph = eap.attribute(model, dataset, method="EAP")
        >>> circuit = graph.top_n(50).prune()
        >>> circuit.count_edges() <= 50
        True
    """

    @classmethod
    @checked
    def from_config(cls, config: GraphConfig, span_names: Sequence[str] = ()) -> "Graph":
        """Make a graph with zero scores that contains every edge (at every span).

        Args:
            config: shape of the graph.
            span_names: names of the spans; none: a graph without spans.

        Raises:
            UserError: two spans of one name.
        """
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
        """Make the graph of a loaded model, with zero scores and every edge.

        Args:
            model: loaded model (`eap.load_model`).
            expanded_kv: whether every query head has its own k and v receiver, even where query
                heads share key/value heads.

        Raises:
            UserError: the argument is not a model.

        Example:
            >>> eap.Graph.from_model(model).sender_names[:2]
            ('input', 'a0.h0')
        """
        if not isinstance(getattr(model, "config", None), GraphConfig):
            raise UserError(f"model is {shown(model)}; give what eap.load_model returns")
        return cls.from_config(replace(model.config, expanded_kv=expanded_kv))

    # ---- spans ---------------------------------------------------------------------------------

    def over_spans(self) -> "Graph":
        """Make the graph without spans: scores summed over spans, edges in the circuit at any span.

        For methods that are linear in the sender's output, and for IFR, the sums equal the scores
        without spans. The sums have no standard errors, because the scores at different spans vary
        together over the examples.
        """
        if not self.span_names:
            return self
        nodes = None if self.node_scores is None else self.node_scores.sum(dim=0)
        return replace(
            self, scores=self.scores.sum(dim=0), in_graph=self.in_any_span, standard_errors=None,
            is_exact=None, node_scores=nodes, node_errors=None, span_names=(),
        )  # fmt: skip

    def at_span(self, name: str) -> "Graph":
        """Make the graph of one span, without a span axis.

        Args:
            name: name of the span.

        Raises:
            UserError: this graph has no such span.
        """
        span, parts = self._span_index(name), dict[str, Any](span_names=())
        for part in (*EDGE_TENSORS, *NODE_TENSORS):
            tensor = getattr(self, part)
            parts[part] = None if tensor is None else tensor[span]
        return replace(self, **parts)

    @checked
    def at_all_spans(self, span_names: Sequence[str]) -> "Graph":
        """Make a circuit with spans that has every edge of this circuit at every span.

        The scores of the new circuit are unknown.

        Args:
            span_names: names of the spans.

        Raises:
            UserError: this graph has spans already, no span is named, or two have one name.
        """
        if self.span_names or not span_names:
            raise UserError("give at least one span name, for a graph that has no spans yet")
        in_graph = self.in_graph.expand(len(span_names), -1, -1).clone()
        unknown = self.scores.new_full(in_graph.shape, torch.nan)
        return replace(
            self, scores=unknown, in_graph=in_graph, standard_errors=None, is_exact=None,
            node_scores=None, node_errors=None, span_names=tuple(span_names),
        )  # fmt: skip

    # ---- selections ----------------------------------------------------------------------------

    def with_edges(self, in_graph: Bool[Tensor, "*span n_forward n_backward"]) -> "Graph":
        """Make a graph with the same scores and another circuit.

        Args:
            in_graph: mask of the new circuit, [n_forward, n_backward] or
                [span, n_forward, n_backward]; False for pairs that are not edges.

        Raises:
            UserError: a mask of another shape, or with a pair that is not an edge.
        """
        exists = self.edge_exists
        is_table = isinstance(in_graph, Tensor) and in_graph.dtype == torch.bool
        if not is_table or in_graph.shape != exists.shape or (in_graph & ~exists).any():
            raise UserError(
                f"a circuit of this graph is a boolean tensor {list(exists.shape)} that "
                "is True only where edge_exists is"
            )
        return replace(self, in_graph=in_graph.clone())

    def full(self) -> "Graph":
        """Make the whole graph: the same scores, with every edge in the circuit."""
        return replace(self, in_graph=self.edge_exists)

    def empty(self) -> "Graph":
        """Make the empty circuit: the same scores, with no edge in the circuit."""
        return replace(self, in_graph=torch.zeros_like(self.in_graph))

    def top_n(self, n: int, *, by: By = "magnitude") -> "Graph":
        """Select the `n` edges that rank highest; ties go to the earlier edge.

        Args:
            n: number of edges, before pruning.
            by: order of the edges: `magnitude` of the score (the choice of the paper), `helpful`
                (corrupting the edge makes the metric worse) or `harmful` (corrupting the edge makes
                the metric better).

        Raises:
            UserError: fewer than `n` edges, scores that are NaN, or helpful edges of a graph that
                does not record whether high or low values of its metric are better.

        Example:
            >>> graph.top_n(50).count_edges()
            50
        """
        return replace(self, in_graph=selection.top_n(self, n, by))

    def threshold(self, minimum: float | Tensor, *, by: By = "magnitude") -> "Graph":
        """Select all edges that rank at least as high as a threshold.

        Args:
            minimum: threshold in units of the metric; with `by="helpful"`, 0.1 keeps the edges
                whose corruption makes the metric worse by at least 0.1.
            by: order of the edges: `magnitude`, `helpful` or `harmful`, as for `top_n`.

        Raises:
            UserError: a threshold that is not finite; otherwise as for `top_n`.

        Example:
            >>> strong = graph.threshold(0.1)
        """
        return replace(self, in_graph=selection.threshold(self, minimum, by))

    def greedy(self, n: int, *, by: By = "magnitude") -> "Graph":
        """Select greedily: `n` times, add the best edge whose receiver's node is in the circuit.

        The selection starts from the logits alone, and the sender of an added edge joins the
        circuit (Hanna et al. 2024, section 4.1). Ties go to the earlier receiver, then to the
        earlier sender.

        Args:
            n: number of edges, before pruning.
            by: order of the edges: `magnitude`, `helpful` or `harmful`, as for `top_n`.

        Raises:
            UserError: as for `top_n`.

        Example:
            >>> circuit = graph.greedy(200).prune()
        """
        order = selection.greedy_order(self, n, by)
        return replace(self, in_graph=selection.first_edges(self, order))

    @checked
    def greedy_circuits(self, sizes: Sequence[int], *, by: By = "magnitude") -> Iterator["Graph"]:
        """Select greedy circuits of several sizes, one after the other, from one search.

        Args:
            sizes: numbers of edges, before pruning.
            by: order of the edges: `magnitude`, `helpful` or `harmful`, as for `top_n`.

        Raises:
            UserError: as for `top_n`.

        Example:
            >>> [found.count_edges() for found in graph.greedy_circuits([10, 20])]
            [10, 20]
        """
        numbers = [selection.check_number(n, self.n_edges) for n in sizes]
        order = selection.greedy_order(self, max(numbers, default=0), by)
        return (replace(self, in_graph=selection.first_edges(self, order[:, :n])) for n in numbers)

    def top_n_nodes(self, n: int, *, by: By = "magnitude", rank_input: bool = False) -> "Graph":
        """Select all edges among the `n` heads and MLPs that rank highest by node score.

        The input, the logits and nodes without a score (NaN) are always kept and not counted. Ties
        go to the earlier node.

        Args:
            n: number of heads and MLPs.
            by: order of the nodes: `magnitude`, `helpful` or `harmful`, as for `top_n`.
            rank_input: whether to rank and count the input too, as MIB does; a circuit without the
                input is empty after pruning.

        Raises:
            UserError: no node scores, fewer than `n` nodes, or an unknown order.

        Example:
            >>> nodes = eap.attribute(model, dataset, method="EAP", level="node")
            >>> circuit = nodes.top_n_nodes(10).prune()
        """
        return replace(
            self,
            in_graph=selection.top_n_nodes(self, n, by, rank_input=rank_input),
            provenance=self.provenance | {"level": "node"},
        )

    def prune(self) -> "Graph":
        """Remove nodes that are on no path from the input to the logits, with their edges.

        A head stays if at least one of its q, k and v inputs has an edge and its output has one.
        The size of a circuit is its number of edges after pruning.

        Example:
            >>> graph.top_n(50).prune().count_edges() <= 50
            True
        """
        return replace(self, in_graph=selection.prune(self.config, self.in_graph))

    # ---- labels --------------------------------------------------------------------------------

    def with_labels(
        self,
        labels: Mapping[str, str] | str | Path | None = None,
        *,
        groups: Mapping[str, str] | None = None,
    ) -> "Graph":
        """Make a graph with labels and groups of nodes, added to those that it already has.

            graph = graph.with_labels({"a1.h0": "induction"}, groups={"a1.h0": "copying"})

        Args:
            labels: labels by node name, at most 60 characters each (an empty text removes the
                label); or the path of a page that was saved with its labels and groups.
            groups: names of groups by node name.

        Returns:
            The labelled graph; `save` keeps the labels and groups, and `to_html` shows them.

        Raises:
            UserError: a node that the graph does not have, text that is too long, or a file that is
                not the page of a circuit.
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
        """Circuit of the edges in both circuits, with this graph's scores."""
        return replace(self, in_graph=self.in_graph & self._same_shape(other).in_graph)

    def __or__(self, other: "Graph") -> "Graph":
        """Circuit of the edges in either circuit, with this graph's scores."""
        return replace(self, in_graph=self.in_graph | self._same_shape(other).in_graph)

    def __sub__(self, other: "Graph") -> "Graph":
        """Circuit of this circuit's edges that are not in the other, with this graph's scores."""
        return replace(self, in_graph=self.in_graph & ~self._same_shape(other).in_graph)

    def add(self, *edges: str) -> "Graph":
        """Add edges to the circuit.

        Args:
            *edges: names of edges: `circuit.add("m0->m1", "m1->logits")`.

        Raises:
            UserError: a name that is not the name of an edge of the model.

        Example:
            >>> "m0->m1" in circuit.add("m0->m1")
            True
        """
        return self._with(edges, present=True)

    def remove(self, *edges: str) -> "Graph":
        """Remove edges from the circuit.

        Args:
            *edges: names of edges.

        Raises:
            UserError: a name that is not the name of an edge of the model.

        Example:
            >>> "m0->m1" in circuit.add("m0->m1").remove("m0->m1")
            False
        """
        return self._with(edges, present=False)

    def _with(self, edges: tuple[str, ...], *, present: bool) -> "Graph":
        in_graph = self.in_graph.clone()
        for edge in edges:
            in_graph[self._place(edge)] = present
        return replace(self, in_graph=in_graph)

    def _same_shape(self, other: "Graph") -> "Graph":
        if not isinstance(other, Graph):
            raise UserError(f"a circuit combines with a circuit, not with {type(other).__name__}")
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
        """Make a table with a row per edge.

        Args:
            in_graph_only: whether to list only the edges of the circuit.

        Returns:
            Table with the columns `edge` (its name), `sender`, `receiver`, `input` (`q`, `k`, `v`,
            or empty), `sender_layer` (-1: the input), `receiver_layer` (the number of layers: the
            logits), `score`, `standard_error` and `exact` where known, and `in_graph`. With spans,
            the first column is `span`, and there is a row per pair of an edge and a span.

        Example:
            >>> best = graph.to_frame().sort_values("score").head(10)
        """
        return export.to_frame(self, in_graph_only=in_graph_only)

    def to_networkx(self) -> nx.MultiDiGraph:
        """Convert the circuit to a directed multigraph of its nodes.

        Nodes have `kind` (`input`, `head`, `mlp`, `logits`), `layer` and, where known, `score`,
        `label` and `group`.
        Edges are keyed by the input (`q`, `k`, `v`) that they lead into, and have `edge` (the
        name), `input`, `score` and, where known, `standard_error` and `exact`. An edge into a
        shared key or value leads to every head that shares it and sends along an edge of the
        circuit. A circuit that was not pruned may have edges into nodes that send nothing; these
        nodes are in the multigraph, but not in `nodes_in_graph`. With spans, there is a node
        wherever a component sends or reads (`a0.h1 @ subject`), and nodes have `span`.
        """
        return export.to_networkx(self)

    def to_graphml(self, path: str | Path) -> None:
        """Write `to_networkx` as GraphML, which Gephi, yEd and Cytoscape open.

        Args:
            path: path of the file.

        Raises:
            UserError: a span, label or group with a character that XML does not allow.
        """
        export.write_graphml(self, Path(path))

    def to_dot(self, path: str | Path) -> None:
        """Write the circuit in the DOT language of Graphviz, with lines as wide as scores are high.

        Args:
            path: path of the file.
        """
        export.write_dot(self, Path(path))

    def to_html(self, path: str | Path, other: "Graph | None" = None, **options: Any) -> Path:
        """Write a self-contained HTML page to explore the graph; it needs no network.

        The page shows layers from bottom to top, a column for every span of the prompt (if the
        graph has spans), a slider over circuits of many sizes, a search field and a table of edges.

        Args:
            path: path of the file.
            other: second graph; the page then shows which edges are in one circuit or in both.
            **options: options of `eap.write_page`.

        Returns:
            Path of the page.

        Example:
            >>> page = graph.to_html("graph.html")
        """
        # The figures package is above graphs, so it is imported only here, through the public name.
        return eap.write_page(self, path, other, **options)

    # ---- files ---------------------------------------------------------------------------------

    @checked
    def save(self, path: str | Path, *, schema: Schema = "library") -> None:
        """Write the graph to a file, in the format given by the suffix of the path.

        - `.json`: read by the EAP-IG library and MIB (`Graph.from_json`), with further fields that
          only this package reads; `schema="paper"` writes the older form of the paper, with nodes
          as booleans.
        - `.pt`: read by the EAP-IG library (`Graph.from_pt`).
        - `.safetensors`: read by this package only; the best format for large graphs, and the only
          one for graphs with spans.

        Other programs expect a positive score for a helpful edge. The scores in `.json` and `.pt`
        files therefore have the opposite sign, unless low values of the metric are better; the file
        records this, and `load` restores the sign. The file is written whole or not at all.

        Args:
            path: path of the file; missing folders are created.
            schema: form of a JSON file, 'library' or 'paper'.

        Raises:
            UserError: another suffix or schema; infinite scores in JSON; scores of nodes in the
                paper's form; or key/value heads that several query heads share, which the library
                and the paper do not support (`.pt`, `schema="paper"`): make the graph with
                `expanded_kv=True`.

        Example:
            >>> circuit.save("ioi.json")
            >>> eap.Graph.load("ioi.json").count_edges() == circuit.count_edges()
            True
        """
        files.write(self, Path(path), schema=schema)

    @classmethod
    @checked
    def load(cls, path: str | Path, *, sign: int | None = None) -> "Graph":
        """Read a graph that was written by `save`, the EAP-IG library, MIB or the paper.

        A file may list every edge, only the edges of a circuit (all other scores are then NaN), or
        no edges but node scores (the circuit then has all edges among its nodes).

        Args:
            path: path of a `.json`, `.pt` or `.safetensors` file.
            sign: factor for the scores in the file. None: chosen by the origin of the file. Files
                of this package record their sign. In all other files a positive score is taken to
                mean a helpful edge, so the scores are negated, as for a metric whose high values
                are better, and `provenance["read_from"]` says so. 1: the scores are already
                `metric(corrupted edge) - metric(clean)`, as the paper's exact scores are.

        Raises:
            UserError: a missing or damaged file, or one that holds no graph; the message is one
                line of at most 400 characters.
        """
        return cls(**vars(files.read(Path(path), sign=sign)))

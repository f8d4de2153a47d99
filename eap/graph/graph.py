"""The model as a graph: which sender can reach which receiver, with what score, and what is kept.

Senders are the input embedding, every attention head and every MLP; receivers are the q, k and v
input of every head, every MLP and the logits. Scores and membership are `[n_forward, n_backward]`
tensors, so that a graph of millions of edges is a few megabytes and every operation is a matrix
operation; names are made only when somebody asks for them.
"""

import heapq
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from eap.errors import UserError
from eap.runtime.atomic import write_atomically


@dataclass(frozen=True)
class GraphConfig:
    """The shape of a graph: everything needed to number its senders and receivers.

    On a model with grouped-query attention, k and v receivers belong to the key/value heads
    (`a3.kv1<k>`); with `expanded_kv` there is one k and one v per query head, as in earlier work.
    """

    n_layers: int
    n_heads: int
    d_model: int
    n_kv_heads: int
    parallel_attn_mlp: bool = False
    expanded_kv: bool = False

    @property
    def shape(self) -> tuple[int, int, int, bool]:
        """What two graphs must agree on to have the same edges."""
        return self.n_layers, self.n_heads, self.n_kv_receivers, self.parallel_attn_mlp

    @property
    def n_kv_receivers(self) -> int:
        """How many k (and how many v) receivers a layer has."""
        return self.n_heads if self.expanded_kv else self.n_kv_heads

    @property
    def n_forward(self) -> int:
        """Number of senders: the input, then per layer the heads and the MLP."""
        return 1 + self.n_layers * (self.n_heads + 1)

    @property
    def n_backward(self) -> int:
        """Number of receivers: per layer q, k, v of every head and the MLP, then the logits."""
        return self.n_layers * self._receivers_per_layer + 1

    @property
    def _receivers_per_layer(self) -> int:
        return self.n_heads + 2 * self.n_kv_receivers + 1

    def heads(self, layer: int) -> slice:
        """Senders: the heads of `layer`."""
        first = 1 + layer * (self.n_heads + 1)
        return slice(first, first + self.n_heads)

    def mlp_sender(self, layer: int) -> int:
        """Sender: the MLP of `layer`."""
        return self.heads(layer).stop

    def n_receivers(self, kind: str) -> int:
        """How many `kind` ('q', 'k' or 'v') receivers a layer has."""
        return self.n_heads if kind == "q" else self.n_kv_receivers

    def receivers(self, layer: int, kind: str) -> slice:
        """Receivers: the `kind` ('q', 'k' or 'v') inputs of the heads of `layer`."""
        first = layer * self._receivers_per_layer
        starts = {
            "q": first,
            "k": first + self.n_heads,
            "v": first + self.n_heads + self.n_kv_receivers,
        }
        return slice(starts[kind], starts[kind] + self.n_receivers(kind))

    def mlp_receiver(self, layer: int) -> int:
        """Receiver: the MLP of `layer`."""
        return (layer + 1) * self._receivers_per_layer - 1

    @property
    def logits_receiver(self) -> int:
        """Receiver: the logits."""
        return self.n_backward - 1

    def senders_before(self, layer: int, kind: str) -> int:
        """How many senders (from the first on) reach the receivers `kind` of `layer`.

        `kind` is 'attention', 'mlp' or 'logits' (for which `layer` is ignored).
        """
        if kind == "logits":
            return self.n_forward
        reads_heads = kind == "mlp" and not self.parallel_attn_mlp
        return self.mlp_sender(layer) if reads_heads else self.heads(layer).start

    @property
    def sender_names(self) -> tuple[str, ...]:
        """Names of the senders, in index order: `input`, `a0.h0`, ..., `m0`, ..."""
        return _sender_names(self)

    @property
    def receiver_names(self) -> tuple[str, ...]:
        """Names of the receivers, in index order: `a0.h0<q>`, ..., `m0`, ..., `logits`."""
        return _receiver_names(self)

    def kv_head(self, head: int) -> int:
        """Which k (or v) receiver of its layer the query head `head` reads."""
        return head * self.n_kv_receivers // self.n_heads


@lru_cache(maxsize=16)
def _sender_names(config: GraphConfig) -> tuple[str, ...]:
    names = ["input"]
    for layer in range(config.n_layers):
        names += [f"a{layer}.h{head}" for head in range(config.n_heads)] + [f"m{layer}"]
    return tuple(names)


@lru_cache(maxsize=16)
def _receiver_names(config: GraphConfig) -> tuple[str, ...]:
    # A key/value head that several query heads share is a thing of its own, with its own name.
    kv = "h" if config.n_kv_receivers == config.n_heads else "kv"
    names = []
    for layer in range(config.n_layers):
        names += [f"a{layer}.h{head}<q>" for head in range(config.n_heads)]
        for kind in "kv":
            names += [f"a{layer}.{kv}{head}<{kind}>" for head in range(config.n_kv_receivers)]
        names.append(f"m{layer}")
    return (*names, "logits")


@lru_cache(maxsize=16)
def _edge_exists(config: GraphConfig) -> Bool[Tensor, "n_forward n_backward"]:
    # A receiver that reads the first n senders has exactly the edges from those n.
    reads = torch.empty(config.n_backward, dtype=torch.long)
    for layer in range(config.n_layers):
        attention = slice(config.receivers(layer, "q").start, config.receivers(layer, "v").stop)
        reads[attention] = config.senders_before(layer, "attention")
        reads[config.mlp_receiver(layer)] = config.senders_before(layer, "mlp")
    reads[config.logits_receiver] = config.senders_before(config.n_layers, "logits")
    return torch.arange(config.n_forward)[:, None] < reads


@lru_cache(maxsize=16)
def _receiver_of(config: GraphConfig) -> Int[Tensor, "n_forward 3"]:
    """The q, k, v receivers of every head; the one receiver of an MLP, three times; input: -1."""
    table = torch.full((config.n_forward, 3), -1)
    kv_heads = torch.tensor([config.kv_head(head) for head in range(config.n_heads)])
    for layer in range(config.n_layers):
        q, k, v = (config.receivers(layer, kind) for kind in "qkv")
        table[config.heads(layer)] = torch.stack(
            [torch.arange(q.start, q.stop), k.start + kv_heads, v.start + kv_heads], dim=1
        )
        table[config.mlp_sender(layer)] = config.mlp_receiver(layer)
    return table


class Edge(NamedTuple):
    """One edge, as a person reads it."""

    name: str
    sender: str
    receiver: str
    score: float
    in_graph: bool


@dataclass(frozen=True, eq=False)
class Graph:
    """Scores of all edges and the circuit selected from them.

    Never modified: selections return a new graph.

    Attributes:
        config: the shape.
        scores: mean over examples of `metric(patched) - metric(clean)`, exact or estimated.
        in_graph: which edges belong to the circuit.
        standard_errors: of the scores, over examples; None if unknown.
        is_exact: which scores are exact values rather than estimates; None if all are estimates.
        provenance: where the scores come from (model, task, metric, method, versions, ...).
    """

    config: GraphConfig
    scores: Float[Tensor, "n_forward n_backward"]
    in_graph: Bool[Tensor, "n_forward n_backward"]
    standard_errors: Float[Tensor, "n_forward n_backward"] | None = None
    is_exact: Bool[Tensor, "n_forward n_backward"] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_config(cls, config: GraphConfig) -> "Graph":
        """A graph with zero scores that contains every edge."""
        exists = _edge_exists(config)
        return cls(config, scores=torch.zeros(exists.shape), in_graph=exists.clone())

    @classmethod
    def from_model(cls, model: Any, *, expanded_kv: bool = False) -> "Graph":
        """The graph of a loaded `eap.Model`, with zero scores and every edge."""
        return cls.from_config(replace(model.config, expanded_kv=expanded_kv))

    # ---- what is in it -------------------------------------------------------------------------

    @property
    def n_forward(self) -> int:
        """Number of senders."""
        return self.config.n_forward

    @property
    def n_backward(self) -> int:
        """Number of receivers."""
        return self.config.n_backward

    @property
    def sender_names(self) -> tuple[str, ...]:
        """Names of the senders, in index order."""
        return self.config.sender_names

    @property
    def receiver_names(self) -> tuple[str, ...]:
        """Names of the receivers, in index order."""
        return self.config.receiver_names

    @property
    def edge_exists(self) -> Bool[Tensor, "n_forward n_backward"]:
        """Which (sender, receiver) pairs are edges at all."""
        return _edge_exists(self.config)

    @property
    def n_edges(self) -> int:
        """Number of edges of the whole graph."""
        return int(self.edge_exists.sum())

    def count_edges(self) -> int:
        """Number of edges of the circuit."""
        return int(self.in_graph.sum())

    def count_nodes(self) -> int:
        """Number of nodes with an edge in the circuit, `input` and `logits` included."""
        return len(self.nodes_in_graph())

    def nodes_in_graph(self) -> set[str]:
        """Names of the nodes with an edge in the circuit, `input` and `logits` included."""
        touched = self._has_incoming | self.in_graph.any(dim=1)
        names = {self.sender_names[i] for i in touched.nonzero().flatten().tolist()}
        return names | ({"logits"} if self.in_graph[:, -1].any() else set())

    @cached_property
    def _receiver_index(self) -> dict[str, int]:
        return {name: j for j, name in enumerate(self.receiver_names)}

    @cached_property
    def _sender_index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.sender_names)}

    def index(self, edge: str) -> tuple[int, int]:
        """`(sender, receiver)` indices of an edge by name, e.g. `a0.h3->a5.h1<q>`."""
        sender, _, receiver = edge.partition("->")
        i, j = self._sender_index.get(sender), self._receiver_index.get(receiver)
        if i is None or j is None or not self.edge_exists[i, j]:
            raise UserError(
                f"no edge {edge!r} in this graph; edges look like 'input->a0.h0<q>' or "
                f"'{self.sender_names[-1]}->logits', and a sender comes before its receiver"
            )
        return i, j

    def score(self, edge: str) -> float:
        """The score of an edge by name."""
        return float(self.scores[self.index(edge)])

    def __contains__(self, edge: str) -> bool:
        """Whether the edge of this name is in the circuit."""
        return bool(self.in_graph[self.index(edge)])

    def edges(self, *, in_graph_only: bool = True) -> Iterator[Edge]:
        """The edges as objects, senders in order; those of the circuit unless asked for all."""
        pairs = self.in_graph if in_graph_only else self.edge_exists
        for i, j in pairs.nonzero().tolist():
            sender, receiver = self.sender_names[i], self.receiver_names[j]
            yield Edge(
                f"{sender}->{receiver}",
                sender,
                receiver,
                float(self.scores[i, j]),
                bool(self.in_graph[i, j]),
            )

    def edge_names(self) -> list[str]:
        """Names of the circuit's edges."""
        senders, receivers = self.sender_names, self.receiver_names
        return [f"{senders[i]}->{receivers[j]}" for i, j in self.in_graph.nonzero().tolist()]

    def __repr__(self) -> str:
        return (
            f"Graph({self.config.n_layers} layers, {self.config.n_heads} heads: "
            f"{self.count_edges():,} of {self.n_edges:,} edges)"
        )

    # ---- selections ----------------------------------------------------------------------------

    def with_edges(self, in_graph: Bool[Tensor, "n_forward n_backward"]) -> "Graph":
        """The same scores with the circuit `in_graph`; pairs that are not edges must be False."""
        if in_graph.shape != self.edge_exists.shape or (in_graph & ~self.edge_exists).any():
            raise UserError(
                f"a circuit of this graph is a boolean tensor {list(self.edge_exists.shape)} that "
                "is True only where edge_exists is"
            )
        return replace(self, in_graph=in_graph)

    def full(self) -> "Graph":
        """The whole graph."""
        return self.with_edges(self.edge_exists.clone())

    def empty(self) -> "Graph":
        """No edge at all."""
        return self.with_edges(torch.zeros_like(self.edge_exists))

    def top_n(self, n: int, *, absolute: bool = True) -> "Graph":
        """The `n` edges with the highest scores (absolute by default); ties: the earlier edge."""
        values = self._ranking(n, absolute)
        order = torch.sort(values.flatten(), descending=True, stable=True).indices[:n]
        in_graph = torch.zeros_like(self.edge_exists)
        in_graph.view(-1)[order] = True
        return self.with_edges(in_graph)

    def threshold(self, minimum: float, *, absolute: bool = True) -> "Graph":
        """All edges whose score (absolute by default) is at least `minimum`."""
        return self.with_edges((self._ranking(0, absolute) >= minimum) & self.edge_exists)

    def greedy(self, n: int, *, absolute: bool = True) -> "Graph":
        """`n` times, add the best edge whose receiver's node is in the circuit, and its sender.

        Starts from the logits alone (the paper, section 4.1). Ties go to the earlier receiver, then
        to the earlier sender.
        """
        values = self._ranking(n, absolute).T.contiguous()  # [n_backward, n_forward]
        # Every receiver's edges in order of score; the heap holds the next one of each receiver.
        sorted_values, order = (x.numpy() for x in torch.sort(values, descending=True, stable=True))
        n_incoming = self.edge_exists.sum(dim=0).tolist()
        receivers_of = _receiver_of(self.config).tolist()
        heap: list[tuple[float, int, int]] = []  # (-score, receiver, rank in its sorted edges)
        opened = [False] * self.n_backward
        in_circuit = [False] * self.n_forward
        senders, receivers = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.int64)

        def open_receiver(receiver: int) -> None:
            if receiver >= 0 and not opened[receiver]:
                opened[receiver] = True
                heapq.heappush(heap, (-float(sorted_values[receiver, 0]), receiver, 0))

        open_receiver(self.config.logits_receiver)
        for step in range(n):
            _, receiver, rank = heap[0]
            if rank + 1 < n_incoming[receiver]:
                following = -float(sorted_values[receiver, rank + 1])
                heapq.heapreplace(heap, (following, receiver, rank + 1))
            else:
                heapq.heappop(heap)
            sender = int(order[receiver, rank])
            senders[step], receivers[step] = sender, receiver
            if not in_circuit[sender]:
                in_circuit[sender] = True
                for own_receiver in receivers_of[sender]:
                    open_receiver(own_receiver)
        in_graph = torch.zeros_like(self.edge_exists)
        in_graph[torch.from_numpy(senders), torch.from_numpy(receivers)] = True
        return self.with_edges(in_graph)

    def prune(self) -> "Graph":
        """Without the nodes that no path from the input, or none to the logits, runs through.

        A head stays if any of its q, k and v inputs has an edge and its output has one.
        """
        graph = self
        while True:
            alive = graph._has_incoming & graph.in_graph.any(dim=1)
            # A receiver that several heads share stays while one of them does; logits always do.
            reaches = torch.zeros(self.n_backward, dtype=torch.bool)
            reaches[_receiver_of(self.config)[1:][alive[1:]].flatten()] = True
            reaches[self.config.logits_receiver] = True
            kept = graph.in_graph & alive[:, None] & reaches
            if torch.equal(kept, graph.in_graph):
                return graph
            graph = replace(graph, in_graph=kept)

    @property
    def _has_incoming(self) -> Bool[Tensor, " n_forward"]:
        """Which senders have an edge into one of their inputs; the input node if it sends."""
        incoming = self.in_graph.any(dim=0)[_receiver_of(self.config)].any(dim=1)
        incoming[0] = self.in_graph[0].any()
        return incoming

    def _ranking(self, n: int, absolute: bool) -> Float[Tensor, "n_forward n_backward"]:
        """What selections sort by: minus infinity where there is no edge."""
        if not 0 <= n <= self.n_edges:
            raise UserError(f"cannot select {n} edges: this graph has {self.n_edges:,}")
        if self.scores[self.edge_exists].isnan().any():
            raise UserError("cannot select edges: some scores are NaN (never computed)")
        values = self.scores.abs() if absolute else self.scores
        return values.masked_fill(~self.edge_exists, -torch.inf)

    # ---- files ---------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the graph, whole or not at all, as `.json` or (large graphs) `.safetensors`.

        The JSON has the schema of the published files: `cfg`, `nodes` (name: in the circuit) and
        `edges` (name: score and in_graph), to which `provenance` and, where known, an edge's
        `standard_error` and `exact` are added.
        """
        path = Path(path)
        writers = {".json": self._save_json, ".safetensors": self._save_safetensors}
        if path.suffix not in writers:
            raise UserError(f"cannot save a graph as {path.name!r}: use .json or .safetensors")
        with write_atomically(path) as temporary:
            writers[path.suffix](temporary)

    def _save_json(self, path: Path) -> None:
        present = self.nodes_in_graph()
        columns: dict[str, Any] = {"score": self.scores, "in_graph": self.in_graph}
        if self.standard_errors is not None:
            columns["standard_error"] = self.standard_errors
        if self.is_exact is not None:
            columns["exact"] = self.is_exact
        where = self.edge_exists.nonzero().tolist()
        values = [column[self.edge_exists].tolist() for column in columns.values()]
        senders, receivers = self.sender_names, self.receiver_names
        edges = {
            f"{senders[i]}->{receivers[j]}": dict(zip(columns, row, strict=True))
            for (i, j), row in zip(where, zip(*values, strict=True), strict=True)
        }
        document = {
            "cfg": asdict(self.config),
            "provenance": self.provenance,
            "nodes": {name: name in present for name in (*senders, "logits")},
            "edges": edges,
        }
        path.write_text(json.dumps(document), encoding="utf8")

    def _save_safetensors(self, path: Path) -> None:
        tensors = {"scores": self.scores, "in_graph": self.in_graph}
        if self.standard_errors is not None:
            tensors["standard_errors"] = self.standard_errors
        if self.is_exact is not None:
            tensors["is_exact"] = self.is_exact
        header = {"cfg": asdict(self.config), "provenance": self.provenance}
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        path.write_bytes(save(contiguous, metadata={"graph": json.dumps(header)}))

    @classmethod
    def load(cls, path: str | Path) -> "Graph":
        """Read a graph that `save` wrote, or a JSON of the paper or of the EAP-IG library."""
        path = Path(path)
        try:
            if path.suffix == ".safetensors":
                return cls._load_safetensors(path)
            return cls._from_document(json.loads(path.read_text(encoding="utf8")))
        except FileNotFoundError:
            raise UserError(f"no graph at {path}") from None
        except OSError as error:
            raise UserError(f"cannot read a graph from {path}: {error.strerror}") from None
        except (KeyError, TypeError, AttributeError, ValueError, SafetensorError) as error:
            if isinstance(error, UserError):
                raise UserError(f"{path}: {error}") from None
            raise UserError(
                f"{path} is not a graph: {type(error).__name__} {error}; expected 'cfg', 'nodes' "
                "and 'edges' as the published files have them"
            ) from None

    @classmethod
    def _load_safetensors(cls, path: Path) -> "Graph":
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["graph"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        graph = cls(GraphConfig(**header["cfg"]), provenance=header["provenance"], **tensors)
        for name, tensor in tensors.items():
            if tensor.shape != graph.edge_exists.shape:
                wanted = list(graph.edge_exists.shape)
                raise UserError(f"{name} is {list(tensor.shape)}; this graph is {wanted}")
        return graph.with_edges(graph.in_graph)

    @classmethod
    def _from_document(cls, document: dict[str, Any]) -> "Graph":
        graph = cls.from_config(_read_config(document["cfg"]))
        edges = document["edges"]
        names, infos = list(edges), list(edges.values())
        if missing := graph.n_edges - len(edges):
            raise UserError(
                f"{len(edges):,} edges where this shape has {graph.n_edges:,} ({missing:+,})"
            )
        split = [name.partition("->") for name in names]
        try:
            senders = torch.tensor([graph._sender_index[sender] for sender, _, _ in split])
            receivers = torch.tensor([graph._receiver_index[receiver] for _, _, receiver in split])
        except KeyError as error:
            raise UserError(f"unknown node {error} for this shape") from None
        if not graph.edge_exists[senders, receivers].all():
            wrong = int((~graph.edge_exists[senders, receivers]).nonzero()[0])
            raise UserError(f"{names[wrong]} is no edge of this shape")

        def column(key: str, default: Any, dtype: torch.dtype) -> Tensor:
            values = [info.get(key) for info in infos]
            filled = [default if value is None else value for value in values]
            out = torch.zeros(graph.edge_exists.shape, dtype=dtype)
            out[senders, receivers] = torch.tensor(filled, dtype=torch.float64).to(dtype)
            return out

        return replace(
            graph,
            scores=column("score", float("nan"), torch.float32),
            in_graph=column("in_graph", False, torch.bool),
            standard_errors=(
                column("standard_error", float("nan"), torch.float32)
                if "standard_error" in infos[0]
                else None
            ),
            is_exact=column("exact", False, torch.bool) if "exact" in infos[0] else None,
            provenance=document.get("provenance", {}),
        )


def _read_config(cfg: dict[str, Any]) -> GraphConfig:
    """Our own `cfg`, or a published one, which knows no key/value heads: one k and v per head."""
    n_heads = int(cfg["n_heads"])
    return GraphConfig(
        n_layers=int(cfg["n_layers"]),
        n_heads=n_heads,
        d_model=int(cfg.get("d_model") or 0),
        n_kv_heads=int(cfg.get("n_kv_heads") or n_heads),
        parallel_attn_mlp=bool(cfg.get("parallel_attn_mlp", False)),
        expanded_kv=bool(cfg.get("expanded_kv", False)),
    )

"""Circuits for comparison: random circuits made of paths, and circuits without one edge."""

from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from random import Random
from typing import TypeVar

import torch
from jaxtyping import Bool
from torch import Tensor

from eap.graph.graph import Graph

PATIENCE = 100
"""Consecutive draws without a new random circuit after which drawing stops; a draw of the wrong
size counts as 20, because it takes longest."""

T = TypeVar("T", bound=Hashable)


def edges_of(circuit: Graph) -> list[tuple[int, int]]:
    """Pairs (sender, receiver) of all edges of a circuit, in index order."""
    return [(int(i), int(j)) for i, j in circuit.in_graph.nonzero()]


def without_edge(circuit: Graph, sender: int, receiver: int) -> Graph:
    """The circuit without one of its edges."""
    in_graph = circuit.in_graph.clone()
    in_graph[sender, receiver] = False
    return circuit.with_edges(in_graph)


class PathSampler:
    """Sampler of random paths from the input to the logits through allowed edges."""

    def __init__(
        self, graph: Graph, allowed: Bool[Tensor, "n_forward n_backward"], seed: int
    ) -> None:
        # Keep only edges on some path, so that a walk back from the logits never gets stuck.
        self.graph = graph
        self.useful = graph.with_edges(allowed & graph.edge_exists).prune().in_graph
        self.random = Random(seed)
        config = graph.config
        self._receivers: dict[int, list[int]] = {}
        for layer in range(config.n_layers):
            for head, sender in enumerate(
                range(config.heads(layer).start, config.heads(layer).stop)
            ):
                kv = config.kv_head(head)
                self._receivers[sender] = [
                    config.receivers(layer, "q").start + head,
                    config.receivers(layer, "k").start + kv,
                    config.receivers(layer, "v").start + kv,
                ]
            self._receivers[config.mlp_sender(layer)] = [config.mlp_receiver(layer)]
        self._into = [
            self.useful[:, j].nonzero().flatten().tolist() for j in range(config.n_backward)
        ]

    @property
    def is_possible(self) -> bool:
        """Whether there is any path."""
        return bool(self.useful.any())

    def path(self) -> set[tuple[int, int]]:
        """Edges of one path, which is walked back from the logits along random edges."""
        edges, receivers = set(), [self.graph.config.logits_receiver]
        while True:
            choices = [(i, j) for j in receivers for i in self._into[j]]
            sender, receiver = self.random.choice(choices)
            edges.add((sender, receiver))
            if sender == 0:
                return edges
            receivers = self._receivers[sender]

    def circuit(self, size: int, *, tries: int = 200) -> Graph:
        """Union of random paths with `size` edges (fewer, if no further path fits)."""
        edges: set[tuple[int, int]] = set()
        for _ in range(max(tries, 4 * size)):
            if len(edges) == size:
                break
            larger = edges | self.path()
            if len(larger) <= size:
                edges = larger
        return self.of(edges)

    def circuits(self, size: int, n: int, *, other_than: Graph) -> list[Graph]:
        """Up to `n` different random circuits of exactly `size` edges."""
        if int(self.useful.sum()) < size:
            return []
        known = set(edges_of(other_than))

        def draw() -> frozenset[tuple[int, int]] | None:
            edges = frozenset(edges_of(self.circuit(size)))
            return edges if len(edges) == size and edges != known else None

        return [self.of(edges) for edges in _different(draw, n)]

    def of(self, edges: Collection[tuple[int, int]]) -> Graph:
        """Circuit of the given edges."""
        in_graph = torch.zeros_like(self.useful)
        for sender, receiver in edges:
            in_graph[sender, receiver] = True
        return self.graph.with_edges(in_graph)


def _different(draw: Callable[[], T | None], n: int) -> list[T]:
    """Up to `n` different draws; stops after `PATIENCE` misses. A draw of None has a wrong size."""
    drawn: dict[T, None] = {}
    misses = 0
    while len(drawn) < n and misses < PATIENCE:
        new = draw()
        if new is None or new in drawn:
            misses += 20 if new is None else 1
        else:
            drawn[new], misses = None, 0
    return list(drawn)


@dataclass(frozen=True, eq=False)
class Comparison:
    """A circuit and all circuits that it is compared with.

    Attributes:
        circuit: circuit that is judged.
        circuits: all circuits to run, first the judged one. Random circuits have the same number of
            edges as the judged one, and are all different; if too few exist, there are fewer (or
            none).
        parts: slice of `circuits` for each kind of circuit, by name.
    """

    circuit: Graph
    circuits: list[Graph]
    parts: dict[str, slice]

    @classmethod
    def draw(cls, circuit: Graph, *, n_random: int, n_subsets: int, seed: int) -> "Comparison":
        """Draw random circuits, and random halves of the circuit."""
        whole, size = circuit.full(), circuit.count_edges()
        outside = whole.with_edges(whole.in_graph & ~circuit.in_graph)
        anywhere = PathSampler(circuit, whole.in_graph, seed)
        replacement = PathSampler(circuit, outside.in_graph, seed + 1)
        random = Random(seed + 2)
        groups: dict[str, list[Graph]] = {"circuit": [circuit], "without": [outside]}
        groups["one less"] = [without_edge(circuit, *edge) for edge in edges_of(circuit)]
        groups["random"] = anywhere.circuits(size, n_random, other_than=circuit)
        groups["without random"] = [
            whole.with_edges(whole.in_graph & ~drawn.in_graph)
            for drawn in replacement.circuits(size, n_random, other_than=circuit)
        ]
        groups["longer"], groups["longer, one less"] = [], []

        def extend() -> tuple[frozenset[tuple[int, int]], tuple[int, int]]:
            path = replacement.path()
            return frozenset(path), random.choice(sorted(path))

        for path, edge in _different(extend, n_random) if replacement.is_possible else ():
            longer = circuit.with_edges(circuit.in_graph | replacement.of(path).in_graph)
            groups["longer"].append(longer)
            groups["longer, one less"].append(without_edge(longer, *edge))
        groups["circuit, halved"], groups["whole, less"] = [], []
        for _ in range(n_subsets):
            lost = torch.zeros_like(circuit.in_graph)
            for sender, receiver in edges_of(circuit):
                lost[sender, receiver] = random.random() < 0.5
            groups["circuit, halved"].append(circuit.with_edges(circuit.in_graph & ~lost))
            groups["whole, less"].append(whole.with_edges(whole.in_graph & ~lost))
        circuits: list[Graph] = []
        parts = {}
        for name, edges in groups.items():
            parts[name] = slice(len(circuits), len(circuits) + len(edges))
            circuits += edges
        return cls(circuit, circuits, parts)

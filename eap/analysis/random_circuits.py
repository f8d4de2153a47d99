"""Circuits for comparison: random circuits made of paths, and circuits without one edge."""

from collections.abc import Callable, Hashable, Iterable
from random import Random
from typing import TypeVar

import torch
from jaxtyping import Bool
from torch import Tensor

from eap.graph.contents import receiver_of
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
        # An MLP has one receiver, which the table has three times.
        self._receivers = [list(dict.fromkeys(row)) for row in receiver_of(graph.config).tolist()]
        self._into = [column.nonzero().flatten().tolist() for column in self.useful.T]

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

    def circuit(self, size: int) -> Graph:
        """Union of random paths with `size` edges (fewer, if no further path fits)."""
        edges: set[tuple[int, int]] = set()
        for _ in range(max(200, 4 * size)):
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

    def of(self, edges: Iterable[tuple[int, int]]) -> Graph:
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


def compared_circuits(
    circuit: Graph, *, n_random: int, n_subsets: int, seed: int
) -> dict[str, list[Graph]]:
    """A circuit and all circuits that it is compared with, by kind.

    Random circuits have the same number of edges as the circuit, and are all different; if too few
    exist, there are fewer (or none).
    """
    whole, size = circuit.full(), circuit.count_edges()
    outside = whole - circuit
    anywhere = PathSampler(circuit, whole.in_graph, seed)
    replacement = PathSampler(circuit, outside.in_graph, seed + 1)
    random = Random(seed + 2)

    def extend() -> tuple[frozenset[tuple[int, int]], tuple[int, int]]:
        path = replacement.path()
        return frozenset(path), random.choice(sorted(path))

    beside = replacement.circuits(size, n_random, other_than=circuit)
    extensions = _different(extend, n_random) if replacement.useful.any() else []
    longer = [circuit | replacement.of(path) for path, _ in extensions]
    halves = [
        replacement.of(edge for edge in edges_of(circuit) if random.random() < 0.5)
        for _ in range(n_subsets)
    ]
    return {
        "circuit": [circuit],
        "without": [outside],
        "one less": [without_edge(circuit, *edge) for edge in edges_of(circuit)],
        "random": anywhere.circuits(size, n_random, other_than=circuit),
        "without random": [whole - drawn for drawn in beside],
        "longer": longer,
        "longer, one less": [
            without_edge(own, *edge) for own, (_, edge) in zip(longer, extensions, strict=True)
        ],
        "circuit, halved": [circuit - half for half in halves],
        "whole, less": [whole - half for half in halves],
    }

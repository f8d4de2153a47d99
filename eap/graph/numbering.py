"""Numbering and names of the senders, receivers and edges of a model.

Senders are the input embedding, every attention head and every MLP; receivers are the q, k and v
input of every head, every MLP and the logits. Everything here follows from the shape of the model
by arithmetic, without scores and without torch.
"""

from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
from jaxtyping import Int

from eap.runtime.errors import UserError, quoted
from eap.runtime.ranges import Range, whole

LARGEST = 10**10
"""Largest number of pairs of a sender and a receiver in a graph; Llama 3.1 405B has 10^9."""


@dataclass(frozen=True)
class GraphConfig:
    """Shape of a graph, from which its senders and receivers are numbered.

    In a model with grouped-query attention, k and v receivers belong to the key/value heads
    (`a3.kv1<k>`); with `expanded_kv`, there is one k and one v per query head, as in earlier work.

    Example:
        >>> model.config.n_edges == graph.full().count_edges()
        True
    """

    n_layers: int
    n_heads: int
    d_model: int
    n_kv_heads: int
    parallel_attn_mlp: bool = False
    expanded_kv: bool = False

    def __post_init__(self) -> None:
        for part in fields(self):
            value = getattr(self, part.name)
            least = 0 if part.name == "d_model" else 1  # the paper's files do not record d_model
            if part.type is bool:
                if not isinstance(value, bool):
                    raise UserError(f"{part.name} of a graph is true or false, not {value!r:.40}")
            else:
                object.__setattr__(
                    self, part.name, whole(f"{part.name} of a graph", value, Range(least, 10**9))
                )
        if self.n_heads % self.n_kv_heads:
            raise UserError(
                f"{self.n_heads} heads cannot share {self.n_kv_heads} key/value heads evenly"
            )

        if (size := self.n_forward * self.n_backward) > LARGEST:
            raise UserError(
                f"a graph of {self.n_layers:,} layers and {self.n_heads:,} heads has {size:,} "
                f"pairs of nodes; at most {LARGEST:,} are supported"
            )

    @property
    def shape(self) -> tuple[int, int, int, bool]:
        """Properties that two graphs must share to have the same edges."""
        return self.n_layers, self.n_heads, self.n_kv_receivers, self.parallel_attn_mlp

    @property
    def n_kv_receivers(self) -> int:
        """Number of k receivers (and of v receivers) in a layer."""
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
    def n_edges(self) -> int:
        """Number of edges of the whole graph, by arithmetic, so that nothing is allocated."""
        L, H = self.n_layers, self.n_heads
        # Senders before layer l: 1 + l (H + 1), summed over the layers.
        before = L + (H + 1) * L * (L - 1) // 2
        into_mlps = before + (0 if self.parallel_attn_mlp else L * H)
        return before * (self._receivers_per_layer - 1) + into_mlps + self.n_forward

    @property
    def _receivers_per_layer(self) -> int:
        return self.n_heads + 2 * self.n_kv_receivers + 1

    def heads(self, layer: int) -> slice:
        """Indices of the heads of a layer among the senders."""
        first = 1 + layer * (self.n_heads + 1)
        return slice(first, first + self.n_heads)

    def mlp_sender(self, layer: int) -> int:
        """Index of the MLP of a layer among the senders."""
        return self.heads(layer).stop

    def n_receivers(self, kind: str) -> int:
        """Number of receivers of a kind ('q', 'k' or 'v') in a layer."""
        return self.n_heads if kind == "q" else self.n_kv_receivers

    def receivers(self, layer: int, kind: str) -> slice:
        """Indices of the inputs of a kind ('q', 'k' or 'v') of a layer's heads."""
        first = layer * self._receivers_per_layer
        starts = {
            "q": first,
            "k": first + self.n_heads,
            "v": first + self.n_heads + self.n_kv_receivers,
        }
        return slice(starts[kind], starts[kind] + self.n_receivers(kind))

    def mlp_receiver(self, layer: int) -> int:
        """Index of the MLP of a layer among the receivers."""
        return (layer + 1) * self._receivers_per_layer - 1

    def layer_of_sender(self, sender: int) -> int:
        """Layer that a sender belongs to; -1 for the input, `n_layers` for the next free index."""
        return (sender - 1) // (self.n_heads + 1)

    def layer_of_receiver(self, receiver: int) -> int:
        """Layer that a receiver belongs to; `n_layers` for the logits."""
        return receiver // self._receivers_per_layer

    @property
    def logits_receiver(self) -> int:
        """Index of the logits among the receivers."""
        return self.n_backward - 1

    def senders_before(self, layer: int, kind: str) -> int:
        """Number of senders, from the first on, that have edges into receivers of a layer.

        Args:
            layer: layer of the receivers, ignored for the logits.
            kind: kind of the receivers, 'attention', 'mlp' or 'logits'.
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
        """Number of the k (or v) receiver in a layer that the query head `head` reads."""
        return head * self.n_kv_receivers // self.n_heads


@lru_cache(maxsize=16)
def _sender_names(config: GraphConfig) -> tuple[str, ...]:
    names = ["input"]
    for layer in range(config.n_layers):
        names += [f"a{layer}.h{head}" for head in range(config.n_heads)] + [f"m{layer}"]
    return tuple(names)


@lru_cache(maxsize=16)
def _receiver_names(config: GraphConfig) -> tuple[str, ...]:
    # A key/value head that several query heads share gets its own name.
    kv = "h" if config.n_kv_receivers == config.n_heads else "kv"
    names = []
    for layer in range(config.n_layers):
        names += [f"a{layer}.h{head}<q>" for head in range(config.n_heads)]
        for kind in "kv":
            names += [f"a{layer}.{kv}{head}<{kind}>" for head in range(config.n_kv_receivers)]
        names.append(f"m{layer}")
    return (*names, "logits")


@lru_cache(maxsize=16)
def reads(config: GraphConfig) -> Int[np.ndarray, " n_backward"]:
    """Number of senders, from the first on, that have an edge into each receiver."""
    counts = np.empty(config.n_backward, dtype=np.int64)
    for layer in range(config.n_layers):
        attention = slice(config.receivers(layer, "q").start, config.receivers(layer, "v").stop)
        counts[attention] = config.senders_before(layer, "attention")
        counts[config.mlp_receiver(layer)] = config.senders_before(layer, "mlp")
    counts[config.logits_receiver] = config.senders_before(config.n_layers, "logits")
    counts.setflags(write=False)
    return counts


@lru_cache(maxsize=16)
def sender_index(config: GraphConfig) -> dict[str, int]:
    """Index of each sender, by name."""
    return {name: i for i, name in enumerate(config.sender_names)}


@lru_cache(maxsize=16)
def receiver_index(config: GraphConfig) -> dict[str, int]:
    """Index of each receiver, by name."""
    return {name: j for j, name in enumerate(config.receiver_names)}


def edge_index(config: GraphConfig, edge: str) -> tuple[int, int]:
    """Indices `(sender, receiver)` of an edge by its name, such as `a0.h3->a5.h1<q>`.

    Raises:
        UserError: a graph of this shape has no edge with that name.
    """
    sender, _, receiver = str(edge).partition("->")
    i, j = sender_index(config).get(sender), receiver_index(config).get(receiver)
    if i is None or j is None or i >= reads(config)[j]:
        raise UserError(
            f"no edge {quoted(str(edge))} in this graph; edges look like 'input->a0.h0<q>' or "
            f"'{config.sender_names[-1]}->logits', and a sender comes before its receiver"
        )
    return i, j

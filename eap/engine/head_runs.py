"""Runs of one head on one prompt: its pattern, and the senders' contributions to its q, k and v."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from eap.data.batches import check_dataset, check_pairs
from eap.data.dataset import Dataset
from eap.graph.numbering import sender_index
from eap.model.blocks import Norm
from eap.model.model import Model
from eap.model.prefix import PrefixCache
from eap.model.runs import LayerTrace, outputs_everywhere
from eap.parts.basis import place_of
from eap.runtime.errors import UserError, quoted
from eap.runtime.ranges import Range, whole

Prompt = Literal["clean", "corrupted"]


def texts_of(model: Model, tokens: Sequence[int]) -> list[str]:
    """Tokens as text, or as their ids if there is no tokenizer."""
    if model.tokenizer is None:
        return [str(token) for token in tokens]
    return [str(model.tokenizer.decode([token])) for token in tokens]


def pattern_of(
    model: Model, layer: int, run: LayerTrace, cache: PrefixCache
) -> Float[Tensor, "head query key"]:
    """Attention patterns of one layer's heads on one prompt."""
    attention = model.blocks[layer].attention
    queries = attention.queries(run.q, cache, last_only=False)
    keys = attention.keys(run.k, cache)
    mask = cache.mask(attention.window, run.q.device, last_only=False)
    return attention.pattern(queries, keys, mask)[0]


@dataclass(frozen=True, eq=False)
class HeadRun:
    """Run of one head on one prompt, with the outputs of all senders."""

    model: Model
    layer: int
    head: int
    texts: list[str]
    outputs: Float[Tensor, "n_forward batch pos d_model"]
    trace: LayerTrace
    final: Float[Tensor, "batch pos d_model"]
    cache: PrefixCache
    normed: dict[int, Float[Tensor, "n_forward_and_rest pos d_model"]] = field(default_factory=dict)
    """Inputs of one layer's heads, by sender; shared by the heads of a run, a layer at a time."""

    @classmethod
    def of(cls, model: Model, dataset: Dataset, head: str, prompt: str, example: int) -> "HeadRun":
        """Run one head on one prompt.

        Raises:
            UserError: a head, prompt or example that does not exist.
        """
        return cls.several(model, dataset, [head], prompt, example)[0]

    @classmethod
    def several(
        cls, model: Model, dataset: Dataset, heads: Sequence[str], prompt: str, example: int
    ) -> "list[HeadRun]":
        """Run several heads on one prompt, in one forward pass.

        Raises:
            UserError: a head, prompt or example that does not exist.
        """
        check_dataset(model, dataset)
        if prompt not in get_args(Prompt):
            raise UserError(
                f"prompt is 'clean', 'corrupted' or (of logits) 'difference', not "
                f"{quoted(str(prompt), 40)}"
            )
        example = whole("example", example, Range(0, len(dataset) - 1))
        places = []
        for head in heads:
            layer, number = place_of(model.config, sender_index(model.config).get(str(head), 0))
            if number is None:
                raise UserError(f"{model.name} has no head {quoted(str(head), 40)}")
            places.append((layer, number))
        if prompt == "corrupted":
            check_pairs(dataset, "prompt='corrupted'")
        tokens = getattr(dataset.examples[example], prompt)
        ids = torch.tensor([list(tokens)], device=model.device)
        last = torch.tensor([len(tokens) - 1], device=model.device)
        outputs, trace, final = outputs_everywhere(model, ids, last)
        cache = PrefixCache(0, len(tokens), last, (), ())
        texts = texts_of(model, tokens)
        shared: dict[int, Tensor] = {}
        return [
            cls(model, layer, number, texts, outputs, trace[layer], final, cache, shared)
            for layer, number in places
        ]

    @property
    def name(self) -> str:
        """Name of the head, such as `a1.h3`."""
        return f"a{self.layer}.h{self.head}"

    def position(self, position: int, what: str) -> int:
        """Position counted from the first token, for a number that may be negative."""
        n = len(self.texts)
        return whole(what, position, Range(-n, n - 1)) % n

    def check_sight(self, query: int, key: int) -> None:
        """Check that the head can see the key from the query.

        Raises:
            UserError: the head cannot.
        """
        window = self.model.blocks[self.layer].attention.window
        mask = self.cache.mask(window, self.outputs.device, last_only=False)
        if mask[query, key] != 0:
            raise UserError(f"{self.name} does not see position {key} from {query}")

    def pattern(self) -> Float[Tensor, "query key"]:
        """Attention pattern of the head."""
        return pattern_of(self.model, self.layer, self.trace, self.cache)[self.head]

    def terms(self, query: int, key: int) -> Float[Tensor, "n_rest n_rest"]:
        """Contribution of each pair of senders to the logit."""
        q, k = self.projected("q")[:, query], self.projected("k")[:, key]
        scale = self.model.blocks[self.layer].attention.scale
        return einsum(q, k, "u d, w d -> u w") * scale

    def read(self) -> Float[Tensor, "n_forward_and_rest pos d_model"]:
        """Contributions of every sender, then of the rest, to the normed input of the layer."""
        if self.layer not in self.normed:
            self.normed.clear()
            x, first = self.trace.x, self.model.config.senders_before(self.layer, "attention")
            sent = self.outputs.to(x).clone()[:, 0]
            sent[first:] = 0
            rest = x[0] - sent.sum(0)
            norm = self.model.blocks[self.layer].ln1
            self.normed[self.layer] = _through(norm, torch.cat([sent, rest[None]]), x[0])
        return self.normed[self.layer]

    def projected(self, kind: str) -> Float[Tensor, "n_forward_and_rest pos d_head"]:
        """Contributions of every sender, then of the rest, to the q, k or v that the head uses."""
        block, config = self.model.blocks[self.layer], self.model.config
        attention = block.attention
        W, b = attention.projection(kind)
        shared = self.head * len(W) // config.n_heads  # number of the head's weights
        parts = self.read()
        out = parts @ W[shared].to(parts)
        if b is not None:
            out[-1] += b[shared].to(out)
        whole = getattr(self.trace, kind)[0, :, shared].to(out)
        if attention.clip is not None:
            clipped = whole.clamp(-attention.clip, attention.clip)
            out = out * torch.where(whole == 0, 1.0, clipped / whole)
            whole = clipped
        head_norm = {"q": attention.q_norm, "k": attention.k_norm}.get(kind)
        if head_norm is not None:
            out = _through(head_norm, out, whole)
        if kind == "v":
            return out
        return attention.turned(out[:, :, None], self.cache, last_only=False)[:, :, 0]


def _through(
    norm: Norm, parts: Float[Tensor, "n pos d"], whole: Float[Tensor, "pos d"]
) -> Float[Tensor, "n pos d"]:
    """Parts of `whole` after a norm, with the scale of the norm for the whole."""
    parts = norm.centre(parts) * norm.scale(whole)
    if norm.weight is not None:
        parts = parts * norm.weight
    if norm.bias is not None:
        parts[-1] += norm.bias
    return parts

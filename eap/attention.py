"""Where heads look, and why: attention patterns, and what their logits are made of.

The logit of a head from a query q to a key k is, with norms' scales at their values in the run at
hand, a sum over pairs of senders: what u brings to the query, times what w brings to the key,

    sum over u, w of (a_u(q) W_Q R_q) . (a_w(k) W_K R_k) scale,

and the same with what is no sender's: positions and biases. Query and key norms count as constant
scales, too, and a clipped coordinate (OLMo) as one that is scaled down; so the sum is exact. A soft
cap (Gemma 2) bends the sum, after it is made.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from eap.data.batches import check_dataset, check_pairs
from eap.data.dataset import Dataset
from eap.errors import UserError, quoted
from eap.graph.numbering import sender_index
from eap.model.blocks import Norm
from eap.model.model import Model
from eap.model.prefix import PrefixCache
from eap.model.runs import LayerTrace, outputs_everywhere
from eap.model.verbs import verb
from eap.parts import place_of
from eap.runtime.ranges import whole

Pattern = tuple[list[str], Float[np.ndarray, "query key"]]
"""The tokens of a prompt as text, and how much each (row) takes from each (column)."""

Prompt = Literal["clean", "corrupted"]


@verb
def attention_patterns(
    model: Model,
    dataset: Dataset,
    *,
    heads: Sequence[str] | None = None,
    n_examples: int = 3,
    prompt: Prompt = "clean",
) -> dict[str, list[Pattern]]:
    """The attention patterns of heads on the first few examples.

    Args:
        model: from `eap.load_model`.
        dataset: from `eap.load_dataset`.
        heads: their names (`a1.h3`); None: all.
        n_examples: how many, from the first on.
        prompt: whose attention, `clean` or `corrupted`.

    Returns:
        By head, per example its tokens as text and the weights [query, key], rows summing to 1:
        what `Graph.to_html(..., patterns=...)` shows.

    Raises:
        UserError: the model has no such head, or examples that it cannot run.
    """
    if prompt not in get_args(Prompt):
        raise UserError(f"prompt is 'clean' or 'corrupted', not {quoted(str(prompt), 40)}")
    few = dataset.head(whole("n_examples", n_examples))
    check_dataset(model, few)
    if prompt == "corrupted":
        check_pairs(few, "prompt='corrupted'")
    config = model.config
    known = [name for name in config.sender_names if name.startswith("a")]
    chosen = known if heads is None else list(heads)
    if unknown := [name for name in chosen if name not in known]:
        raise UserError(f"{model.name} has no head {quoted(str(unknown[0]), 40)}")
    found: dict[str, list[Pattern]] = {name: [] for name in chosen}
    for example in few.examples:
        tokens = getattr(example, prompt)
        texts = _texts(model, tokens)
        for layer, pattern in enumerate(_patterns(model, tokens)):
            for head in range(config.n_heads):
                if (name := f"a{layer}.h{head}") in found:
                    found[name].append((texts, pattern[head].double().cpu().numpy()))
    return found


def _texts(model: Model, tokens: Sequence[int]) -> list[str]:
    if model.tokenizer is None:
        return [str(token) for token in tokens]
    return [str(model.tokenizer.decode([token])) for token in tokens]


@torch.no_grad()
def _patterns(model: Model, tokens: Sequence[int]) -> Iterator[Float[Tensor, "head query key"]]:
    """Of every layer, on one prompt."""
    n = len(tokens)
    ids = torch.tensor([list(tokens)], device=model.device)
    last = torch.tensor([n - 1], device=model.device)
    _, trace, _ = outputs_everywhere(model, ids, last)
    cache = PrefixCache(0, n, last, (), ())
    for layer, run in enumerate(trace):
        yield _pattern(model, layer, run, cache)


def _pattern(
    model: Model, layer: int, run: LayerTrace, cache: PrefixCache
) -> Float[Tensor, "head query key"]:
    """Of one layer's heads, on one prompt."""
    attention = model.blocks[layer].attention
    queries = attention.queries(run.q, cache, last_only=False)
    keys = attention.keys(run.k, cache)
    mask = cache.mask(attention.window, run.q.device, last_only=False)
    return attention.pattern(queries, keys, mask)[0]


# ---- why a head looks there ----------------------------------------------------------------------

REST = "positions and biases"
"""The last row and column of terms: what is no sender's."""


@dataclass(frozen=True, eq=False)
class LogitTerms:
    """An attention logit as a sum over pairs of senders.

    Attributes:
        head, query, key: whose logit, from which position to which.
        prompt: 'clean', 'corrupted', or 'difference' (clean minus corrupted).
        names: of the rows and columns: the senders, then `REST`.
        terms: by what the query reads (row) and what the key reads (column); their sum is the
            logit before a soft cap.
        softcap: the logit that attention uses is softcap * tanh(sum / softcap); None: the sum.
        tokens: the prompt's, as text.
    """

    head: str
    query: int
    key: int
    prompt: str
    names: tuple[str, ...]
    terms: Float[Tensor, "n_forward_and_rest n_forward_and_rest"]
    softcap: float | None
    tokens: tuple[str, ...]

    @property
    def logit(self) -> float:
        """The sum of all terms: the logit before a soft cap, or the difference of two."""
        return float(self.terms.sum())

    @property
    def by_query(self) -> pd.Series:
        """The sum over the key's senders, by sender on the query side."""
        return pd.Series(self.terms.sum(1).numpy(), index=list(self.names), name="query side")

    @property
    def by_key(self) -> pd.Series:
        """The sum over the query's senders, by sender on the key side."""
        return pd.Series(self.terms.sum(0).numpy(), index=list(self.names), name="key side")

    def to_frame(self, n: int | None = None) -> pd.DataFrame:
        """A row per pair, largest magnitude first: query_sender, key_sender, term.

        Args:
            n: how many; None: all.
        """
        order = self.terms.flatten().abs().argsort(descending=True, stable=True)[:n].tolist()
        width = len(self.names)
        rows = [(self.names[at // width], self.names[at % width]) for at in order]
        frame = pd.DataFrame(rows, columns=["query_sender", "key_sender"])
        return frame.assign(term=self.terms.flatten()[order].numpy())


@torch.no_grad()
def logit_terms(
    model: Model,
    dataset: Dataset,
    head: str,
    *,
    query: int = -1,
    key: int | None = None,
    example: int = 0,
    prompt: Literal["clean", "corrupted", "difference"] = "clean",
) -> LogitTerms:
    """Why a head looks where it looks: its attention logit as a sum over pairs of senders.

        terms = eap.attention.logit_terms(model, dataset, "a1.h0")
        terms.by_key.sort_values()

    Args:
        model: from `eap.load_model`.
        dataset: from `eap.load_dataset`.
        head: its name, `a1.h3`.
        query: position that looks; negative ones count from the prompt's last token.
        key: position that is looked at; None: where the head looks most from the query.
        example: number of the pair in the data set.
        prompt: whose logit; 'difference': the clean prompt's minus the corrupted prompt's, whose
            positions must correspond.

    Returns:
        Terms [n_forward + 1, n_forward + 1] that sum to the logit (before a soft cap).

    Raises:
        UserError: there is no such head, example or position, or the head does not see the key
            from the query.
    """
    runs = ["clean", "corrupted"] if prompt == "difference" else [prompt]
    first = _HeadRun.of(model, dataset, head, runs[0], example)
    query = first.position(query, "query")
    if key is None:
        key = int(first.pattern()[query].argmax())
    key = first.position(key, "key")
    first.check_sight(query, key)
    terms = first.terms(query, key)
    if prompt == "difference":
        second = _HeadRun.of(model, dataset, head, runs[1], example)
        terms = terms - second.terms(second.position(query, "query"), second.position(key, "key"))
    return LogitTerms(
        head=head,
        query=query,
        key=key,
        prompt=prompt,
        names=(*model.config.sender_names, REST),
        terms=terms.cpu(),
        softcap=model.blocks[first.layer].attention.softcap,
        tokens=tuple(first.texts),
    )


@dataclass(frozen=True, eq=False)
class HeadResult:
    """What a head moves to a query position, as a sum over keys and senders.

    Attributes:
        head, query: whose result, at which position.
        names: of the senders, then `REST`.
        values: pattern[query, key] times what each sender brings to the value at the key.
        W_O: the head's own, with the weight of a norm after attention.
        direction: what each d_model coordinate is worth to the answers, the final norm's scale at
            the run's; correct minus incorrect.
        tokens: the prompt's, as text.
    """

    head: str
    query: int
    names: tuple[str, ...]
    values: Float[Tensor, "key n_forward_and_rest d_head"]
    W_O: Float[Tensor, "d_head d_model"]
    direction: Float[Tensor, " d_model"]
    tokens: tuple[str, ...]

    @property
    def moved(self) -> Float[Tensor, "key n_forward_and_rest d_model"]:
        """What is moved, by key and sender; the sum is the head's result."""
        return self.values @ self.W_O

    @property
    def by_answers(self) -> Float[Tensor, "key n_forward_and_rest"]:
        """How much of what is moved points from the incorrect to the correct answers."""
        return self.values @ (self.W_O @ self.direction)

    def to_frame(self, n: int | None = None) -> pd.DataFrame:
        """A row per key and sender, largest first: key, token, sender, answers (a share of logits).

        Args:
            n: how many; None: all.
        """
        answers = self.by_answers.flatten()
        order = answers.abs().argsort(descending=True, stable=True)[:n].tolist()
        width = len(self.names)
        rows = [(at // width, self.tokens[at // width], self.names[at % width]) for at in order]
        frame = pd.DataFrame(rows, columns=["key", "token", "sender"])
        return frame.assign(answers=answers[order].numpy())


@torch.no_grad()
def head_result(
    model: Model,
    dataset: Dataset,
    head: str,
    *,
    query: int = -1,
    example: int = 0,
    prompt: Prompt = "clean",
) -> HeadResult:
    """What a head moves: its result at a position as a sum over keys and senders.

        eap.attention.head_result(model, dataset, "a1.h0").to_frame(10)

    Args:
        model: from `eap.load_model`.
        dataset: from `eap.load_dataset`.
        head: its name, `a1.h3`.
        query: position that the result is added at; negative ones count from the last token.
        example: number of the pair in the data set.
        prompt: whose result, `clean` or `corrupted`.

    Returns:
        The sum over keys and senders, as vectors and along the answers' direction.

    Raises:
        UserError: there is no such head, example or position.
    """
    run = _HeadRun.of(model, dataset, head, prompt, example)
    query = run.position(query, "query")
    block = model.blocks[run.layer]
    values = run.projected("v").transpose(0, 1) * run.pattern()[query][:, None, None]
    norm = block.post_attention_norm
    if norm is not None:
        values = values * norm.scale(run.trace.attention_raw[0, query])
    pair = dataset.examples[example]
    W_U = model.W_U.to(run.final)
    direction = W_U[list(pair.correct)].mean(0) - W_U[list(pair.incorrect)].mean(0)
    final = model.ln_final
    if final.weight is not None:
        direction = direction * final.weight
    direction = final.centre(direction) * final.scale(run.final[0, -1])
    return HeadResult(
        head=head,
        query=query,
        names=(*model.config.sender_names, REST),
        values=values.cpu(),
        W_O=block.head_output_weights[run.head].to(values).cpu(),
        direction=direction.cpu(),
        tokens=tuple(run.texts),
    )


@dataclass(frozen=True, eq=False)
class _HeadRun:
    """One head on one prompt, and what every sender sent there."""

    model: Model
    layer: int
    head: int
    texts: list[str]
    outputs: Float[Tensor, "n_forward batch pos d_model"]
    trace: LayerTrace
    final: Float[Tensor, "batch pos d_model"]
    cache: PrefixCache

    @classmethod
    def of(cls, model: Model, dataset: Dataset, head: str, prompt: str, example: int) -> "_HeadRun":
        if prompt not in get_args(Prompt):
            raise UserError(
                f"prompt is 'clean', 'corrupted' or (of logits) 'difference', not "
                f"{quoted(str(prompt), 40)}"
            )
        if not 0 <= example < len(dataset):
            raise UserError(f"no example {example}: there are {len(dataset)}, from 0 on")
        sender = sender_index(model.config).get(head, 0)
        layer, number = place_of(model.config, sender)
        if number is None:
            raise UserError(f"{model.name} has no head {quoted(str(head), 40)}")
        check_dataset(model, dataset)
        tokens = getattr(dataset.examples[example], prompt)
        ids = torch.tensor([list(tokens)], device=model.device)
        last = torch.tensor([len(tokens) - 1], device=model.device)
        outputs, trace, final = outputs_everywhere(model, ids, last)
        cache = PrefixCache(0, len(tokens), last, (), ())
        texts = _texts(model, tokens)
        return cls(model, layer, number, texts, outputs, trace[layer], final, cache)

    def position(self, position: int, what: str) -> int:
        """Counted from the first token."""
        n = len(self.texts)
        if not -n <= position < n:
            raise UserError(f"no {what} position {position} in a prompt of {n} tokens")
        return position % n

    def check_sight(self, query: int, key: int) -> None:
        """A `UserError` where the head does not see the key from the query."""
        window = self.model.blocks[self.layer].attention.window
        mask = self.cache.mask(window, self.outputs.device, last_only=False)
        if mask[query, key] != 0:
            raise UserError(f"a{self.layer}.h{self.head} does not see position {key} from {query}")

    def pattern(self) -> Float[Tensor, "query key"]:
        """Where the head looks."""
        return _pattern(self.model, self.layer, self.trace, self.cache)[self.head]

    def terms(self, query: int, key: int) -> Float[Tensor, "n_rest n_rest"]:
        """What each pair of senders adds to the logit."""
        q, k = self.projected("q")[:, query], self.projected("k")[:, key]
        scale = self.model.blocks[self.layer].attention.scale
        return einsum(q, k, "u d, w d -> u w") * scale

    def projected(self, kind: str) -> Float[Tensor, "n_forward_and_rest pos d_head"]:
        """What every sender brings to the head's q, k or v, as attention uses it; then the rest."""
        block, config = self.model.blocks[self.layer], self.model.config
        attention = block.attention
        W, b = attention.projection(kind)
        shared = self.head * len(W) // config.n_heads  # of the head, by its number in the weights
        x = self.trace.x
        sent = self.outputs.to(x).clone()[:, 0]
        sent[config.senders_before(self.layer, "attention") :] = 0
        rest = x[0] - sent.sum(0)
        parts = _through(block.ln1, torch.cat([sent, rest[None]]), x[0])
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
    """Parts of `whole` as they are after a norm whose scale is that of the whole."""
    parts = norm.centre(parts) * norm.scale(whole)
    if norm.weight is not None:
        parts = parts * norm.weight
    if norm.bias is not None:
        parts[-1] += norm.bias
    return parts

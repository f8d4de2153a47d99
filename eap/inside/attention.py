"""Where heads look, and why: attention patterns, and what their logits are made of.

The logit of a head from a query q to a key k is, with norms' scales at their values in the run at
hand, a sum over pairs of senders: what u brings to the query, times what w brings to the key,

    sum over u, w of (a_u(q) W_Q R_q) . (a_w(k) W_K R_k) scale,

and the same with what is no sender's: positions and biases. Query and key norms count as constant
scales, too, and a clipped coordinate (OLMo) as one that is scaled down; so the sum is exact. A soft
cap (Gemma 2) bends the sum, after it is made.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from eap.data.batches import check_dataset, check_pairs
from eap.data.dataset import Dataset
from eap.data.example import Example
from eap.engine.head_runs import HeadRun, Prompt, pattern_of, texts_of
from eap.model.model import Model
from eap.model.prefix import PrefixCache
from eap.model.runs import outputs_everywhere
from eap.model.verbs import verb
from eap.runtime.errors import UserError, quoted
from eap.runtime.progress import progress_bar
from eap.runtime.ranges import whole

Pattern = tuple[list[str], Float[np.ndarray, "query key"]]
"""The tokens of a prompt as text, and how much each (row) takes from each (column)."""


@verb
def attention_patterns(
    model: Model,
    dataset: Dataset,
    *,
    heads: Sequence[str] | None = None,
    n_examples: int = 3,
    prompt: Prompt = "clean",
    quiet: bool = True,
) -> dict[str, list[Pattern]]:
    """Attention patterns of heads on the first few examples.

    Args:
        model: loaded model (`eap.load_model`).
        dataset: pairs of prompts (`eap.load_dataset`).
        heads: names of the heads (`a1.h3`); None: all.
        n_examples: number of examples, from the first on.
        prompt: prompt that is read, `clean` or `corrupted`.
        quiet: whether to hide the progress bar.

    Returns:
        By head, per example its tokens as text and the weights [query, key], rows summing to 1:
        what `Graph.to_html(..., patterns=...)` shows.

    Raises:
        UserError: the model has no such head, or examples that it cannot run.

    Example:
        >>> patterns = eap.attention_patterns(model, dataset, heads=["a1.h3"], n_examples=1)
        >>> tokens, weights = patterns["a1.h3"][0]
        >>> weights.shape == (len(tokens), len(tokens))
        True
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
    patterns: dict[str, list[Pattern]] = {name: [] for name in chosen}
    for example in progress_bar(few.examples, "attention patterns", quiet=quiet):
        tokens = getattr(example, prompt)
        texts = texts_of(model, tokens)
        for layer, pattern in enumerate(_patterns(model, tokens)):
            for head in range(config.n_heads):
                if (name := f"a{layer}.h{head}") in patterns:
                    patterns[name].append((texts, pattern[head].double().cpu().numpy()))
    return patterns


@torch.no_grad()
def _patterns(model: Model, tokens: Sequence[int]) -> Iterator[Float[Tensor, "head query key"]]:
    """Patterns of every layer on one prompt."""
    n = len(tokens)
    ids = torch.tensor([list(tokens)], device=model.device)
    last = torch.tensor([n - 1], device=model.device)
    _, trace, _ = outputs_everywhere(model, ids, last)
    cache = PrefixCache(0, n, last, (), ())
    for layer, run in enumerate(trace):
        yield pattern_of(model, layer, run, cache)


# ---- why a head looks there ----------------------------------------------------------------------

REST = "positions and biases"
"""The last row and column of terms: what is no sender's."""


@dataclass(frozen=True, eq=False)
class LogitTerms:
    """An attention logit as a sum over pairs of senders.

    Attributes:
        head, query, key: head, position that looks, and position that is looked at.
        prompt: 'clean', 'corrupted', or 'difference' (clean minus corrupted).
        names: names of the rows and columns: the senders, then `REST`.
        terms: terms by what the query reads (row) and what the key reads (column); their sum is the
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
            n: number of rows; None: all.
        """
        n = None if n is None else whole("n", n)
        order = self.terms.flatten().abs().argsort(descending=True, stable=True)[:n].tolist()
        width = len(self.names)
        rows = [(self.names[at // width], self.names[at % width]) for at in order]
        frame = pd.DataFrame(rows, columns=["query_sender", "key_sender"])
        return frame.assign(term=self.terms.flatten()[order].numpy())


@verb
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

    Args:
        model: loaded model (`eap.load_model`).
        dataset: pairs of prompts (`eap.load_dataset`).
        head: name of the head, `a1.h3`.
        query: position that looks; negative ones count from the prompt's last token.
        key: position that is looked at; None: where the head looks most from the query.
        example: number of the pair in the data set.
        prompt: prompt of the logit, 'clean' or 'corrupted'; 'difference': the clean prompt's terms
            minus the corrupted prompt's, whose positions must correspond.

    Returns:
        Terms [n_forward + 1, n_forward + 1] that sum to the logit (before a soft cap).

    Raises:
        UserError: there is no such head, example or position, or the head does not see the key
            from the query.

    Example:
        >>> terms = eap.attention.logit_terms(model, dataset, "a2.h0")
        >>> terms.by_key.sort_values().tail(3).shape
        (3,)
    """
    runs = ["clean", "corrupted"] if prompt == "difference" else [prompt]
    first = HeadRun.of(model, dataset, head, runs[0], example)
    query = first.position(query, "query")
    key = int(first.pattern()[query].argmax()) if key is None else first.position(key, "key")
    first.check_sight(query, key)
    result = _terms(first, query, key)
    if prompt == "difference":
        second = HeadRun.of(model, dataset, head, runs[1], example)
        other = second.terms(second.position(query, "query"), second.position(key, "key"))
        result = replace(result, terms=result.terms - other.cpu())
    return replace(result, prompt=prompt)


def _terms(run: HeadRun, query: int, key: int) -> LogitTerms:
    return LogitTerms(
        head=run.name,
        query=query,
        key=key,
        prompt="clean",
        names=(*run.model.config.sender_names, REST),
        terms=run.terms(query, key).cpu(),
        softcap=run.model.blocks[run.layer].attention.softcap,
        tokens=tuple(run.texts),
    )


@dataclass(frozen=True, eq=False)
class HeadResult:
    """What a head moves to a query position, as a sum over keys and senders.

    Attributes:
        head, query: head, and position that it writes to.
        names: names of the senders, then `REST`.
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
            n: number of rows; None: all.
        """
        n = None if n is None else whole("n", n)
        answers = self.by_answers.flatten()
        order = answers.abs().argsort(descending=True, stable=True)[:n].tolist()
        width = len(self.names)
        rows = [(at // width, self.tokens[at // width], self.names[at % width]) for at in order]
        frame = pd.DataFrame(rows, columns=["key", "token", "sender"])
        return frame.assign(answers=answers[order].numpy())


@verb
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

    Args:
        model: loaded model (`eap.load_model`).
        dataset: pairs of prompts (`eap.load_dataset`).
        head: name of the head, `a1.h3`.
        query: position that the result is added at; negative ones count from the last token.
        example: number of the pair in the data set.
        prompt: prompt that is read, `clean` or `corrupted`.

    Returns:
        The sum over keys and senders, as vectors and along the answers' direction.

    Raises:
        UserError: there is no such head, example or position.

    Example:
        >>> eap.attention.head_result(model, dataset, "a2.h0").to_frame(3).shape[0]
        3
    """
    run = HeadRun.of(model, dataset, head, prompt, example)
    return _result(run, dataset.examples[example], run.position(query, "query"))


def _result(run: HeadRun, pair: Example, query: int) -> HeadResult:
    model, block = run.model, run.model.blocks[run.layer]
    values = run.projected("v").transpose(0, 1) * run.pattern()[query][:, None, None]
    norm = block.post_attention_norm
    if norm is not None:
        values = values * norm.scale(run.trace.attention_raw[0, query])
    W_U = model.W_U.to(run.final)
    direction = W_U[list(pair.correct)].mean(0) - W_U[list(pair.incorrect)].mean(0)
    final = model.ln_final
    if final.weight is not None:
        direction = direction * final.weight
    direction = final.centre(direction) * final.scale(run.final[0, -1])
    return HeadResult(
        head=run.name,
        query=query,
        names=(*model.config.sender_names, REST),
        values=values.cpu(),
        W_O=block.head_output_weights[run.head].to(values).cpu(),
        direction=direction.to(values).cpu(),
        tokens=tuple(run.texts),
    )


# ---- for the page of a circuit -------------------------------------------------------------------

N_ROWS = 8  # of each sum


@dataclass(frozen=True, eq=False)
class HeadReasons:
    """Where a head looks on one prompt, and why it looks there from the last token.

    Attributes:
        tokens, weights: the prompt's tokens as text, and the pattern [query, key].
        query, key: the last token, and the token that it looks at most.
        logit, softcap: logit and soft cap, as `LogitTerms` has them.
        by_key, by_query, pairs: the largest of `LogitTerms.by_key`, `by_query` and `to_frame`.
        moved: what the head moves to the last token, in logits of the answers.
        by_answers: the largest rows of `HeadResult.to_frame`.
    """

    tokens: list[str]
    weights: Float[np.ndarray, "query key"]
    query: int
    key: int
    logit: float
    softcap: float | None
    by_key: pd.Series
    by_query: pd.Series
    pairs: pd.DataFrame
    moved: float
    by_answers: pd.DataFrame


@verb
@torch.no_grad()
def head_reasons(
    model: Model,
    dataset: Dataset,
    *,
    heads: Sequence[str] | None = None,
    n_examples: int = 3,
    quiet: bool = True,
) -> dict[str, list[HeadReasons]]:
    """Where heads look on the first few examples, and why: for the page of a circuit.

    Args:
        model: loaded model (`eap.load_model`).
        dataset: pairs of prompts (`eap.load_dataset`).
        heads: names of heads (`a1.h3`); None: all heads.
        n_examples: number of examples, from the first on.
        quiet: whether to hide the progress bar.

    Returns:
        By head, per example: what `Graph.to_html(..., patterns=...)` shows when it is clicked.

    Raises:
        UserError: the model has no such head, or examples that it cannot run.

    Example:
        >>> reasons = eap.attention.head_reasons(model, dataset, heads=["a1.h0"], n_examples=1)
        >>> page = graph.to_html("ioi.html", patterns=reasons)
    """
    if heads is None:
        heads = [name for name in model.config.sender_names if name.startswith("a")]
    reasons: dict[str, list[HeadReasons]] = {name: [] for name in heads}
    examples = range(min(whole("n_examples", n_examples), len(dataset)))
    for example in progress_bar(examples, "reasons of heads", quiet=quiet):
        for run in HeadRun.several(model, dataset, list(reasons), "clean", example):
            reasons[run.name].append(_reasons(run, dataset.examples[example]))
    return reasons


def _reasons(run: HeadRun, pair: Example) -> HeadReasons:
    query, weights = len(run.texts) - 1, run.pattern().double().cpu().numpy()
    key = int(weights[query].argmax())
    terms, result = _terms(run, query, key), _result(run, pair, query)
    return HeadReasons(
        tokens=run.texts,
        weights=weights,
        query=query,
        key=key,
        logit=terms.logit,
        softcap=terms.softcap,
        by_key=_largest(terms.by_key),
        by_query=_largest(terms.by_query),
        pairs=terms.to_frame(N_ROWS),
        moved=float(result.by_answers.sum()),
        by_answers=result.to_frame(N_ROWS),
    )


def _largest(values: pd.Series) -> pd.Series:
    return values.sort_values(key=abs, ascending=False, kind="stable")[:N_ROWS]

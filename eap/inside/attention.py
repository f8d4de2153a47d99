"""Attention patterns of heads, and their logits as sums over senders.

The attention logit of a head from a query q to a key k is a sum over pairs of senders: the
contribution of u to the query, times the contribution of w to the key, with the scales of the norms
fixed at their values in the given run,

    sum over u, w of (a_u(q) W_Q R_q) . (a_w(k) W_K R_k) scale,

plus the corresponding terms of positions and biases, which belong to no sender. Query and key norms
count as constant scales, too, and a clipped coordinate (OLMo) as a coordinate that is scaled down;
so the sum is exact. A soft cap (Gemma 2) is applied to the sum.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from eap.data.batches import check_dataset, check_pairs
from eap.data.dataset import Dataset
from eap.data.example import Example
from eap.engine.head_runs import HeadRun, Prompt, pattern_of
from eap.model.model import Model
from eap.model.verbs import verb
from eap.runtime.progress import progress_bar
from eap.runtime.ranges import whole

Pattern = tuple[list[str], Float[np.ndarray, "query key"]]
"""Tokens of a prompt as text, and attention weights of each query (row) on each key (column)."""


@verb
@torch.no_grad()
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
        heads: names of the heads (`a1.h3`); None: all heads.
        n_examples: number of examples, from the first on.
        prompt: prompt of each pair to read, `clean` or `corrupted`.
        quiet: whether to hide the progress bar.

    Returns:
        For each head, a list with one entry per example: its tokens as text, and the attention
        weights [query, key], whose rows sum to 1. `Graph.to_html(..., patterns=...)` shows them.

    Raises:
        UserError: a head that the model does not have, or an example that the model cannot run.

    Example:
        >>> patterns = eap.attention_patterns(model, dataset, heads=["a1.h3"], n_examples=1)
        >>> tokens, weights = patterns["a1.h3"][0]
        >>> weights.shape == (len(tokens), len(tokens))
        True
    """
    few = dataset.head(whole("n_examples", n_examples))
    check_dataset(model, few)
    if prompt == "corrupted":
        check_pairs(few, "prompt='corrupted'")
    patterns: dict[str, list[Pattern]] = {name: [] for name in _heads(model, heads)}
    for example in progress_bar(few.examples, "attention patterns", quiet=quiet):
        alone = replace(few, examples=(example,))  # a run checks all examples that it is given
        of_layer: dict[int, Tensor] = {}
        for run in HeadRun.several(model, alone, list(patterns), prompt, 0):
            if run.layer not in of_layer:
                of_layer[run.layer] = pattern_of(model, run.layer, run.trace, run.cache)
            pattern = of_layer[run.layer][run.head]
            patterns[run.name].append((run.texts, pattern.double().cpu().numpy()))
    return patterns


def _heads(model: Model, heads: Sequence[str] | None) -> Sequence[str]:
    """Names of the given heads, or of all heads."""
    names = model.config.sender_names
    return [name for name in names if name.startswith("a")] if heads is None else heads


# ---- attention logits ----------------------------------------------------------------------------

REST = "positions and biases"
"""Name of the last row and column of terms, for contributions that belong to no sender."""


@dataclass(frozen=True, eq=False)
class LogitTerms:
    """An attention logit as a sum over pairs of senders.

    Attributes:
        head, query, key: head, query position and key position.
        prompt: 'clean', 'corrupted', or 'difference' (clean minus corrupted).
        names: names of the rows and columns: the senders, then `REST`.
        terms: terms by sender on the query side (row) and on the key side (column); they sum to the
            logit before a soft cap.
        softcap: soft cap, with which the logit becomes softcap * tanh(sum / softcap); None: no cap.
        tokens: tokens of the prompt, as text.
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
        """Sum of all terms: the logit before a soft cap, or the difference of two such logits."""
        return float(self.terms.sum())

    @property
    def by_query(self) -> pd.Series:
        """Sums over the senders on the key side, for each sender on the query side."""
        return pd.Series(self.terms.sum(1).numpy(), index=list(self.names), name="query side")

    @property
    def by_key(self) -> pd.Series:
        """Sums over the senders on the query side, for each sender on the key side."""
        return pd.Series(self.terms.sum(0).numpy(), index=list(self.names), name="key side")

    def to_frame(self, n: int | None = None) -> pd.DataFrame:
        """Make a table with a row per pair of senders, largest magnitude first.

        The columns are query_sender, key_sender and term.

        Args:
            n: number of rows; None: all rows.
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
    """Explain where a head attends: its attention logit as a sum over pairs of senders.

    Args:
        model: loaded model (`eap.load_model`).
        dataset: pairs of prompts (`eap.load_dataset`).
        head: name of the head, such as `a1.h3`.
        query: query position; negative numbers count back from the last token of the prompt.
        key: key position; None: the position with the largest attention weight for this query.
        example: number of the example in the data set.
        prompt: prompt of the logit, 'clean' or 'corrupted'; 'difference': terms on the clean prompt
            minus terms on the corrupted prompt, whose positions must correspond.

    Returns:
        Terms [n_forward + 1, n_forward + 1] that sum to the logit (before a soft cap).

    Raises:
        UserError: a head, example or position that does not exist, or a key that the head cannot
            see from the query.

    Example:
        >>> terms = eap.attention.logit_terms(model, dataset, "a2.h0")
        >>> terms.by_key.sort_values().tail(3).shape
        (3,)
    """
    first = "clean" if prompt == "difference" else prompt
    run = HeadRun.of(model, dataset, head, first, example)
    query = run.position(query, "query")
    key = int(run.pattern()[query].argmax()) if key is None else run.position(key, "key")
    run.check_sight(query, key)
    result = replace(_terms(run, query, key), prompt=prompt)
    if prompt == "difference":
        corrupted = HeadRun.of(model, dataset, head, "corrupted", example)  # of the same length
        result = replace(result, terms=result.terms - corrupted.terms(query, key).cpu())
    return result


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
    """Output of a head at a query position, as a sum over keys and senders.

    Attributes:
        head, query: head, and query position that it writes to.
        names: names of the senders, then `REST`.
        values: pattern[query, key] times each sender's contribution to the value at the key.
        W_O: output weights of the head, with the weight of a norm after attention.
        direction: effect of each d_model coordinate on the logit difference (correct minus
            incorrect answers) before a soft cap of the logits, with the scale of the final norm
            fixed at its value in the run.
        tokens: tokens of the prompt, as text.
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
        """Vectors that the head moves, by key and sender; their sum is the output of the head."""
        return self.values @ self.W_O

    @property
    def by_answers(self) -> Float[Tensor, "key n_forward_and_rest"]:
        """Components of the moved vectors along the direction from incorrect to correct answers."""
        return self.values @ (self.W_O @ self.direction)

    def to_frame(self, n: int | None = None) -> pd.DataFrame:
        """Make a table with a row per key and sender, largest magnitude first.

        The columns are key, token, sender and answers (contribution to the logit difference before
        a soft cap of the logits).

        Args:
            n: number of rows; None: all rows.
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
    """Decompose the output of a head at one position into a sum over keys and senders.

    Args:
        model: loaded model (`eap.load_model`).
        dataset: pairs of prompts (`eap.load_dataset`).
        head: name of the head, such as `a1.h3`.
        query: position of the output; negative numbers count back from the last token.
        example: number of the example in the data set.
        prompt: prompt of the pair to read, `clean` or `corrupted`.

    Returns:
        Terms by key and sender, as vectors and along the direction of the answers.

    Raises:
        UserError: a head, example or position that does not exist.

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
    direction = W_U[list(pair.correct)].mean(0)
    if pair.incorrect:  # without them, what counts is the logit of the correct answers alone
        direction = direction - W_U[list(pair.incorrect)].mean(0)
    final = model.ln_final
    if final.weight is not None:
        direction = direction * final.weight.to(direction)
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

N_ROWS = 8  # largest terms of each sum


@dataclass(frozen=True, eq=False)
class HeadReasons:
    """Attention pattern of a head on one prompt, with the reasons for it at the last token.

    Attributes:
        tokens, weights: tokens of the prompt as text, and the attention pattern [query, key].
        query, key: last token, and the token with its largest attention weight.
        logit, softcap: logit and soft cap, as in `LogitTerms`.
        by_key, by_query, pairs: largest rows of `LogitTerms.by_key`, `by_query` and `to_frame`.
        moved: contribution of the head at the last token to the logit difference of the answers,
            before a soft cap of the logits.
        by_answers: largest rows of `HeadResult.to_frame`.
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
    """Explain where heads attend on the first few examples, for the page of a circuit.

    Args:
        model: loaded model (`eap.load_model`).
        dataset: pairs of prompts (`eap.load_dataset`).
        heads: names of the heads (`a1.h3`); None: all heads.
        n_examples: number of examples, from the first on.
        quiet: whether to hide the progress bar.

    Returns:
        For each head, a list with one entry per example. `Graph.to_html(..., patterns=...)` shows
        the entries of a head when the head is clicked.

    Raises:
        UserError: a head that the model does not have, or an example that the model cannot run.

    Example:
        >>> reasons = eap.attention.head_reasons(model, dataset, heads=["a1.h0"], n_examples=1)
        >>> page = graph.to_html("ioi.html", patterns=reasons)
    """
    reasons: dict[str, list[HeadReasons]] = {name: [] for name in _heads(model, heads)}
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

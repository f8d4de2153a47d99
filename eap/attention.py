"""Where heads look: attention patterns on a few examples."""

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from eap.data.batches import check_dataset, check_pairs
from eap.data.dataset import Dataset
from eap.errors import UserError, quoted
from eap.model.model import Model
from eap.model.prefix import PrefixCache
from eap.model.runs import outputs_everywhere
from eap.model.verbs import verb
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
    for block, run in zip(model.blocks, trace, strict=True):
        attention = block.attention
        queries = attention.queries(run.q, cache, last_only=False)
        keys = attention.keys(run.k, cache)
        mask = cache.mask(attention.window, run.q.device, last_only=False)
        yield attention.pattern(queries, keys, mask)[0]

"""Adapter for metrics that were written for the logits of whole sequences."""

from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from eap.data.answers import Answers
from eap.metrics.metric import Metric
from eap.runtime.errors import UserError, first_line
from eap.runtime.kinds import checked

SequenceFunction = Callable[[Tensor, Tensor, Int[Tensor, " batch"], Any], Tensor]

# Positions and examples on which a sequence metric is tested before its first use.
TRIED_POSITIONS, TRIED_ROWS = 16, 4


@checked
def from_sequence_metric(
    name: str,
    function: SequenceFunction,
    labels: Any,
    *,
    higher_is_better: bool | None = None,
) -> Metric:
    """Make a metric from a function `(logits, clean_logits, input_length, labels) -> [batch]`.

    Args:
        name: name of the metric.
        function: function of logits `[batch, pos, d_vocab]` that reads those of the last token,
            `logits[i, input_length[i] - 1]`. Logits at other positions are not computed; a function
            that reads them is refused on first use.
        labels: one entry per example of the dataset, by position: a list, tuple, array, tensor or
            pandas column (whose index is ignored). The function gets the entries of its batch, as a
            tensor if `labels` is a tensor, else as a list.
        higher_is_better: whether high values are better; False for a loss, such as the EAP-IG
            library's `partial(logit_diff, loss=True, mean=False)`; None: unknown (verbs that depend
            on it then ask for it).

    Raises:
        UserError: labels without an order or a length.

    Example:
        >>> def last_logit(logits, clean_logits, input_length, labels):
        ...     return logits[range(len(labels)), input_length - 1, labels]
        >>> labels = [next(iter(example.correct)) for example in dataset]
        >>> metric = eap.from_sequence_metric("logit", last_logit, labels, higher_is_better=True)
    """
    entries = _by_position(name, labels)
    tried: list[bool] = []

    def of_last_token(logits: Tensor, clean_logits: Tensor, answers: Answers) -> Tensor:
        rows = list(answers.rows)
        if not tried:
            few = slice(0, TRIED_ROWS)
            chosen = _labels_of(entries, rows[few], logits.device)
            _check_position(name, function, logits[few], clean_logits[few], chosen)
            tried.append(True)
        input_length = torch.ones(len(rows), dtype=torch.long, device=logits.device)
        chosen = _labels_of(entries, rows, logits.device)
        return function(logits[:, None], clean_logits[:, None], input_length, chosen)

    return Metric(name, of_last_token, higher_is_better=higher_is_better, n_labels=len(entries))


def _by_position(name: str, labels: Any) -> Tensor | list[Any]:
    """Labels as a tensor or a list, by position."""
    if isinstance(labels, Tensor) and labels.ndim > 0:
        return labels
    if callable(getattr(labels, "to_pylist", None)):  # an Arrow column
        labels = labels.to_pylist()
    unordered = isinstance(labels, str | bytes | Mapping | Set | pd.DataFrame)
    if unordered or not isinstance(labels, Iterable) or getattr(labels, "ndim", 1) == 0:
        raise UserError(
            f"labels of metric {name!r} are a {type(labels).__name__}; one entry per example is "
            "needed, in order: a list, array, tensor or column"
        )
    return list(labels)


def _labels_of(entries: Tensor | list[Any], rows: list[int], device: torch.device) -> Any:
    if isinstance(entries, Tensor):
        return entries[torch.tensor(rows, device=entries.device)].to(device)
    return [entries[row] for row in rows]


@torch.no_grad()
def _check_position(
    name: str,
    function: SequenceFunction,
    logits: Float[Tensor, "batch d_vocab"],
    clean_logits: Float[Tensor, "batch d_vocab"],
    labels: Any,
) -> None:
    """Check that the values do not depend on the logits at positions before the last.

    Raises:
        UserError: they do.
    """

    def value(fill: Callable[[Tensor], Tensor]) -> Any:
        runs = []
        for last in (logits[:, None], clean_logits[:, None]):
            shape = (len(last), TRIED_POSITIONS - 1, last.shape[-1])
            runs.append(torch.cat([fill(last).broadcast_to(shape), last], dim=1))
        length = torch.full((len(logits),), TRIED_POSITIONS, device=logits.device)
        out = function(runs[0], runs[1], length, labels)
        return out.double() if isinstance(out, Tensor) else out

    generator = torch.Generator().manual_seed(0)
    shape = (TRIED_POSITIONS - 1, logits.shape[-1])
    noise = torch.randn(shape, generator=generator, dtype=torch.float32).to(logits)
    refusal = (
        f"metric {name!r} reads logits at other positions than the last token's, "
        "logits[i, input_length[i] - 1]; only the logits there are computed"
    )
    try:
        as_last = value(lambda last: last)
        others = [value(lambda last: -last), value(lambda last: noise * last.abs().max())]
    except IndexError as error:
        raise UserError(f"{refusal} ({first_line(error, 100)})") from error
    # `Metric.measure` refuses results that are not tensors.
    if isinstance(as_last, Tensor) and not all(_same(other, as_last) for other in others):
        raise UserError(refusal)


def _same(values: Any, expected: Tensor) -> bool:
    return (
        isinstance(values, Tensor)
        and values.shape == expected.shape
        and torch.allclose(values, expected, rtol=1e-4, atol=1e-6, equal_nan=True)
    )

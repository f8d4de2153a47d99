"""Metrics of each example, computed from the logits at the last token.

The answer of every task is two sets of token ids per example, *correct* and *incorrect*, so one
implementation of each metric serves all tasks. A metric is a function

    metric(logits [batch, d_vocab], clean_logits [batch, d_vocab], answers) -> [batch]

To define a metric, write `Metric("name", function, higher_is_better=True)`, or False if low values
are better, as for a loss. `eap.from_sequence_metric` adapts a metric that was written for the
logits of the whole sequence.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from eap.data.answers import Answers as Answers
from eap.data.dataset import Example
from eap.metrics.predictions import Predictions as Predictions
from eap.runtime.errors import UserError, quoted
from eap.runtime.kinds import shown

MetricFunction = Callable[
    [Float[Tensor, "batch d_vocab"], Float[Tensor, "batch d_vocab"], Answers],
    Float[Tensor, " batch"],
]


@dataclass(frozen=True)
class Metric:
    """Metric: a function of logits, its name, and what the engine may assume about it.

    Attributes:
        name: name of the metric, used by files and scripts.
        function: function `(logits, clean_logits, answers) -> [batch]`.
        higher_is_better: whether high values are better (low values are, for a loss or a
            divergence); this tells helpful edges from harmful ones. None: unknown. Verbs that
            depend on it (rankings by `helpful`, areas, verdicts, means, learning) then ask for it.
        answers_only: whether the metric reads the logits of the answer tokens alone, so that no
            other logits are computed.
        flat_at_clean: whether the gradient is zero when `logits` are those of the clean run.
        differentiable: whether the metric has a gradient, which attribution needs.
        needs: answer sets that every example must have: 'correct', 'incorrect' or both.
        n_labels: number of examples for which the metric has labels; None: the metric has no labels
            of its own.
        of_predictions: function equivalent to `function` that takes `Predictions`, so that several
            metrics share the softmax of a run.
        reads_clean: whether the metric reads the logits of the clean run; the clean run is skipped
            if no metric does.

    Example:
        >>> def loss(logits, clean_logits, answers):
        ...     return logits.logsumexp(-1) - logits.max(-1).values
        >>> metric = eap.Metric("loss", loss, higher_is_better=False)
        >>> eap.evaluate(model, circuit, dataset, metrics=[metric])["loss"].shape
        torch.Size([8])
    """

    name: str
    function: MetricFunction
    _: KW_ONLY
    higher_is_better: bool | None = None
    answers_only: bool = False
    flat_at_clean: bool = False
    differentiable: bool = True
    needs: tuple[str, ...] = ()
    n_labels: int | None = None
    of_predictions: Callable[[Predictions, Answers], Tensor] | None = None
    reads_clean: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip() or "\n" in self.name:
            raise UserError(
                f"the name of a metric is {shown(self.name)}; it must be one line of text"
            )
        if not callable(self.function):
            raise UserError(
                f"metric {quoted(self.name, 40)} is made of {shown(self.function)}; make it of a "
                "function that takes (logits, clean_logits, answers)"
            )
        if not (self.higher_is_better is None or isinstance(self.higher_is_better, bool)):
            raise UserError(
                f"metric {quoted(str(self.name), 40)}: higher_is_better is True (as for a logit "
                f"difference) or False (as for a loss), not {repr(self.higher_is_better)[:40]}"
            )

    def direction(self, what: str) -> bool:
        """Whether high values are better.

        Args:
            what: noun in the plural for the results that depend on it, for the message.

        Raises:
            UserError: the metric does not say.
        """
        if self.higher_is_better is None:
            raise UserError(
                f"{what} depend on whether high values of {quoted(str(self.name), 40)} are better: "
                "give the metric higher_is_better=True, or False as for a loss"
            )
        return self.higher_is_better

    def __call__(
        self,
        logits: Float[Tensor, "batch n_tokens"],
        clean_logits: Float[Tensor, "batch n_tokens"],
        answers: Answers,
    ) -> Float[Tensor, " batch"]:
        """The metric of each example, in the dtype of the logits (a bool becomes 0 or 1).

        Raises:
            UserError: the function does not return a tensor of one number per example, or it writes
                into its arguments.
        """
        return self.measure(Predictions(logits, Predictions(clean_logits)), answers)

    def measure(self, run: Predictions, answers: Answers) -> Float[Tensor, " batch"]:
        """The metric of each example of a run, whose softmax is shared with other metrics."""
        values: Any
        if self.of_predictions is not None:
            values = self.of_predictions(run, answers)
        else:
            values = self._of_function(run.logits, (run.clean or run).logits, answers)
        needed = f"a tensor of one value per example, {list(run.logits.shape[:1])}, is needed"
        if not isinstance(values, Tensor):
            kind = type(values).__name__
            raise UserError(f"metric {self.name!r} returned a {kind}; {needed}")
        if values.shape != run.logits.shape[:1]:
            shape = list(values.shape)
            raise UserError(
                f"metric {self.name!r} returned a tensor {shape}; {needed} "
                "(not a mean over the batch)"
            )
        if values.is_complex():
            raise UserError(f"metric {self.name!r} returned complex numbers; {needed}")
        return values.to(run.logits)

    def _of_function(self, logits: Tensor, clean_logits: Tensor, answers: Answers) -> Any:
        """Values of the function, which must not modify tensors that other metrics read later."""
        shared = {"logits": logits, "clean_logits": clean_logits}
        shared |= {f"answers.{key}": getattr(answers, key) for key in ANSWER_TENSORS}
        before = {name: _writes(tensor) for name, tensor in shared.items()}
        values = self.function(logits, clean_logits, answers)
        for name, tensor in shared.items():
            if _writes(tensor) != before[name]:
                raise UserError(
                    f"metric {self.name!r} writes into {name}, which other metrics read after it; "
                    f"write into a copy, {name}.clone()"
                )
        return values


ANSWER_TENSORS = ("token_ids", "correct", "incorrect")


def _writes(tensor: Tensor) -> int:
    """Number of in-place writes to a tensor (0 in inference mode, where they are not counted)."""
    return 0 if tensor.is_inference() else tensor._version


def measure_all(
    metrics: Sequence[Metric], run: Predictions, answers: Answers
) -> Float[Tensor, "metric batch"]:
    """Values of several metrics for one run, whose softmax (and the clean run's) is shared."""
    return torch.stack([metric.measure(run, answers) for metric in metrics])


# ---- of the answers ------------------------------------------------------------------------------


def logit_diff(logits: Tensor, clean_logits: Tensor, answers: Answers) -> Float[Tensor, " batch"]:
    """Mean logit of the correct answers minus that of the incorrect ones."""
    return _set_mean(logits, answers, answers.correct) - _set_mean(
        logits, answers, answers.incorrect
    )


def _set_mean(logits: Tensor, answers: Answers, members: Tensor) -> Float[Tensor, " batch"]:
    return (logits[:, answers.token_ids] * members).sum(-1) / members.sum(-1)


def logit_diff_sum(
    logits: Tensor, clean_logits: Tensor, answers: Answers
) -> Float[Tensor, " batch"]:
    """Summed logits of the correct answers minus those of the incorrect ones.

    Use it only to compare with published numbers for hypernymy: the value depends on the sizes of
    the answer sets, and on a constant added to all logits.
    """
    picked = logits[:, answers.token_ids]
    return (picked * answers.correct).sum(-1) - (picked * answers.incorrect).sum(-1)


def prob_diff(logits: Tensor, clean_logits: Tensor, answers: Answers) -> Float[Tensor, " batch"]:
    """Summed probability of the correct answers minus that of the incorrect ones."""
    return _prob_diff(Predictions(logits), answers)


def _prob_diff(run: Predictions, answers: Answers) -> Float[Tensor, " batch"]:
    picked = (run.logits[:, answers.token_ids] - run.largest).exp() / run.total
    return (picked * answers.correct).sum(-1) - (picked * answers.incorrect).sum(-1)


def accuracy(logits: Tensor, clean_logits: Tensor, answers: Answers) -> Float[Tensor, " batch"]:
    """1 where the correct set has more probability than the incorrect set, else 0."""
    picked = logits[:, answers.token_ids]
    correct = picked.masked_fill(~answers.correct, -torch.inf).logsumexp(dim=-1)
    incorrect = picked.masked_fill(~answers.incorrect, -torch.inf).logsumexp(dim=-1)
    return (correct > incorrect).to(logits.dtype)


# ---- divergences ---------------------------------------------------------------------------------


def kl(logits: Tensor, clean_logits: Tensor, answers: Answers) -> Float[Tensor, " batch"]:
    """KL(clean run, this run), summed over the vocabulary, in nats."""
    return Predictions(logits, Predictions(clean_logits)).kl


def _kl(run: Predictions, answers: Answers) -> Float[Tensor, " batch"]:
    return run.kl


def js(logits: Tensor, clean_logits: Tensor, answers: Answers) -> Float[Tensor, " batch"]:
    """Jensen-Shannon divergence between this run and the clean run, in nats (at most log 2)."""
    return Predictions(logits, Predictions(clean_logits)).js


def _js(run: Predictions, answers: Answers) -> Float[Tensor, " batch"]:
    return run.js


# ---- by name -------------------------------------------------------------------------------------


def _of_answers(name: str, function: MetricFunction, **known: Any) -> Metric:
    """A metric that needs both answer sets and does not read the clean run."""
    needs = ("correct", "incorrect")
    return Metric(name, function, higher_is_better=True, needs=needs, reads_clean=False, **known)


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        _of_answers("logit_diff", logit_diff, answers_only=True),
        _of_answers("logit_diff_sum", logit_diff_sum, answers_only=True),
        _of_answers("prob_diff", prob_diff, of_predictions=_prob_diff),
        Metric("kl", kl, higher_is_better=False, flat_at_clean=True, of_predictions=_kl),
        Metric("js", js, higher_is_better=False, flat_at_clean=True, of_predictions=_js),
        _of_answers("accuracy", accuracy, answers_only=True, differentiable=False),
    )
}


def get_metric(metric: str | Metric) -> Metric:
    """Look up a metric by name; a `Metric` is returned unchanged.

    Raises:
        UserError: an unknown name; the message lists the known names.
    """
    if isinstance(metric, Metric):
        return metric
    if not isinstance(metric, str) or metric not in METRICS:
        raise UserError(
            f"unknown metric {quoted(str(metric))}; known are {', '.join(METRICS)}, and an "
            "eap.Metric of your own"
        )
    return METRICS[metric]


def get_metrics(metrics: str | Metric | Sequence[str | Metric]) -> list[Metric]:
    """Look up one metric or several; results are kept by name, so names must differ.

    Raises:
        UserError: an unknown name, no metric at all, or two metrics of one name.
    """
    several = [metrics] if isinstance(metrics, str | Metric) else list(metrics)
    chosen = [get_metric(metric) for metric in several]
    if not chosen:
        raise UserError("no metric is given; at least one is needed")
    names = [metric.name for metric in chosen]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"{names.count(name)} metrics are called {name!r}; results are kept by name, so "
                "each needs its own name"
            )
    return chosen


def check_answer_sets(metrics: Sequence[Metric], examples: Sequence[Example]) -> None:
    """Check that every example has the answers, and every metric the labels, that are read.

    Raises:
        UserError: an answer set is empty, or the number of labels is wrong; the message names the
            metric and the example.
    """
    for metric in metrics:
        if metric.n_labels is not None and metric.n_labels != len(examples):
            raise UserError(
                f"metric {metric.name!r} has {metric.n_labels} labels for {len(examples)} "
                "examples; one label per example is needed, in the examples' order"
            )
        for side in metric.needs:
            for row, example in enumerate(examples):
                if not getattr(example, side):
                    raise UserError(
                        f"example {row} has no {side} answer, which {metric.name} needs; kl and "
                        "js need none"
                    )


def direction_note(metric: Metric, clean: float, ablated: float) -> str | None:
    """Warning to show if the clean mean is not better than the ablated mean; None if it is."""
    if metric.higher_is_better is None:
        return None
    if (clean > ablated) if metric.higher_is_better else (clean < ablated):
        return None
    return (
        f"by {metric.name}, the clean model ({clean:.4g}) is not better than the ablated one "
        f"({ablated:.4g}), where {'high' if metric.higher_is_better else 'low'} values are "
        "better: this model does not do the task, or the metric's higher_is_better is wrong; "
        "helpful, harmful and normalised values then say nothing about the task"
    )


def warn_of_direction(metric: Metric, clean: float, ablated: float, *, stacklevel: int = 3) -> None:
    """Warn if the clean mean of a metric is not better than the ablated mean."""
    if (note := direction_note(metric, clean, ablated)) is not None:
        warnings.warn(note, stacklevel=stacklevel)


def check_values(metrics: Sequence[Metric], values: Float[Tensor, "metric *rest"]) -> None:
    """Check that no metric is NaN.

    Raises:
        UserError: a value is NaN; the message names the metric.
    """
    for metric, of_metric in zip(metrics, values, strict=True):
        n = int(of_metric.isnan().sum())
        if n:
            raise UserError(
                f"metric {metric.name!r} is NaN in {n:,} of {of_metric.numel():,} values; a "
                "number is needed for every example"
            )

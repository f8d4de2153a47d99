"""Attribution of parts: first-order estimates of the effect of hidden units, channels and others.

The effect of ablating one part of a sender's output is estimated to first order,

    score(j) = sum over positions of (c_j_ablated - c_j_clean) (w_j . g_u),

where c is the coefficient of the part, w its direction (`eap.parts`), and g_u the gradient of the
metric at the sender's output, which is the sum of the gradients at all receivers after the sender.
Scores are means over examples. The scores of a sender's parts and of its rest sum exactly to the
node score of the sender.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from math import prod
from typing import Any, Unpack

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from eap.ablation import Ablation, coefficients_of
from eap.attribution import DEFAULT_STEPS, Call, warn_of_baselines
from eap.data.batches import check_dataset, check_pairs, load_batch, named_spans, plan_batches
from eap.data.dataset import Dataset
from eap.engine.head_runs import texts_of
from eap.engine.moments import Moments
from eap.engine.part_runs import PartScorer
from eap.engine.passes import PASSES, Request
from eap.engine.path_gradients import check_gradients
from eap.engine.prepared import Demand, Work
from eap.engine.signature import sign
from eap.graph.numbering import receiver_index, sender_index
from eap.methods import Method, get_method
from eap.metrics.metric import Metric, check_values
from eap.model.model import Model
from eap.model.runs import outputs_everywhere
from eap.model.shapes import graph_config
from eap.model.verbs import verb
from eap.parts.basis import PartLayout, Parts, get_parts, sender_run
from eap.runtime.errors import UserError, quoted
from eap.runtime.memory import Extent, Need, Shapes, attribution_need
from eap.runtime.progress import progress_bar
from eap.runtime.ranges import Range, whole
from eap.runtime.resources import ResourceOptions, Resources


@dataclass(frozen=True, eq=False)
class PartScores:
    """Scores of the parts of senders, in units of the metric.

    Attributes:
        parts: basis that splits the senders' outputs into parts.
        layout: numbers and names of the parts; the last part of each sender is its rest.
        receivers: names of the chosen receivers; None: all receivers together.
        scores: scores with an axis of parts, after an axis of spans if spans were scored, and
            before an axis of receivers if receivers were chosen.
        standard_errors: standard errors of the scores over examples; None for one example.
        provenance: origin of the scores.
        higher_is_better: whether high values of the metric are better; None: unknown.
        span_names: names of the spans of the prompt; empty without spans.

    Example:
        >>> scores = eap.part_scores(model, dataset, parts="channels", method="EAP")
        >>> kept = scores.keep(50)
    """

    parts: Parts
    layout: PartLayout
    receivers: tuple[str, ...] | None
    scores: Float[Tensor, "*shape"]
    standard_errors: Float[Tensor, "*shape"] | None
    provenance: dict[str, Any]
    higher_is_better: bool | None
    span_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of parts; with spans, number of pairs of a part and a span."""
        return len(self.layout) * max(1, len(self.span_names))

    def of_sender(self, sender: str) -> Float[Tensor, "*shape"]:
        """Scores of the parts of one sender, with the rest last.

        Args:
            sender: name of the sender.
        """
        rows = self.layout.of_sender(sender)
        return self.scores.narrow(len(self._spans), rows.start, rows.stop - rows.start)

    @property
    def _spans(self) -> tuple[int, ...]:
        """Sizes of the axes before the axis of parts."""
        return (len(self.span_names),) if self.span_names else ()

    @property
    def node_scores(self) -> dict[str, Float[Tensor, "*shape"]]:
        """Sums over the parts of each sender, which are the senders' node scores."""
        return {name: self.of_sender(name).sum(len(self._spans)) for name in self.layout.names}

    @property
    def by_coordinate(self) -> Float[Tensor, "n_forward d_model"]:
        """Scores of the coordinates of every sender, in the form that `eap.save_neurons` takes.

        Raises:
            UserError: the parts are not coordinates, or not those of all senders.
        """
        has_all = len(self.layout.senders) == self.layout.n_forward
        if self.parts.kind != "coordinates" or self.scores.ndim > 1 or not has_all:
            raise UserError(
                "neurons are the coordinates of all senders: give parts='coordinates', without "
                "senders=, receivers= and spans="
            )
        return self.scores.unflatten(0, (len(self.layout.senders), -1))[:, :-1]

    def name(self, number: int) -> str:
        """Full name of a part: `m3.u17`; with spans, `m3.u17 @ subject`.

        Args:
            number: number of the part; the parts at the second span follow those at the first.
        """
        span, part = divmod(number, len(self.layout))
        name = self.layout.part_name(self.parts, part)
        return f"{name} @ {self.span_names[span]}" if self.span_names else name

    def ranking(self, by: str = "magnitude") -> list[int]:
        """Rank all parts; with spans, all pairs of a part and a span.

        Args:
            by: order of the parts: 'magnitude', 'helpful' or 'harmful', as for `Graph.top_n`.

        Returns:
            Numbers of the parts, best first.

        Raises:
            UserError: an unknown order, scores of several receivers, or an order that depends on
                whether high values of the metric are better, if that is unknown.
        """
        if self.receivers is not None:
            raise UserError("parts are ranked by scores to all receivers; leave receivers= out")
        if by not in ("magnitude", "helpful", "harmful"):
            raise UserError(f"by is {by!r}; it must be 'magnitude', 'helpful' or 'harmful'")
        scores = self.scores.flatten()
        if by == "magnitude":
            value = scores.abs()
        elif self.higher_is_better is None:
            raise UserError(f"the metric does not say if high is better, so no part can be {by}")
        else:
            value = scores if (by == "helpful") != self.higher_is_better else -scores
        return torch.argsort(value, descending=True, stable=True).tolist()

    def top_n(self, n: int = 20, by: str = "magnitude") -> pd.DataFrame:
        """Make a table of the best parts, best first, with the columns of `to_frame`.

        Args:
            n: number of parts.
            by: order of the parts: 'magnitude', 'helpful' or 'harmful', as for `Graph.top_n`.
        """
        return self._frame(self.ranking(by)[: whole("n", n)])

    def keep(self, n: int, by: str = "magnitude") -> dict[str, Bool[Tensor, "*span part"]]:
        """Select the best parts for an `eap.PartCircuit`, as a mask for every sender.

        With spans, the best pairs of a part and a span are selected, and a mask has a row for every
        span.

        Args:
            n: number of parts.
            by: order of the parts: 'magnitude', 'helpful' or 'harmful', as for `Graph.top_n`.
        """
        mask = torch.zeros(len(self), dtype=torch.bool)
        mask[self.ranking(by)[: whole("n", n, Range(0, len(self)))]] = True
        mask = mask.view(*self._spans, len(self.layout))
        return {name: mask[..., self.layout.of_sender(name)] for name in self.layout.names}

    def to_frame(self) -> pd.DataFrame:
        """Make a table with a row per part (and span, and receiver).

        The columns are sender, part, span (with spans), receiver (with receivers), score and
        standard_error.
        """
        return self._frame(list(range(len(self))))

    def _frame(self, numbers: Sequence[int]) -> pd.DataFrame:
        parts = [number % len(self.layout) for number in numbers]
        frame = pd.DataFrame({
            "sender": [self.layout.names[self.layout.locate(number)[0]] for number in parts],
            "part": [self.layout.part_name(self.parts, number) for number in parts],
        })  # fmt: skip
        if self.span_names:
            frame["span"] = [self.span_names[number // len(self.layout)] for number in numbers]
        if self.receivers is not None:
            frame = frame.merge(pd.Series(self.receivers, name="receiver"), how="cross")
        for column, values in (("score", self.scores), ("standard_error", self.standard_errors)):
            if values is not None:
                frame[column] = values.reshape(len(self), -1)[numbers].flatten().numpy()
        return frame


@verb
def part_scores(
    model: Model,
    dataset: Dataset,
    *,
    parts: str | Parts = "hidden units",
    senders: Sequence[str] | None = None,
    receivers: Sequence[str] | None = None,
    method: str | Method = "EAP-IG",
    metric: str | Metric | None = None,
    ablation: str | Ablation | None = None,
    steps: int | None = None,
    rule: str = "paper",
    expanded_kv: bool = False,
    spans: bool = False,
    **resources: Unpack[ResourceOptions],
) -> PartScores:
    """Score the parts of senders' outputs: hidden units, channels, coordinates or features.

    Args:
        model: loaded model (`eap.load_model`).
        dataset: pairs of prompts (`eap.load_dataset`).
        parts: name of a basis in `eap.parts.PARTS`, features from `eap.load_features`, or an object
            with the members of `eap.parts.Parts`.
        senders: names of the senders to split; None: all senders that the basis splits.
        receivers: names of receivers, to score the edge from each part to each of them; None:
            scores of the parts as nodes. Memory grows with the number of pairs of a part and a
            receiver.
        method: name of a method that is linear in the sender's output, or a `Method`; exact values,
            QK fix and GradDrop are not linear.
        metric: name of a metric in `eap.metrics.METRICS`, or an `eap.Metric`; None: `logit_diff`.
        ablation: ablation that gives the coefficient of an ablated part; None: the coefficient on
            the corrupted prompt.
        steps: number of integration points, for methods that integrate; None: 5.
        rule: name of an integration rule in `eap.methods.RULES`, for methods that integrate.
        expanded_kv: whether every query head has its own k and v receiver, even where query heads
            share key/value heads.
        spans: whether to score every part at every span of the data set's prompts.
        **resources: batch_size, memory_budget (bytes), quiet; see `eap.runtime.resources`.

    Returns:
        Scores [part] or [part, receiver] in units of the metric, with standard errors over
        examples; with spans, an axis of spans comes first. The scores of a sender's parts and rest
        sum to the sender's node score by `eap.attribute`, and the scores at all spans sum to the
        scores without spans.

    Raises:
        UserError: as for `eap.attribute`; also for a method that is not linear, a sender that has
            no such parts, an unknown receiver, or a sender or receiver that is given twice.

    Example:
        >>> scores = eap.part_scores(model, dataset, parts="hidden units", method="EAP")
        >>> scores.top_n(10).shape[0]
        10
    """
    basis = get_parts(parts)
    call = linear_call(method, metric, ablation, rule, steps)
    check_once("senders", senders or ())
    steps = DEFAULT_STEPS if steps is None else whole("steps", steps)
    points = call.points(steps)
    config = graph_config(model, expanded_kv=expanded_kv)
    layout = PartLayout.of(model, basis, senders)
    columns = None if receivers is None else _receivers(receivers, receiver_index(config))
    n_columns = 1 if columns is None else len(columns)
    limits = Resources(**resources)
    names = named_spans(model, dataset) if spans else ()
    shape = (*([len(names)] if names else []), len(layout), n_columns)
    assert call.metric is not None

    def need(shapes: Shapes, extent: Extent, n_logits: int) -> Need:
        base = attribution_need(shapes, extent, len(points), n_logits)
        return replace(base, kept=base.kept + shapes.bytes * prod(shape))

    demand = Demand("attribution of parts", need, prod(shape))
    work = Work.plan(model, dataset, [call.metric], call.ablation, config, limits, demand)
    passes = PASSES[str(call.method.scorer)]
    ablated = coefficients_of(call.ablation)(model, basis, layout)
    scorer = PartScorer(basis, layout, columns, ablated, spans)
    moments = Moments.zeros(*shape, device=model.device)
    baselines = Moments.zeros(3)
    what = f"{call.method.name} {call.metric.name}, {basis.kind}"
    for batch in work.batches(what, quiet=limits.quiet):
        stacked = work.runs_at_once(batch.extent)
        request = Request(call.method, points, stacked, baselines=baselines)
        with torch.enable_grad():
            moments.add(scorer.score(batch, passes(batch, request)))
    moments.merge_processes(what)
    baselines.merge_processes(what)
    check_gradients(work)
    warn_of_baselines(model, call, baselines)
    mean, error = moments.mean, moments.standard_error
    check_values([call.metric], mean[None])
    provenance = sign(
        model, dataset, metric=call.metric, method=call.method.name, ablation=call.ablation,
        level="part", expanded_kv=expanded_kv, settings=call.settings(steps),
        parts=basis.kind, spans=names,
    )  # fmt: skip
    of_all = receivers is None

    def shaped(values: Tensor) -> Tensor:
        return (values[..., 0] if of_all else values).to(model.residual_dtype)

    return PartScores(
        parts=basis,
        layout=layout,
        receivers=None if receivers is None else tuple(receivers),
        scores=shaped(mean),
        standard_errors=None if error is None else shaped(error),
        provenance=provenance,
        higher_is_better=call.metric.higher_is_better,
        span_names=names,
    )


def linear_call(
    method: str | Method,
    metric: str | Metric | None,
    ablation: str | Ablation | None,
    rule: str,
    steps: int | None,
) -> Call:
    """Check the arguments of a call whose method must be linear, so that its scores split."""
    entry = get_method(method)
    if not entry.linear or entry.scorer not in PASSES:
        raise UserError(
            f"scores by {entry.name} are not linear in the senders' outputs, so they do not split "
            "into scores of parts; use EAP, EAP-IG, CEAP, RelP or another linear method"
        )
    return Call.check(entry, metric, ablation, "edge", rule, steps=steps)


def _receivers(names: Sequence[str], index: Mapping[str, int]) -> tuple[int, ...]:
    for name in names:
        if name not in index:
            last = list(index)[-1]
            raise UserError(
                f"no receiver {quoted(name, 40)}; receivers look like 'a1.h0<q>', 'm1' and {last!r}"
            )
    if not names:
        raise UserError("receivers is empty; leave it out for all receivers together")
    check_once("receivers", names)
    return tuple(index[name] for name in names)


def check_once(what: str, names: Sequence[str]) -> None:
    """Check that no name is given twice."""
    for name in names:
        if list(names).count(name) > 1:
            raise UserError(f"{what} has {quoted(str(name), 40)} twice; give each once")


# ---- where a part is active ----------------------------------------------------------------------


@verb
@torch.no_grad()
def part_activity(
    model: Model,
    dataset: Dataset,
    names: Sequence[str],
    *,
    parts: str | Parts = "hidden units",
    n: int = 10,
    prompt: str = "clean",
    batch_size: int = 32,
    quiet: bool = True,
) -> pd.DataFrame:
    """Find the examples and positions at which parts are most active.

    Args:
        model: loaded model (`eap.load_model`).
        dataset: pairs of prompts (`eap.load_dataset`).
        names: names of the parts, as in `PartScores.top_n`.
        parts: basis of the parts, as for `eap.part_scores`.
        n: number of places to list for each part.
        prompt: prompt of each pair to read, 'clean' or 'corrupted'.
        batch_size: number of prompts to run at a time.
        quiet: whether to hide the progress bar.

    Returns:
        Table with a row per place, for each part the largest magnitude first: part, example (its
        number in the data set), position, token (as text, or its id without a tokenizer),
        coefficient.

    Raises:
        UserError: a part that does not exist, or an example that the model cannot run.

    Example:
        >>> eap.part_activity(model, dataset, ["m1.u7"], n=5).shape[0]
        5
    """
    if prompt not in ("clean", "corrupted"):
        raise UserError(f"prompt is 'clean' or 'corrupted', not {quoted(str(prompt), 40)}")
    n, batch_size = whole("n", n), whole("batch_size", batch_size)
    basis = get_parts(parts)
    check_dataset(model, dataset)
    if prompt == "corrupted":
        check_pairs(dataset, "prompt='corrupted'")
    if not names:
        raise UserError("names is empty; give at least one part, such as 'm0.u7'")
    wanted = [_find(model, basis, name) for name in names]
    places: list[list[tuple[float, int, int]]] = [[] for _ in wanted]
    batches = plan_batches(dataset.examples, batch_size, lambda _: 0)
    for rows in progress_bar(batches, f"activity of {basis.kind}", quiet=quiet):
        batch = load_batch(dataset.examples, rows, model.device, lambda _: 0)
        tokens = batch.clean if prompt == "clean" else batch.corrupted
        outputs, trace, _ = outputs_everywhere(model, tokens, batch.last)
        by_sender: dict[int, Tensor] = {}
        hidden = torch.arange(tokens.shape[1], device=model.device) > batch.last[:, None]
        for (sender, number), best in zip(wanted, places, strict=True):
            if sender not in by_sender:
                run = sender_run(model, sender, outputs[0], trace)
                by_sender[sender] = basis.coefficients(model, run).to(hidden.device)
            c = by_sender[sender][..., number]
            top = c.abs().masked_fill(hidden, -1.0).flatten().topk(min(n, c.numel())).indices
            for place in top.tolist():
                row, position = divmod(place, c.shape[1])
                if not hidden[row, position]:
                    best.append((float(c[row, position]), batch.rows[row], position))
            best.sort(key=lambda entry: (-abs(entry[0]), entry[1], entry[2]))
            del best[n:]
    prompts = [getattr(example, prompt) for example in dataset.examples]
    table = [
        (name, example, position, *texts_of(model, [prompts[example][position]]), value)
        for name, best in zip(names, places, strict=True)
        for value, example, position in best
    ]
    return pd.DataFrame(table, columns=["part", "example", "position", "token", "coefficient"])


def _find(model: Model, parts: Parts, name: str) -> tuple[int, int]:
    """Sender and number of a part, from the name of the part."""
    for sender, index in sender_index(model.config).items():
        short = name.removeprefix(f"{sender}.")
        if short == name:
            continue
        count, digits = parts.count(model, index), re.search(r"[0-9]{1,9}", short)
        likely = [int(digits[0])] if digits else []  # most names have the part's number
        for number in chain(likely, range(count)):
            if number < count and parts.name(number) == short:
                return index, number
    raise UserError(f"no part {quoted(name, 60)} of {parts.kind} in {model.name}")

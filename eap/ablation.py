"""Ablations: an edge carries the corrupted prompt's activation, zeros, or a mean.

An ablation defines the position from which its run differs from the clean one, and what every
receiver reads and every node computes when all edges are ablated. To write an ablation of your own,
define a class with the members of `Ablation`, and give an instance to any verb as `ablation=`.

The input node sends the token embedding only, so no ablation changes position embeddings or biases.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Unpack

import torch
from jaxtyping import Float
from torch import Tensor

from eap.data.batches import Batch, check_pairs
from eap.data.dataset import Dataset, Example, first_difference
from eap.data.prompt_means import Prompts
from eap.model.model import Model
from eap.model.prefix import PrefixCache
from eap.model.runs import (
    LayerTrace,
    SenderOutputs,
    collect_outputs,
    run_attention,
    run_layers,
    sender_changes,
)
from eap.model.shapes import graph_config
from eap.model.verbs import verb
from eap.parts.basis import PartLayout, Parts, SenderRun, sender_run
from eap.runtime.errors import UserError
from eap.runtime.kinds import shown
from eap.runtime.resources import ResourceOptions, Resources

AblatedCoefficients = Callable[[SenderRun, PrefixCache], Float[Tensor, "#batch query n"]]
"""Function from a sender's run to the coefficients of the sender's parts when they are ablated.

The run is that of the sender when all edges into it are ablated.
"""


@dataclass(frozen=True, eq=False)
class AblatedRun:
    """Activations of every node when all edges into it are ablated.

    Attributes:
        trace: trace of every layer, with all inputs ablated.
        final: residual stream that the logits read, [batch, 1, d_model].
        offsets: output that each node computes in this run, minus the activation that its ablated
            edges carry; None if the two are equal because both come from one run (`Resample`).
    """

    trace: list[LayerTrace]
    final: Float[Tensor, "batch 1 d_model"]
    offsets: SenderOutputs | None = None

    def changes(
        self,
        model: Model,
        embedding_change: Float[Tensor, "batch pos d_model"],
        clean: Sequence[LayerTrace],
        cache: PrefixCache,
    ) -> SenderOutputs:
        """Activations that ablated edges carry, minus the senders' outputs in the clean run."""
        changes = sender_changes(model, embedding_change, clean, self.trace, cache)
        if self.offsets is None:
            return changes
        return SenderOutputs(
            changes.everywhere - self.offsets.everywhere, changes.at_last - self.offsets.at_last
        )


class Ablation(Protocol):
    """Interface of ablations: name, start, and the run in which all edges are ablated."""

    @property
    def name(self) -> str:
        """Name of the ablation in provenance."""
        ...

    @property
    def has_pair(self) -> bool:
        """Whether ablated activations are those of one run, on the corrupted prompts.

        If so, that run has no `offsets`, an ablated circuit without paths is the ablated model, and
        pairs of equal prompts have no effect.
        """
        ...

    def start(self, example: Example) -> int:
        """First position at which the ablated run can differ from the clean run."""
        ...

    def embedding(self, model: Model, batch: Batch) -> Float[Tensor, "batch pos d_model"]:
        """Output of the ablated input node, from position `start` on."""
        ...

    def run(
        self, model: Model, batch: Batch, cache: PrefixCache, *, expanded_kv: bool
    ) -> AblatedRun:
        """Run in which all edges are ablated."""
        ...

    def coefficients(self, model: Model, parts: Parts, layout: PartLayout) -> AblatedCoefficients:
        """Function that gives the ablated coefficients of parts (see `eap.parts`)."""
        ...

    def provenance(self) -> dict[str, Any]:
        """Description of the ablation; for a mean, also of the data that it was taken over."""
        ...


@dataclass(frozen=True)
class Resample:
    """Resample ablation: an ablated edge carries the activation of the paired corrupted prompt.

    This is the ablation of the paper, and the default of every verb.

    Example:
        >>> graph = eap.attribute(model, dataset, method="EAP", ablation=eap.Resample())
    """

    name: str = "resample"
    has_pair: bool = True

    def start(self, example: Example) -> int:
        """First position at which the prompts differ."""
        return first_difference(example)

    def embedding(self, model: Model, batch: Batch) -> Float[Tensor, "batch pos d_model"]:
        """Token embedding of the corrupted prompt."""
        return model.embed(batch.corrupted)

    @torch.no_grad()
    def run(
        self, model: Model, batch: Batch, cache: PrefixCache, *, expanded_kv: bool
    ) -> AblatedRun:
        """The corrupted run."""
        x = self.embedding(model, batch) + model.position_embedding(cache.start, cache.n_positions)
        trace: list[LayerTrace] = []
        final = run_layers(model, x, cache, trace=trace, expanded_kv=expanded_kv)
        return AblatedRun(trace, final)

    def coefficients(self, model: Model, parts: Parts, layout: PartLayout) -> AblatedCoefficients:
        """Coefficients of the corrupted run."""
        return lambda run, cache: parts.coefficients(model, run)

    def provenance(self) -> dict[str, Any]:
        """Name of the ablation."""
        return {"name": self.name}


@dataclass(frozen=True)
class Zero:
    """Zero ablation: an ablated edge carries zeros.

    Example:
        >>> graph = eap.attribute(model, dataset, method="EAP", ablation=eap.Zero())
    """

    name: str = "zero"
    has_pair: bool = False

    def start(self, example: Example) -> int:
        """Position 0: the ablated run differs everywhere."""
        return 0

    def embedding(self, model: Model, batch: Batch) -> Float[Tensor, "batch pos d_model"]:
        """Zeros in place of the token embedding."""
        return torch.zeros_like(model.embed(batch.clean))

    @torch.no_grad()
    def run(
        self, model: Model, batch: Batch, cache: PrefixCache, *, expanded_kv: bool
    ) -> AblatedRun:
        """Run in which every node reads position embeddings and biases alone."""
        nothing = model.embed(batch.clean).new_zeros(model.config.n_forward, 1, 1, 1)
        outputs = nothing.expand(-1, *batch.clean.shape, model.config.d_model)
        return run_at_outputs(model, outputs, cache, expanded_kv=expanded_kv)

    def coefficients(self, model: Model, parts: Parts, layout: PartLayout) -> AblatedCoefficients:
        """Zeros for all coefficients."""
        return lambda run, cache: torch.zeros_like(parts.coefficients(model, run))

    def provenance(self) -> dict[str, Any]:
        """Name of the ablation."""
        return {"name": self.name}


@dataclass(frozen=True, eq=False)
class Mean:
    """Mean ablation: an ablated edge carries its sender's mean output over a data set.

    Made by `Mean.over_dataset`.

    Attributes:
        outputs: mean output of each sender; over all positions, [n_forward, 1, d_model], or for
            each position, [n_forward, pos, d_model].
        over: description of the prompts that the mean was taken over, for provenance.
        prompts: prompts that the mean was taken over, to compute means of parts.

    Example:
        >>> mean = eap.Mean.over_dataset(model, dataset)
        >>> result = eap.faithfulness(model, circuit, dataset, ablation=mean)
    """

    outputs: Float[Tensor, "n_forward pos d_model"]
    over: dict[str, Any]
    name: str = "mean"
    has_pair: bool = False
    prompts: Prompts | None = None

    @classmethod
    @verb
    @torch.no_grad()
    def over_dataset(
        cls,
        model: Model,
        dataset: Dataset,
        *,
        prompts: str = "corrupted",
        per_position: bool = False,
        **resources: Unpack[ResourceOptions],
    ) -> "Mean":
        """Compute the mean outputs of all senders over the tokens of a data set, without padding.

        Args:
            model: model whose activations are averaged.
            dataset: data set of the prompts.
            prompts: prompts of each pair to average over, 'corrupted' or 'clean'.
            per_position: whether to take a separate mean at each position; all prompts must then
                have the same length.
            **resources: batch_size, memory_budget (bytes), quiet; see `eap.runtime.resources`.

        Raises:
            UserError: fewer than two prompts (the mean of one prompt is the prompt itself), or
                `per_position` with prompts of several lengths.
        """
        limits, config = Resources(**resources), graph_config(model)
        if prompts not in ("clean", "corrupted"):
            raise UserError(f"prompts is {prompts!r}; it must be 'clean' or 'corrupted'")
        if prompts == "corrupted":
            check_pairs(dataset, "a mean over prompts='corrupted'")
        if len({getattr(example, prompts) for example in dataset}) < 2:
            raise UserError("a mean needs at least two different prompts; give more examples")
        lengths = {len(example.clean) for example in dataset.examples}
        if per_position and len(lengths) > 1:
            raise UserError(
                f"a mean per position needs prompts of one length; these have {min(lengths)} to "
                f"{max(lengths)} tokens"
            )
        prompts_of = Prompts(dataset, prompts, per_position, limits)
        (means,) = prompts_of.means(
            model, lambda outputs, _: [outputs], n_numbers=config.n_forward * config.d_model
        )
        over = {
            "prompts": f"{prompts} prompts of {dataset.task}",
            "tokens_sha256": dataset.tokens_sha256,
            "n_prompts": len(dataset),
            "per_position": per_position,
            "model": {"name": model.name, **model.source},
        }
        return cls(means, over, prompts=prompts_of)

    def start(self, example: Example) -> int:
        """Position 0: the ablated run differs everywhere.

        Raises:
            UserError: the mean is per position, and was taken over prompts of another length.
        """
        n_means, n_positions = self.outputs.shape[1], len(example.clean)
        if n_means not in (1, n_positions):
            raise UserError(
                f"this mean has {n_means} positions, and a prompt has {n_positions}; take the "
                "mean over prompts of its length, or over all positions"
            )
        return 0

    def _expanded(self, model: Model, batch: Batch) -> Float[Tensor, "n_forward batch pos d_model"]:
        """Means of the senders, expanded to every example and position of a batch."""
        self._check_model(model)
        return self.outputs[:, None].expand(-1, len(batch), batch.n_positions, -1)

    def _check_model(self, model: Model) -> None:
        """Check that the mean was taken over the activations of this model.

        Raises:
            UserError: the mean is of another model.
        """
        needed = (model.config.n_forward, model.config.d_model)
        made_with = self.over.get("model")
        identity = {"name": model.name, **model.source}
        if (self.outputs.shape[0], self.outputs.shape[2]) != needed or (
            made_with is not None and _weights_of(made_with) != _weights_of(identity)
        ):
            raise UserError(
                f"this mean is over activations of {(made_with or {}).get('name', 'another model')}"
                f" with other weights than {model.name} has now; compute it again with this model"
            )

    def embedding(self, model: Model, batch: Batch) -> Float[Tensor, "batch pos d_model"]:
        """Mean token embedding."""
        return self._expanded(model, batch)[0].contiguous()

    @torch.no_grad()
    def run(
        self, model: Model, batch: Batch, cache: PrefixCache, *, expanded_kv: bool
    ) -> AblatedRun:
        """Run in which all edges carry means."""
        return run_at_outputs(model, self._expanded(model, batch), cache, expanded_kv=expanded_kv)

    @torch.no_grad()
    def coefficients(self, model: Model, parts: Parts, layout: PartLayout) -> AblatedCoefficients:
        """Mean coefficients of the parts over the same prompts, which are run again.

        Raises:
            UserError: the mean was not made by `over_dataset`, so its prompts are unknown; or it is
                of another model.
        """
        self._check_model(model)
        if self.prompts is None:
            raise UserError("means of parts need a mean made by eap.Mean.over_dataset")

        def each(outputs: Tensor, trace: list[LayerTrace]) -> list[Tensor]:
            runs = (sender_run(model, sender, outputs[0], trace) for sender in layout.senders)
            return [parts.coefficients(model, run)[None] for run in runs]

        n_parts = len(layout)
        pooled = self.prompts.means(model, each, n_numbers=n_parts, n_parts=n_parts)
        means = dict(zip(layout.senders, pooled, strict=True))

        def ablated(run: SenderRun, cache: PrefixCache) -> Tensor:
            mean, n_queries = means[run.sender], run.n_queries
            if mean.shape[1] == 1 or mean.shape[1] == n_queries:
                return mean
            return cache.at_last(mean.expand(len(cache.last), -1, -1))

        return ablated

    def provenance(self) -> dict[str, Any]:
        """Name of the ablation, and the prompts that the mean was taken over."""
        return {"name": self.name, **self.over}


def _weights_of(identity: dict[str, Any]) -> dict[str, Any]:
    """The entries that identify a model's weights; a renamed folder does not matter."""
    return {key: value for key, value in identity.items() if key not in ("name", "directory")}


ABLATIONS: dict[str, Callable[[], "Ablation"]] = {"resample": Resample, "zero": Zero}
"""Ablations that need no further data, by name."""


def get_ablation(ablation: "str | Ablation | None") -> Ablation:
    """Look up an ablation by name (None: `Resample`); an `Ablation` is returned unchanged."""
    if ablation is None:
        return Resample()
    if not isinstance(ablation, str):
        needs = ("name", "has_pair", "start", "embedding", "run", "provenance")
        if isinstance(ablation, type) or not all(hasattr(ablation, name) for name in needs):
            raise UserError(
                f"ablation is {shown(ablation)}; it must be {' or '.join(map(repr, ABLATIONS))}, a "
                "mean from eap.Mean.over_dataset, or an object with the members of Ablation"
            )
        return ablation
    if ablation == "mean":
        raise UserError("a mean is over a data set: give eap.Mean.over_dataset(model, dataset)")
    if ablation not in ABLATIONS:
        raise UserError(f"unknown ablation {ablation!r}; known are {', '.join(ABLATIONS)}, mean")
    return ABLATIONS[ablation]()


def coefficients_of(
    ablation: Ablation,
) -> Callable[[Model, Parts, PartLayout], AblatedCoefficients]:
    """The method of an ablation that gives the ablated coefficients of parts.

    Raises:
        UserError: the ablation is user-defined and has no such method.
    """
    coefficients = getattr(ablation, "coefficients", None)
    if coefficients is None:
        raise UserError(
            f"{ablation.name} ablation does not say what parts carry: give its class a method "
            "`coefficients`, as in eap.ablation.Ablation"
        )
    return coefficients


def run_at_outputs(
    model: Model,
    outputs: Float[Tensor, "n_forward batch pos d_model"],
    cache: PrefixCache,
    *,
    expanded_kv: bool,
) -> AblatedRun:
    """Run every node with the sum of the given outputs, positions and attention biases as input."""
    config, last_layer = model.config, len(model.blocks) - 1
    x = outputs[0] + model.position_embedding(cache.start, cache.n_positions)
    trace = []
    for layer, block in enumerate(model.blocks):
        last_only = layer == last_layer
        x = x.to(block.device)
        q, k, v, z, raw = run_attention(
            model, layer, x, cache, last_only=last_only, expanded_kv=expanded_kv
        )
        added = outputs[config.heads(layer)].sum(0).to(x)
        norm = block.post_attention_norm
        bias = block.attention.b_O if norm is None else norm.bias
        after = x + (added if bias is None else added + bias)
        mlp_in = x if config.parallel_attn_mlp else after
        mlp_in = cache.at_last(mlp_in) if last_only else mlp_in
        mlp_out = block.run_mlp(mlp_in)
        trace.append(LayerTrace(x, q, k, v, z, raw, mlp_in, mlp_out))
        x = after + outputs[config.mlp_sender(layer)].to(x)
    runs = list(zip(model.blocks, trace, strict=True))
    scaled_z = [block.scaled_z(run.z, run.attention_raw) for block, run in runs]
    computed = collect_outputs(model, outputs[0], scaled_z, [run.mlp_out for run in trace], cache)
    before_last = len(computed.everywhere)
    at_last = cache.each_at_last(outputs)
    offsets = SenderOutputs(computed.everywhere - outputs[:before_last], computed.at_last - at_last)
    return AblatedRun(trace, cache.at_last(x).to(outputs.device), offsets)

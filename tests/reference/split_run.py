"""One forward pass with a residual stream of its own for every receiver.

Everything here works on a plain Hugging Face model and shares no code with `eap`. The model's own
modules (norms, projections, attention, MLPs) run inside its own forward pass; hooks only replace
what each of them reads. Every receiver gets a copy of the residual stream of its own, written out
as a sum over its senders, and normalises it again. That costs one norm and one full projection for
every q, k and v of every head; for models of two layers it does not matter.

Senders:   input, the heads of layer 0, MLP 0, the heads of layer 1, ...     [n_forward]
Receivers: in every layer q of its heads, then k, then v, then its MLP; then the logits [n_backward]

A head's output is what it adds to the residual stream, without the bias of the output projection;
where the attention output is normalised before it is added (Gemma 2 and 3), the head's share of
it. An MLP's output is what it adds, biases and norm included. The input is the token embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from reference.hf_parts import Layer, parts_of

# --- The graph ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """Shape of a model's graph. `n_kv_heads` is `n_heads` in the expanded form."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    parallel: bool

    @property
    def n_forward(self) -> int:
        return 1 + self.n_layers * (self.n_heads + 1)

    @property
    def per_layer(self) -> int:
        """Receivers of one layer."""
        return self.n_heads + 2 * self.n_kv_heads + 1

    @property
    def n_backward(self) -> int:
        return self.n_layers * self.per_layer + 1


def shape_of(model: PreTrainedModel, *, expanded: bool = False) -> Shape:
    """Shape of the model's graph; `expanded` gives every query head a k and a v of its own."""
    parts = parts_of(model)
    n_kv_heads = parts.n_heads if expanded else parts.n_kv_heads
    return Shape(len(parts.layers), parts.n_heads, n_kv_heads, parts.parallel)


def sender_names(shape: Shape) -> list[str]:
    """Names in sender order."""
    names = ["input"]
    for layer in range(shape.n_layers):
        names += [f"a{layer}.h{head}" for head in range(shape.n_heads)]
        names.append(f"m{layer}")
    return names


def receiver_names(shape: Shape) -> list[str]:
    """Names in receiver order; a key/value head that several query heads share is a `kv`."""
    kv = "h" if shape.n_kv_heads == shape.n_heads else "kv"
    names = []
    for layer in range(shape.n_layers):
        names += [f"a{layer}.h{head}<q>" for head in range(shape.n_heads)]
        names += [f"a{layer}.{kv}{head}<k>" for head in range(shape.n_kv_heads)]
        names += [f"a{layer}.{kv}{head}<v>" for head in range(shape.n_kv_heads)]
        names.append(f"m{layer}")
    return [*names, "logits"]


@cache
def existing_edges(shape: Shape) -> Bool[Tensor, "n_forward n_backward"]:
    """Whether a sender's output reaches a receiver's input directly.

    It does when the sender lies in an earlier layer; inside a layer only from the heads to the MLP,
    unless both read the same residual stream (parallel blocks).
    """

    def place(name: str) -> tuple[int, bool]:
        return int(name[1:].split(".")[0]), name.startswith("m")

    def reaches(sender: str, receiver: str) -> bool:
        if sender == "input" or receiver == "logits":
            return True
        (from_layer, from_mlp), (to_layer, to_mlp) = place(sender), place(receiver)
        if from_layer == to_layer:
            return to_mlp and not from_mlp and not shape.parallel
        return from_layer < to_layer

    return torch.tensor(
        [[reaches(s, r) for r in receiver_names(shape)] for s in sender_names(shape)]
    )


# --- One forward pass with a residual stream per receiver -----------------------------------------


@dataclass
class Run:
    """What a pass leaves behind, and what it was told to use."""

    senders: dict[int, Tensor] = field(default_factory=dict)
    """Outputs [batch, pos, d_model] by sender index, as far as the pass has come."""
    constant: Tensor | float = 0.0
    """What else is in the residual stream: positional embeddings, output projection biases."""
    inputs: dict[int, Tensor] = field(default_factory=dict)
    """What each receiver read [batch, pos, d_model], before its norm."""


ReceiverInput = Callable[[int, Mapping[int, Tensor]], Tensor]
"""(receiver, outputs of the senders before it) -> what these senders contribute to its input."""


@contextmanager
def _forward_hook(module: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _forward_pre_hook(module: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _one_key_per_query_head(attention: Any) -> Iterator[None]:
    """Makes an attention module with grouped heads take one k and v per query head."""
    before = getattr(attention, "num_key_value_groups", None)
    if before is None:
        yield
        return
    attention.num_key_value_groups = 1
    try:
        yield
    finally:
        attention.num_key_value_groups = before


def split_run(
    model: PreTrainedModel,
    tokens: Int[Tensor, "batch pos"],
    receiver_input: ReceiverInput,
    *,
    expanded: bool,
    embedding: Float[Tensor, "batch pos d_model"] | None = None,
) -> tuple[Float[Tensor, "batch d_vocab"], Run]:
    """Logits at the last position when every receiver reads what `receiver_input` says.

    `embedding` replaces the output of the token embedding (the sender "input").
    """
    parts, shape = parts_of(model), shape_of(model, expanded=expanded)
    d_head, run = parts.d_head, Run()
    positions: list[Tensor] = []
    before_attention: dict[int, Tensor | float] = {}  # the constant at each layer's input

    def read(receiver: int) -> Tensor:
        run.inputs[receiver] = receiver_input(receiver, run.senders) + run.constant
        return run.inputs[receiver]

    def embedded(_module: Any, args: Any, kwargs: Any) -> None:
        stream = args[0] if args else kwargs["hidden_states"]
        run.constant = positions[0].detach() if positions else torch.zeros_like(stream)
        run.senders[0] = stream - run.constant if embedding is None else embedding

    def hooks_of_layer(index: int, layer: Layer) -> Iterator[Any]:
        first_receiver = index * shape.per_layer
        first_sender = 1 + index * (shape.n_heads + 1)
        counts = (shape.n_heads, shape.n_kv_heads, shape.n_kv_heads)  # of q, k and v
        starts = (0, shape.n_heads, shape.n_heads + shape.n_kv_heads)

        def each_head(module: Any, which: int) -> Iterator[tuple[int, Tensor]]:
            """The whole projection once per head, from that head's copy of the residual stream."""
            for head in range(counts[which]):
                x = layer.attention_norm(read(first_receiver + starts[which] + head))
                yield head, module.forward(x)

        def project(which: int) -> Callable[..., Tensor]:
            """One of q, k, v."""

            def hook(module: Any, _args: Any, _output: Any) -> Tensor:
                n = parts.n_heads if which == 0 else parts.n_kv_heads
                group = counts[which] // n  # in the expanded form query head h reads h // group
                heads = [
                    output.unflatten(-1, (n, d_head))[..., head // group, :]
                    for head, output in each_head(module, which)
                ]
                return torch.cat(heads, dim=-1)

            return hook

        def project_fused(module: Any, _args: Any, _output: Any) -> Tensor:
            pieces: dict[tuple[int, int], Tensor] = {}
            for which in range(3):
                for head, output in each_head(module, which):
                    if parts.fused == "concatenated":
                        all_heads = output.unflatten(-1, (3, shape.n_heads, d_head))
                        pieces[which, head] = all_heads[..., which, head, :]
                    else:
                        all_heads = output.unflatten(-1, (shape.n_heads, 3, d_head))
                        pieces[head, which] = all_heads[..., head, which, :]
            return torch.cat([pieces[key] for key in sorted(pieces)], dim=-1)

        def split_output(module: Any, args: Any, output: Tensor) -> None:
            """Each head's output: the projection of its own slice, all other slices zero."""
            (z,) = args
            bias = module.forward(torch.zeros_like(z))
            before_attention[index] = run.constant
            run.constant = run.constant + bias.detach()
            z = z.unflatten(-1, (shape.n_heads, d_head))
            scale: Tensor | float = 1.0
            if layer.attention_post_norm is not None:
                # normalised(sum of heads) = sum of (1 + weight) * head / rms(sum of heads)
                norm = layer.attention_post_norm
                rms = (output.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt()
                rms = rms.detach() if hasattr(norm, "frozen_scale") else rms
                scale = (1 + norm.weight) / rms
            for head in range(shape.n_heads):
                alone = torch.zeros_like(z)
                alone[..., head, :] = z[..., head, :]
                own = module.forward(alone.flatten(-2)) - bias
                run.senders[first_sender + head] = own * scale

        def mlp_input(_module: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
            after_attention = run.constant
            if shape.parallel:  # the MLP reads what attention read, without its bias
                run.constant = before_attention[index]
            x = layer.mlp_norm(read(first_receiver + shape.per_layer - 1))
            run.constant = after_attention
            # OPT runs its MLP on [batch * pos, d_model].
            return (x.reshape(args[0].shape),), kwargs

        def mlp_output(_module: Any, _args: Any, output: Tensor) -> None:
            run.senders[first_sender + shape.n_heads] = output.reshape(run.senders[0].shape)

        if parts.fused == "no":
            for which, module in enumerate(layer.projections):
                yield _forward_hook(module, project(which))
        else:
            yield _forward_hook(layer.projections[0], project_fused)
        if shape.n_kv_heads == shape.n_heads:
            yield _one_key_per_query_head(layer.attention)
        yield _forward_hook(layer.output, split_output)
        yield _forward_pre_hook(layer.mlp_first, mlp_input)
        yield _forward_hook(layer.mlp_last, mlp_output)

    def final_input(_module: Any, _args: Any, kwargs: Any) -> tuple[Any, Any]:
        return (read(shape.n_backward - 1),), kwargs

    with ExitStack() as stack:
        if parts.positions is not None:
            stack.enter_context(
                _forward_hook(parts.positions, lambda _m, _a, output: positions.append(output))
            )
        stack.enter_context(_forward_pre_hook(parts.blocks[0], embedded))
        for index, layer in enumerate(parts.layers):
            for hook in hooks_of_layer(index, layer):
                stack.enter_context(hook)
        stack.enter_context(_forward_pre_hook(parts.final_norm, final_input))
        logits = model(input_ids=tokens, use_cache=False).logits[:, -1]
    return logits, run


@cache
def senders_of(shape: Shape, receiver: int) -> list[int]:
    """Senders with an edge to a receiver."""
    return existing_edges(shape)[:, receiver].nonzero().flatten().tolist()


def reachable(shape: Shape, receiver: int, senders: Mapping[int, Tensor]) -> list[int]:
    missing = [u for u in senders_of(shape, receiver) if u not in senders]
    assert not missing, f"receiver {receiver} runs before its senders {missing}"
    return senders_of(shape, receiver)


def plain_input(shape: Shape) -> ReceiverInput:
    def receiver_input(receiver: int, senders: Mapping[int, Tensor]) -> Tensor:
        return add_up(senders[u] for u in reachable(shape, receiver, senders))

    return receiver_input


def add_up(tensors: Iterable[Tensor]) -> Tensor:
    """Sum of at least one tensor."""
    first, *rest = tensors
    for tensor in rest:
        first = first + tensor
    return first


def token_batch(model: PreTrainedModel, tokens: Sequence[int]) -> Int[Tensor, "1 pos"]:
    return torch.tensor([list(tokens)], device=model.device)

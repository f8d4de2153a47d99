"""The slow twin of the package: edges, patches and gradients exactly as the definitions say.

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
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

Metric = Callable[[Float[Tensor, " d_vocab"], Float[Tensor, " d_vocab"]], Float[Tensor, ""]]
"""Of the logits at the last position and the clean run's logits there."""


class Float64(TorchFunctionMode):
    """Keeps in float64 what models cast to float32 inside (RMS norms, softmax, rotary tables).

    Without it a model loaded in float64 is exact to seven digits only.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        def promote(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        if func is Tensor.float:
            func = Tensor.double
        else:
            args = [promote(value) for value in args]
            kwargs = {name: promote(value) for name, value in (kwargs or {}).items()}
        return func(*args, **(kwargs or {}))


# --- What the parts of a model are called ---------------------------------------------------------


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
    def n_backward(self) -> int:
        return self.n_layers * (self.n_heads + 2 * self.n_kv_heads + 1) + 1


@dataclass(frozen=True)
class _Layer:
    """The modules of one layer, whatever its family calls them."""

    attention: nn.Module
    projections: tuple[nn.Module, ...]
    """q, k and v; or one module that computes all three."""
    fused: str
    """"no", "concatenated" (all q, all k, all v) or "interleaved" (q, k, v of head 0, ...)."""
    output_projection: nn.Module
    attention_norm: nn.Module
    attention_post_norm: nn.Module | None
    mlp_norm: nn.Module
    mlp_first: nn.Module
    """Receives the normalised input of the MLP."""
    mlp_last: nn.Module
    """Its output is what the MLP adds to the residual stream."""


@dataclass(frozen=True)
class _Parts:
    shape: Shape
    d_head: int
    blocks: Sequence[nn.Module]
    layers: Sequence[_Layer]
    final_norm: nn.Module
    positions: nn.Module | None
    """Learned positional embeddings, added to the token embedding."""


def _separate(attention: Any, output: str) -> dict[str, Any]:
    return {
        "projections": (attention.q_proj, attention.k_proj, attention.v_proj),
        "fused": "no",
        "output_projection": getattr(attention, output),
    }


def _gpt2_layer(block: Any) -> _Layer:
    return _Layer(
        attention=block.attn,
        projections=(block.attn.c_attn,),
        fused="concatenated",
        output_projection=block.attn.c_proj,
        attention_norm=block.ln_1,
        attention_post_norm=None,
        mlp_norm=block.ln_2,
        mlp_first=block.mlp,
        mlp_last=block.mlp,
    )


def _neox_layer(block: Any) -> _Layer:
    return _Layer(
        attention=block.attention,
        projections=(block.attention.query_key_value,),
        fused="interleaved",
        output_projection=block.attention.dense,
        attention_norm=block.input_layernorm,
        attention_post_norm=None,
        mlp_norm=block.post_attention_layernorm,
        mlp_first=block.mlp,
        mlp_last=block.mlp,
    )


def _llama_layer(block: Any) -> _Layer:
    return _Layer(
        attention=block.self_attn,
        **_separate(block.self_attn, "o_proj"),
        attention_norm=block.input_layernorm,
        attention_post_norm=None,
        mlp_norm=block.post_attention_layernorm,
        mlp_first=block.mlp,
        mlp_last=block.mlp,
    )


def _gemma_layer(block: Any) -> _Layer:
    return _Layer(
        attention=block.self_attn,
        **_separate(block.self_attn, "o_proj"),
        attention_norm=block.input_layernorm,
        attention_post_norm=block.post_attention_layernorm,
        mlp_norm=block.pre_feedforward_layernorm,
        mlp_first=block.mlp,
        mlp_last=block.post_feedforward_layernorm,
    )


def _gptj_layer(block: Any) -> _Layer:
    return _Layer(
        attention=block.attn,
        **_separate(block.attn, "out_proj"),
        attention_norm=block.ln_1,
        attention_post_norm=None,
        mlp_norm=block.ln_1,
        mlp_first=block.mlp,
        mlp_last=block.mlp,
    )


def _phi_layer(block: Any) -> _Layer:
    return _Layer(
        attention=block.self_attn,
        **_separate(block.self_attn, "dense"),
        attention_norm=block.input_layernorm,
        attention_post_norm=None,
        mlp_norm=block.input_layernorm,
        mlp_first=block.mlp,
        mlp_last=block.mlp,
    )


def _gpt_neo_layer(block: Any) -> _Layer:
    return _Layer(
        attention=block.attn.attention,
        **_separate(block.attn.attention, "out_proj"),
        attention_norm=block.ln_1,
        attention_post_norm=None,
        mlp_norm=block.ln_2,
        mlp_first=block.mlp,
        mlp_last=block.mlp,
    )


def _opt_layer(block: Any) -> _Layer:
    return _Layer(
        attention=block.self_attn,
        **_separate(block.self_attn, "out_proj"),
        attention_norm=block.self_attn_layer_norm,
        attention_post_norm=None,
        mlp_norm=block.final_layer_norm,
        mlp_first=block.fc1,
        mlp_last=block.fc2,
    )


# model type -> (reader of a block, parallel?, blocks, final norm, positional embedding)
_MODEL_TYPES: dict[str, tuple[Callable[[Any], _Layer], bool, str, str, str | None]] = {
    "gpt2": (_gpt2_layer, False, "transformer.h", "transformer.ln_f", "transformer.wpe"),
    "gpt_neox": (_neox_layer, True, "gpt_neox.layers", "gpt_neox.final_layer_norm", None),
    "llama": (_llama_layer, False, "model.layers", "model.norm", None),
    "mistral": (_llama_layer, False, "model.layers", "model.norm", None),
    "qwen2": (_llama_layer, False, "model.layers", "model.norm", None),
    "qwen3": (_llama_layer, False, "model.layers", "model.norm", None),
    "smollm3": (_llama_layer, False, "model.layers", "model.norm", None),
    "olmo": (_llama_layer, False, "model.layers", "model.norm", None),
    "gemma2": (_gemma_layer, False, "model.layers", "model.norm", None),
    "gemma3_text": (_gemma_layer, False, "model.layers", "model.norm", None),
    "gptj": (_gptj_layer, True, "transformer.h", "transformer.ln_f", None),
    "phi": (_phi_layer, True, "model.layers", "model.final_layernorm", None),
    "gpt_neo": (_gpt_neo_layer, False, "transformer.h", "transformer.ln_f", "transformer.wpe"),
    "opt": (
        _opt_layer,
        False,
        "model.decoder.layers",
        "model.decoder.final_layer_norm",
        "model.decoder.embed_positions",
    ),
}


def _parts(model: PreTrainedModel, *, expanded: bool) -> _Parts:
    config = model.config
    read, parallel, blocks, final_norm, positions = _MODEL_TYPES[config.model_type]
    block_list = list(model.get_submodule(blocks).children())
    n_heads = config.num_attention_heads
    n_kv_heads = getattr(config, "num_key_value_heads", None) or n_heads
    return _Parts(
        shape=Shape(
            n_layers=len(block_list),
            n_heads=n_heads,
            n_kv_heads=n_heads if expanded else n_kv_heads,
            parallel=parallel and getattr(config, "use_parallel_residual", True),
        ),
        d_head=getattr(config, "head_dim", None) or config.hidden_size // n_heads,
        blocks=block_list,
        layers=[read(block) for block in block_list],
        final_norm=model.get_submodule(final_norm),
        positions=model.get_submodule(positions) if positions else None,
    )


def shape_of(model: PreTrainedModel, *, expanded: bool = False) -> Shape:
    """Shape of the model's graph; `expanded` gives every query head a k and a v of its own."""
    return _parts(model, expanded=expanded).shape


# --- The graph ------------------------------------------------------------------------------------


def sender_names(shape: Shape) -> list[str]:
    """Names in sender order."""
    names = ["input"]
    for layer in range(shape.n_layers):
        names += [f"a{layer}.h{head}" for head in range(shape.n_heads)]
        names.append(f"m{layer}")
    return names


def receiver_names(shape: Shape) -> list[str]:
    """Names in receiver order."""
    names = []
    for layer in range(shape.n_layers):
        for letter, count in (
            ("q", shape.n_heads),
            ("k", shape.n_kv_heads),
            ("v", shape.n_kv_heads),
        ):
            names += [f"a{layer}.h{head}<{letter}>" for head in range(count)]
        names.append(f"m{layer}")
    return [*names, "logits"]


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
class _Run:
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


def _run(
    model: PreTrainedModel,
    tokens: Int[Tensor, "batch pos"],
    receiver_input: ReceiverInput,
    *,
    expanded: bool,
    embedding: Float[Tensor, "batch pos d_model"] | None = None,
) -> tuple[Float[Tensor, "batch d_vocab"], _Run]:
    """Logits at the last position when every receiver reads what `receiver_input` says.

    `embedding` replaces the output of the token embedding (the sender "input").
    """
    parts = _parts(model, expanded=expanded)
    shape = parts.shape
    run = _Run()
    per_layer = shape.n_heads + 2 * shape.n_kv_heads + 1
    kv_group = shape.n_heads // shape.n_kv_heads

    def read(receiver: int) -> Tensor:
        run.inputs[receiver] = receiver_input(receiver, run.senders) + run.constant
        return run.inputs[receiver]

    def remember_input(_module: Any, args: Any, kwargs: Any) -> None:
        stream = args[0] if args else kwargs["hidden_states"]
        run.constant = positions[0].detach() if positions else torch.zeros_like(stream)
        run.senders[0] = stream - run.constant if embedding is None else embedding

    positions: list[Tensor] = []

    def hooks_of_layer(index: int, layer: _Layer) -> Iterator[Any]:
        first_receiver = index * per_layer
        first_sender = 1 + index * (shape.n_heads + 1)
        counts = (shape.n_heads, shape.n_kv_heads, shape.n_kv_heads)
        starts = (0, shape.n_heads, shape.n_heads + shape.n_kv_heads)

        def project(which: int) -> Callable[..., Tensor]:
            """One of q, k, v; each head from its own copy of the residual stream."""

            def hook(module: Any, _args: Any, _output: Any) -> Tensor:
                heads = []
                for head in range(counts[which]):
                    x = layer.attention_norm(read(first_receiver + starts[which] + head))
                    all_heads = module.forward(x).unflatten(-1, (-1, parts.d_head))
                    # In the expanded form query head h reads key head h // group.
                    group = shape.n_heads // all_heads.shape[-2] if which else 1
                    if counts[which] == all_heads.shape[-2]:
                        group = 1
                    heads.append(all_heads[..., head // group, :])
                return torch.stack(heads, dim=-2).flatten(-2)

            return hook

        def project_fused(module: Any, _args: Any, _output: Any) -> Tensor:
            shape_of_heads = (
                (3, shape.n_heads) if layer.fused == "concatenated" else (shape.n_heads, 3)
            )
            result: list[list[Tensor]] = []
            for which in range(3):
                result.append([])
                for head in range(shape.n_heads):
                    x = layer.attention_norm(read(first_receiver + starts[which] + head))
                    all_heads = module.forward(x).unflatten(-1, (*shape_of_heads, parts.d_head))
                    if layer.fused == "concatenated":
                        result[which].append(all_heads[..., which, head, :])
                    else:
                        result[which].append(all_heads[..., head, which, :])
            qkv = torch.stack([torch.stack(heads, dim=-2) for heads in result], dim=-3)
            if layer.fused == "interleaved":
                qkv = qkv.transpose(-3, -2)
            return qkv.flatten(-3)

        def split_output(module: Any, args: Any, output: Tensor) -> None:
            """Each head's output: the projection of its own slice, all other slices zero."""
            (z,) = args
            bias = module.forward(torch.zeros_like(z))
            run.constant = run.constant + bias.detach()
            z = z.unflatten(-1, (shape.n_heads, parts.d_head))
            scale: Tensor | float = 1.0
            if layer.attention_post_norm is not None:
                # normalised(sum of heads) = sum of (1 + weight) * head / rms(sum of heads)
                norm: Any = layer.attention_post_norm
                rms = (output.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt()
                scale = (1 + norm.weight) / rms
            for head in range(shape.n_heads):
                alone = torch.zeros_like(z)
                alone[..., head, :] = z[..., head, :]
                run.senders[first_sender + head] = (
                    module.forward(alone.flatten(-2)) - bias
                ) * scale

        def mlp_input(_module: Any, _args: Any, kwargs: Any) -> tuple[Any, Any]:
            x = read(first_receiver + per_layer - 1)
            return (layer.mlp_norm(x),), kwargs

        def mlp_output(_module: Any, _args: Any, output: Tensor) -> None:
            size = run.senders[0].shape
            run.senders[first_sender + shape.n_heads] = output.reshape(size)

        if layer.fused == "no":
            for which, module in enumerate(layer.projections):
                yield _forward_hook(module, project(which))
        else:
            yield _forward_hook(layer.projections[0], project_fused)
        if kv_group == 1:
            yield _one_key_per_query_head(layer.attention)
        yield _forward_hook(layer.output_projection, split_output)
        yield _forward_pre_hook(layer.mlp_first, mlp_input)
        yield _forward_hook(layer.mlp_last, mlp_output)

    def final_input(_module: Any, _args: Any, kwargs: Any) -> tuple[Any, Any]:
        return (read(shape.n_backward - 1),), kwargs

    with ExitStack() as stack:
        if parts.positions is not None:
            stack.enter_context(
                _forward_hook(parts.positions, lambda _m, _a, output: positions.append(output))
            )
        stack.enter_context(_forward_pre_hook(parts.blocks[0], remember_input))
        for index, layer in enumerate(parts.layers):
            for hook in hooks_of_layer(index, layer):
                stack.enter_context(hook)
        stack.enter_context(_forward_pre_hook(parts.final_norm, final_input))
        logits = model(input_ids=tokens, use_cache=False).logits[:, -1]
    return logits, run


def _reachable(
    shape: Shape, receiver: int, senders: Mapping[int, Tensor], exists: Bool[Tensor, "f b"]
) -> list[int]:
    indices = [u for u in range(shape.n_forward) if exists[u, receiver]]
    missing = [u for u in indices if u not in senders]
    assert not missing, f"receiver {receiver} runs before its senders {missing}"
    return indices


def _plain_input(shape: Shape) -> ReceiverInput:
    exists = existing_edges(shape)

    def receiver_input(receiver: int, senders: Mapping[int, Tensor]) -> Tensor:
        return sum_of(senders[u] for u in _reachable(shape, receiver, senders, exists))

    return receiver_input


def sum_of(tensors: Iterable[Tensor]) -> Tensor:
    """Sum of at least one tensor."""
    first, *rest = tensors
    for tensor in rest:
        first = first + tensor
    return first


def _token_batch(model: PreTrainedModel, tokens: Sequence[int]) -> Int[Tensor, "1 pos"]:
    return torch.tensor([list(tokens)], device=model.device)


# --- What the tests ask for -----------------------------------------------------------------------


def sender_outputs(
    model: PreTrainedModel, tokens: Sequence[int], *, expanded: bool = False
) -> Float[Tensor, "n_forward pos d_model"]:
    """Outputs of all senders on one prompt."""
    shape = shape_of(model, expanded=expanded)
    with torch.no_grad():
        _, run = _run(model, _token_batch(model, tokens), _plain_input(shape), expanded=expanded)
    return torch.cat([run.senders[u] for u in range(shape.n_forward)])


def receiver_inputs(
    model: PreTrainedModel, tokens: Sequence[int], *, expanded: bool = False
) -> Float[Tensor, "n_backward pos d_model"]:
    """What all receivers read on one prompt (senders, biases and positional embeddings)."""
    shape = shape_of(model, expanded=expanded)
    with torch.no_grad():
        _, run = _run(model, _token_batch(model, tokens), _plain_input(shape), expanded=expanded)
    return torch.cat([run.inputs[v] for v in range(shape.n_backward)])


def last_logits(model: PreTrainedModel, tokens: Sequence[int]) -> Float[Tensor, " d_vocab"]:
    """Logits at the last position of the untouched model."""
    with torch.no_grad():
        return model(input_ids=_token_batch(model, tokens), use_cache=False).logits[0, -1]


def run_with_edges(
    model: PreTrainedModel,
    clean: Sequence[int],
    corrupted: Sequence[int],
    in_circuit: Bool[Tensor, "*circuit n_forward n_backward"],
    *,
    expanded: bool = False,
) -> Float[Tensor, "*circuit d_vocab"]:
    """Logits at the last position when every edge outside the circuit carries its corrupted value.

    A sender's contribution to a receiver is its output in this very run where the edge is in the
    circuit, and its output on the corrupted prompt where it is not. Several circuits may be stacked
    along a leading dimension.
    """
    shape = shape_of(model, expanded=expanded)
    exists = existing_edges(shape)
    circuits = in_circuit.reshape(-1, shape.n_forward, shape.n_backward)
    outside = sender_outputs(model, corrupted, expanded=expanded)

    def receiver_input(receiver: int, senders: Mapping[int, Tensor]) -> Tensor:
        return sum_of(
            torch.where(circuits[:, u, receiver, None, None], senders[u], outside[u])
            for u in _reachable(shape, receiver, senders, exists)
        )

    with torch.no_grad():
        tokens = _token_batch(model, clean).expand(len(circuits), -1)
        logits, _ = _run(model, tokens, receiver_input, expanded=expanded)
    return logits.reshape(*in_circuit.shape[:-2], -1)


def exact_edge_values(
    model: PreTrainedModel,
    clean: Sequence[int],
    corrupted: Sequence[int],
    metric: Metric,
    edges: Sequence[tuple[int, int]] | None = None,
    *,
    expanded: bool = False,
    batch_size: int = 256,
) -> Float[Tensor, "n_forward n_backward"]:
    """metric(this one edge corrupted) - metric(clean) of the given or all existing edges.

    Pairs that were not asked for, or are no edges, are NaN.
    """
    shape = shape_of(model, expanded=expanded)
    chosen = edges
    if chosen is None:
        chosen = [(int(u), int(v)) for u, v in existing_edges(shape).nonzero()]
    clean_logits = last_logits(model, clean)
    values = torch.full((shape.n_forward, shape.n_backward), torch.nan, dtype=clean_logits.dtype)
    for start in range(0, len(chosen), batch_size):
        chunk = chosen[start : start + batch_size]
        circuits = torch.ones(len(chunk), shape.n_forward, shape.n_backward, dtype=torch.bool)
        for row, (u, v) in enumerate(chunk):
            circuits[row, u, v] = False
        patched = run_with_edges(model, clean, corrupted, circuits, expanded=expanded)
        for logits, (u, v) in zip(patched, chunk, strict=True):
            values[u, v] = metric(logits, clean_logits) - metric(clean_logits, clean_logits)
    return values


def receiver_gradients(
    model: PreTrainedModel,
    tokens: Sequence[int],
    metric: Metric,
    clean_logits: Float[Tensor, " d_vocab"],
    *,
    expanded: bool = False,
    embedding: Float[Tensor, "pos d_model"] | None = None,
) -> Float[Tensor, "n_backward pos d_model"]:
    """Gradient of the metric with respect to each receiver's own input, by autograd."""
    shape = shape_of(model, expanded=expanded)
    plain = _plain_input(shape)
    probes: dict[int, Tensor] = {}

    def receiver_input(receiver: int, senders: Mapping[int, Tensor]) -> Tensor:
        stream = plain(receiver, senders)
        # Zero, so it changes nothing; its gradient is that of this receiver's input alone.
        probes[receiver] = torch.zeros_like(stream, requires_grad=True)
        return stream + probes[receiver]

    batch = None if embedding is None else embedding[None]
    with torch.enable_grad():
        logits, _ = _run(
            model, _token_batch(model, tokens), receiver_input, expanded=expanded, embedding=batch
        )
        value = metric(logits[0], clean_logits)
        ordered = [probes[v] for v in range(shape.n_backward)]
        return torch.cat(torch.autograd.grad(value, ordered)).detach()


def _contract(
    shape: Shape,
    differences: Float[Tensor, "n_forward pos d_model"],
    gradients: Float[Tensor, "n_backward pos d_model"],
) -> Float[Tensor, "n_forward n_backward"]:
    scores = torch.einsum("fpd,bpd->fb", differences, gradients)
    return scores.masked_fill(~existing_edges(shape), torch.nan)


def eap_scores(
    model: PreTrainedModel,
    clean: Sequence[int],
    corrupted: Sequence[int],
    metric: Metric,
    *,
    expanded: bool = False,
) -> Float[Tensor, "n_forward n_backward"]:
    """EAP: (corrupted - clean output) . gradient at the clean prompt; NaN where no edge exists."""
    return eap_ig_scores(
        model, clean, corrupted, metric, points=[1.0], weights=[1.0], expanded=expanded
    )


def eap_ig_scores(
    model: PreTrainedModel,
    clean: Sequence[int],
    corrupted: Sequence[int],
    metric: Metric,
    points: Sequence[float],
    weights: Sequence[float],
    *,
    expanded: bool = False,
) -> Float[Tensor, "n_forward n_backward"]:
    """EAP with gradients averaged along the path from the corrupted to the clean embedding.

    `points` are fractions of the clean embedding, `weights` those of the average. The rule of
    "Have Faith in Faithfulness" (section 3) is k/m for k = 1..m, equally weighted.
    """
    shape = shape_of(model, expanded=expanded)
    on_clean = sender_outputs(model, clean, expanded=expanded)
    on_corrupted = sender_outputs(model, corrupted, expanded=expanded)
    clean_logits = last_logits(model, clean)
    gradients = sum_of(
        weight
        * receiver_gradients(
            model,
            clean,
            metric,
            clean_logits,
            expanded=expanded,
            embedding=on_corrupted[0] + alpha * (on_clean[0] - on_corrupted[0]),
        )
        for alpha, weight in zip(points, weights, strict=True)
    )
    return _contract(shape, on_corrupted - on_clean, gradients)


# --- Metrics, written once more -------------------------------------------------------------------


def logit_diff(correct: Sequence[int], incorrect: Sequence[int]) -> Metric:
    """Mean logit of the correct answers minus that of the incorrect ones."""
    return lambda logits, _clean: logits[list(correct)].mean() - logits[list(incorrect)].mean()


def prob_diff(correct: Sequence[int], incorrect: Sequence[int]) -> Metric:
    """Probability of the correct answers minus that of the incorrect ones."""

    def metric(logits: Tensor, _clean: Tensor) -> Tensor:
        probabilities = logits.softmax(-1)
        return probabilities[list(correct)].sum() - probabilities[list(incorrect)].sum()

    return metric


def kl(logits: Tensor, clean: Tensor) -> Tensor:
    """KL(clean || this run) in nats."""
    p, q = clean.log_softmax(-1), logits.log_softmax(-1)
    return (p.exp() * (p - q)).sum()


def js(logits: Tensor, clean: Tensor) -> Tensor:
    """Jensen-Shannon divergence of this run and the clean one, in nats."""
    p, q = clean.log_softmax(-1), logits.log_softmax(-1)
    mean = ((p.exp() + q.exp()) / 2).log()
    return ((p.exp() * (p - mean)).sum() + (q.exp() * (q - mean)).sum()) / 2

"""Faithfulness: the metric of the model when every edge outside a circuit is corrupted.

A node outside the circuit has its corrupted output by definition, so a circuit runs only its own
nodes. Each receiver starts from the corrupted run's residual stream and adds, for its edges in the
circuit, what their senders changed:

    input of v = corrupted input of v + sum over circuit edges u -> v of (a_u - a_u_corrupted).

Clean and corrupted runs are made once per batch and shared by all circuits and all metrics.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from eap.data.batches import check_examples, load_batch, plan_batches
from eap.data.dataset import Dataset
from eap.errors import UserError
from eap.graph.graph import Graph, GraphConfig
from eap.metrics import (
    Answers,
    Metric,
    Predictions,
    check_answer_sets,
    check_values,
    get_metrics,
    measure_all,
)
from eap.model.families import Attention
from eap.model.loading import Model
from eap.model.runs import (
    LayerTrace,
    Suffix,
    after_prefix,
    apply_norm,
    attend,
    combine_heads,
    embed,
    head_outputs,
    head_shares,
    position_embedding,
    prepare_keys,
    prepare_queries,
    prepare_values,
    run_layers,
    run_mlp,
    run_prefix,
    unembed,
)
from eap.runtime import distributed
from eap.runtime.memory import choose_batch_size
from eap.runtime.progress import progress_bar


def evaluate(
    model: Model,
    circuits: Graph | Sequence[Graph],
    dataset: Dataset,
    *,
    metrics: Sequence[str | Metric] = ("logit_diff",),
    batch_size: int | None = None,
    memory_budget: int | None = None,
    quiet: bool = True,
) -> dict[str, Float[Tensor, "*circuit example"]]:
    """The metrics of every example when all edges outside a circuit carry corrupted activations.

    Args:
        model: from `eap.load_model`.
        circuits: one graph, or several of one shape, which share the clean and corrupted runs.
        dataset: from `eap.load_dataset`.
        metrics: names of `eap.metrics.METRICS`, or `Metric`s; kl and js are against the clean run.
        batch_size: examples at a time; None: as many as the budget allows.
        memory_budget: in bytes, beside the weights; None: half of what is free.
        quiet: without a progress bar.

    Returns:
        By metric name, values [example] for one graph or [circuit, example] for several. The
        graphs are not modified; edges on no path from the input to the logits change nothing.
    """
    graphs = [circuits] if isinstance(circuits, Graph) else list(circuits)
    graphs = [_of_model(graph, model) for graph in graphs]
    if len({graph.config for graph in graphs}) > 1:
        raise UserError("circuits that are evaluated together must be of one shape")
    values = _run(model, graphs, dataset, metrics, batch_size, memory_budget, quiet)
    # The first two rows are the baselines.
    which = 2 if isinstance(circuits, Graph) else slice(2, None)
    return {name: own[which] for name, own in values.items()}


def evaluate_baselines(
    model: Model,
    dataset: Dataset,
    *,
    metrics: Sequence[str | Metric] = ("logit_diff",),
    batch_size: int | None = None,
    memory_budget: int | None = None,
    quiet: bool = True,
) -> tuple[dict[str, Float[Tensor, " example"]], dict[str, Float[Tensor, " example"]]]:
    """The metrics of the clean and of the corrupted run, by name: two dicts of values [example]."""
    values = _run(model, [], dataset, metrics, batch_size, memory_budget, quiet)
    clean = {name: own[0] for name, own in values.items()}
    return clean, {name: own[1] for name, own in values.items()}


def _of_model(graph: Graph, model: Model) -> Graph:
    """The graph with the model's own config: a published one knows no key/value heads."""
    expanded = graph.config.n_kv_receivers != model.config.n_kv_heads
    config = replace(model.config, expanded_kv=expanded)
    if graph.config.shape != config.shape:
        raise UserError(f"{graph} is not a circuit of {model}")
    return replace(graph, config=config)


def _run(
    model: Model,
    graphs: Sequence[Graph],
    dataset: Dataset,
    metrics: Sequence[str | Metric],
    batch_size: int | None,
    memory_budget: int | None,
    quiet: bool,
) -> dict[str, Float[Tensor, "run example"]]:
    """Metrics of the clean run, the corrupted run and every circuit, on every example."""
    found = get_metrics(metrics)
    check_examples(model, dataset.examples)
    check_answer_sets(found, dataset.examples)
    if batch_size is None:
        batch_size = choose_batch_size(
            model, dataset.examples, purpose="evaluation", budget=memory_budget
        )
    config = graphs[0].config if graphs else model.config
    plans = [plan_circuit(model, graph) for graph in graphs]
    values = torch.zeros(len(found), 2 + len(graphs), len(dataset), dtype=model.residual_dtype)
    plan = distributed.own_share(plan_batches(dataset.examples, batch_size))
    what = f"{len(graphs)} circuits" if graphs else "baselines"
    with torch.no_grad():
        for rows in progress_bar(plan, what, quiet=quiet):
            batch = load_batch(dataset.examples, rows, model.device)
            suffix = run_prefix(model, batch.prefix, batch.last, batch.n_positions)
            clean_input, corrupted_input = (
                embed(model, tokens) for tokens in (batch.clean, batch.corrupted)
            )
            corrupted, clean_final = run_corrupted(
                model, clean_input, corrupted_input, suffix, config
            )
            change = clean_input - corrupted_input
            finals = torch.stack(
                [clean_final, corrupted.final]
                + [run_circuit(model, own, corrupted, change, suffix) for own in plans]
            )
            values[:, :, list(rows)] = measure(model, finals, found, batch.answers).cpu()
    distributed.sum_over_processes(values)
    check_values(found, values)
    return {metric.name: own for metric, own in zip(found, values, strict=True)}


def measure(
    model: Model,
    finals: Float[Tensor, "run batch d_model"],
    metrics: Sequence[Metric],
    answers: Answers,
) -> Float[Tensor, "metric run batch"]:
    """Metrics of final residual streams; the first run is the clean one."""
    token_ids = None
    if all(metric.answers_only for metric in metrics):
        token_ids, answers = answers.token_ids, answers.among_themselves()
    clean = Predictions(unembed(model, finals[0], token_ids))
    values = [
        measure_all(metrics, Predictions(unembed(model, final, token_ids), clean), answers)
        for final in finals
    ]
    return torch.stack(values, dim=1)


# ---- the corrupted run ---------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class CorruptedLayer:
    """What circuits need of one layer of the corrupted run.

    Attributes:
        x, mlp_in: residual stream at the inputs of attention and MLP.
        q, k, v: as attention uses them; keys and values of the whole prompt.
        z: each head's average of values.
        raw: sum of the heads and `b_O`.
        shares: what each head adds, before `W_O`.
        mlp_out: what the MLP adds.
    """

    x: Float[Tensor, "batch pos d_model"]
    q: Float[Tensor, "batch n_heads query d_head"]
    k: Float[Tensor, "batch n_kv key d_head"]
    v: Float[Tensor, "batch n_kv key d_head"]
    z: Float[Tensor, "batch query n_heads d_head"]
    raw: Float[Tensor, "batch query d_model"]
    shares: Float[Tensor, "batch query n_heads d_head"]
    mlp_in: Float[Tensor, "batch query d_model"]
    mlp_out: Float[Tensor, "batch query d_model"]


@dataclass(frozen=True, eq=False)
class CorruptedRun:
    """The corrupted run of a batch: its layers and the final residual stream at the last token."""

    layers: list[CorruptedLayer]
    final: Float[Tensor, "batch d_model"]


def run_corrupted(
    model: Model,
    clean: Float[Tensor, "batch pos d_model"],
    corrupted: Float[Tensor, "batch pos d_model"],
    suffix: Suffix,
    config: GraphConfig,
) -> tuple[CorruptedRun, Float[Tensor, "batch d_model"]]:
    """Both runs from their embeddings: the corrupted one with its layers, the clean one's end."""
    offset = position_embedding(model, suffix.start, suffix.n_positions)
    clean_final = run_layers(model, clean + offset, suffix)
    trace: list[LayerTrace] = []
    expanded = config.expanded_kv
    final = run_layers(model, corrupted + offset, suffix, trace=trace, expanded_kv=expanded)
    layers = []
    for layer, own in enumerate(trace):
        block, last_only = model.blocks[layer], layer == len(trace) - 1
        attention = block.attention
        layers.append(
            CorruptedLayer(
                x=own.x,
                q=prepare_queries(attention, own.q, suffix, last_only=last_only),
                k=after_prefix(suffix.keys[layer], prepare_keys(attention, own.k, suffix)),
                v=after_prefix(suffix.values[layer], prepare_values(attention, own.v)),
                z=own.z,
                raw=own.attention_raw,
                shares=head_shares(block, own.z, own.attention_raw),
                mlp_in=own.mlp_in,
                mlp_out=own.mlp_out,
            )
        )
    return CorruptedRun(layers, final), clean_final


# ---- circuits ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LayerPlan:
    """Which nodes of a layer a circuit runs.

    `*_edges` are matrices [receiver, active sender] of zeros and ones.

    Attributes:
        receivers: by kind ('q', 'k', 'v'), the heads (or key/value heads) with edges.
        attention_edges: of those receivers, in that order.
        changed: heads that read such a receiver.
        sends: heads that are active senders.
        first_sender: their place among the active senders.
        mlp_edges: of the MLP; None if it has no edge or does not send.
        mlp_sender: the MLP's place among the active senders.
    """

    receivers: dict[str, Int[Tensor, " n"]]
    attention_edges: Float[Tensor, "n_receivers n_senders"]
    changed: Int[Tensor, " n_changed"]
    sends: Int[Tensor, " n_sends"]
    first_sender: int
    mlp_edges: Float[Tensor, "1 n_senders"] | None
    mlp_sender: int


@dataclass(frozen=True, eq=False)
class CircuitPlan:
    """A circuit as it is run; `n_senders` nodes are active: the input, and all that send."""

    config: GraphConfig
    n_senders: int
    layers: list[LayerPlan]
    logits_edges: Float[Tensor, "1 n_senders"]


def plan_circuit(model: Model, graph: Graph) -> CircuitPlan:
    """The nodes and edges of a circuit that can change its result.

    Pruning changes nothing: a node that the input does not reach has its corrupted output. Only
    where a norm follows attention, a head's output depends on all heads of its layer, so there
    every edge counts.
    """
    config = graph.config
    after_norm = any(block.post_attention_norm is not None for block in model.blocks)
    edges = (graph if after_norm else graph.prune()).in_graph
    active = edges.any(dim=1)
    active[0] = True
    place = (active.long().cumsum(0) - 1).tolist()  # of each sender among the active ones
    kv_head = torch.tensor([config.kv_head(head) for head in range(config.n_heads)])

    def edges_into(receivers: Tensor, n_senders: int) -> Float[Tensor, "n_receivers n_active"]:
        chosen = edges[:n_senders][active[:n_senders]][:, receivers].T
        return chosen.to(model.residual_dtype).to(model.device)

    layers = []
    for layer in range(config.n_layers):
        reads = {kind: edges[:, config.receivers(layer, kind)].any(dim=0) for kind in "qkv"}
        receivers = {kind: own.nonzero().flatten() for kind, own in reads.items()}
        columns = [config.receivers(layer, kind).start + own for kind, own in receivers.items()]
        changed = reads["q"] | reads["k"][kv_head] | reads["v"][kv_head]
        heads, mlp = config.heads(layer), config.mlp_sender(layer)
        mlp_column = torch.tensor([config.mlp_receiver(layer)])
        runs_mlp = bool(active[mlp] and edges[:, mlp_column].any())
        sends = active[heads].nonzero().flatten()
        device = model.blocks[layer].device
        layers.append(
            LayerPlan(
                receivers={kind: own.to(device) for kind, own in receivers.items()},
                attention_edges=edges_into(
                    torch.cat(columns), config.senders_before(layer, "attention")
                ),
                changed=changed.nonzero().flatten().to(device),
                sends=sends.to(device),
                first_sender=place[heads.start + int(sends[0])] if len(sends) else 0,
                mlp_edges=(
                    edges_into(mlp_column, config.senders_before(layer, "mlp"))
                    if runs_mlp
                    else None
                ),
                mlp_sender=place[mlp],
            )
        )
    logits = torch.tensor([config.logits_receiver])
    return CircuitPlan(config, int(active.sum()), layers, edges_into(logits, config.n_forward))


def run_circuit(
    model: Model,
    plan: CircuitPlan,
    corrupted: CorruptedRun,
    input_change: Float[Tensor, "batch pos d_model"],
    suffix: Suffix,
) -> Float[Tensor, "batch d_model"]:
    """The final residual stream at the last token when the circuit's edges alone are clean.

    Args:
        input_change: clean minus corrupted token embedding.
    """
    # What active senders changed: clean-or-patched minus corrupted.
    changes = input_change.new_zeros(plan.n_senders, *input_change.shape)
    changes[0] = input_change
    for layer, own in enumerate(plan.layers):
        last_only = layer == len(plan.layers) - 1
        heads = slice(own.first_sender, own.first_sender + len(own.sends))
        at_attention = changes
        if last_only:  # from here on only the last token matters
            changes = torch.stack([suffix.at_last(change) for change in changes])
        if len(own.sends) and len(own.changed):
            changes[heads] = _changed_heads(
                model, layer, own, plan.config, corrupted.layers[layer], at_attention, suffix
            )
        if own.mlp_edges is not None:
            base = corrupted.layers[layer]
            x = base.mlp_in + _mix(own.mlp_edges, changes)[0].to(base.mlp_in.device)
            changes[own.mlp_sender] = run_mlp(model.blocks[layer], x) - base.mlp_out
    return corrupted.final + _mix(plan.logits_edges, changes)[0, :, 0]


def _mix(
    edges: Float[Tensor, "n_receivers n_senders"],
    changes: Float[Tensor, "n_active batch pos d_model"],
) -> Float[Tensor, "n_receivers batch pos d_model"]:
    """Every receiver's sum over its edges of what their senders changed."""
    n_senders = edges.shape[1]
    flat = edges @ changes[:n_senders].flatten(1)
    return flat.view(len(edges), *changes.shape[1:])


def _changed_heads(
    model: Model,
    layer: int,
    plan: LayerPlan,
    config: GraphConfig,
    base: CorruptedLayer,
    changes: Float[Tensor, "n_active batch pos d_model"],
    suffix: Suffix,
) -> Float[Tensor, "n_sends batch query d_model"]:
    """What the circuit's heads of one layer add, minus what they add in the corrupted run."""
    block, last_only = model.blocks[layer], layer == config.n_layers - 1
    attention = block.attention
    mixed = _mix(plan.attention_edges, changes)
    x = base.x + mixed.to(base.x.device)  # [n_receivers, batch, pos, d_model]
    normed = apply_norm(block.ln1, x).split([len(plan.receivers[kind]) for kind in "qkv"])
    start, heads = suffix.start, plan.changed
    kv_heads = heads * config.n_kv_receivers // config.n_heads

    # The changed heads' q, k and v: those of the corrupted run, except where edges come in.
    q, k, v = base.q.clone(), base.k.clone(), base.v.clone()
    for kind, into, own in zip("qkv", (q, k, v), normed, strict=True):
        chosen = plan.receivers[kind]
        if kind == "q" and last_only:
            own = torch.stack([suffix.at_last(one) for one in own]) if len(own) else own[:, :, :1]
        projected = _project_each(attention, kind, own, chosen, config)
        if kind == "q":
            into[:, chosen] = prepare_queries(attention, projected, suffix, last_only=last_only)
        elif kind == "k":
            into[:, chosen, start:] = prepare_keys(attention, projected, suffix)
        else:
            into[:, chosen, start:] = prepare_values(attention, projected)
    mask = suffix.mask(attention.window, x.device, last_only=last_only)
    z = base.z.clone()
    z[:, :, heads] = attend(attention, q[:, heads], k[:, kv_heads], v[:, kv_heads], mask)
    raw = combine_heads(attention, z) if block.post_attention_norm is not None else base.raw
    shares = head_shares(block, z, raw) - base.shares
    return head_outputs(block, shares, plan.sends).to(x.dtype)


def _project_each(
    attention: Attention,
    kind: str,
    x: Float[Tensor, "n batch pos d_model"],
    heads: Int[Tensor, " n"],
    config: GraphConfig,
) -> Float[Tensor, "batch pos n d_head"]:
    """q, k or v of some heads, each from an input of its own."""
    W, b = attention.projection(kind)
    if kind != "q":  # expanded grouped-query attention: several receivers share a weight
        heads = heads * len(W) // config.n_kv_receivers
    n, batch, n_positions, _ = x.shape
    out = torch.bmm(x.flatten(1, 2).to(W.dtype), W[heads])
    out = out.view(n, batch, n_positions, W.shape[-1]).permute(1, 2, 0, 3)
    return out if b is None else out + b[heads]

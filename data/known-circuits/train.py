"""Train models with known circuits whose features are in superposition.

The method is strict interchange-intervention training, after InterpBench (arXiv 2407.14494), at the
level of edges. A hand-written program says what every aligned node computes. Each step has three
cross-entropy losses:

- for the base prompt's answer (weight 1);
- with the output of an aligned node taken from another prompt's run, for the answer that the
  program gives with that node's value from the other prompt (weight 1);
- with a random share of the edges outside the circuit taken from another prompt's run, for the base
  prompt's answer (weight .4).

No loss separates the features: d_model is smaller than the number of features, and heads and MLPs
outside the circuit write into the same residual stream. Writes <name>/model.safetensors and
<name>/circuit.json in this folder. Takes about a minute per model on one core.
"""

import sys
from dataclasses import dataclass

import numpy as np
import torch
from make import pair, save
from torch.nn import functional as F

WEIGHTS = {"base": 1.0, "interchange": 1.0, "strict": 0.4}


@dataclass(frozen=True)
class Program:
    """A task, with the nodes that compute its variables.

    `draw(random, n)` makes prompts [n, n_ctx]; `answer(base, source, node)` gives the correct
    tokens when the node's value comes from the source prompt (None: from the base prompt).
    """

    name: str
    description: str
    vocabulary: list
    n_ctx: int
    edges: list
    nodes: list
    draw: object
    answer: object
    d_model: int = 10
    n_layers: int = 2
    n_heads: int = 3
    d_head: int = 4
    d_mlp: int = 16


# ---- programs ------------------------------------------------------------------------------------


def draw_bits(random, n):
    """Four bits and '='."""
    return np.concatenate([random.integers(0, 2, (n, 4)), np.full((n, 1), 2)], axis=1)


def xor_answer(base, source, node):
    """The exclusive or of the first and the third bit."""
    first = (source if node in ("a0.h0", "m0") else base)[:, 0]
    third = (source if node in ("a0.h1", "m0") else base)[:, 2]
    return first ^ third


def draw_pointers(random, n):
    """Three of the letters 0 .. 3, a pointer 4 .. 6 to one of them, and '='."""
    letters, pointer = random.integers(0, 4, (n, 3)), random.integers(4, 7, (n, 1))
    return np.concatenate([letters, pointer, np.full((n, 1), 7)], axis=1)


def pointer_answer(base, source, node):
    """The letter that the pointer points to."""
    letters = source if node == "a1.h0" else base
    pointer = (source if node in ("a0.h0", "a1.h0") else base)[:, 3]
    return letters[np.arange(len(letters)), pointer - 4]


PROGRAMS = (
    Program(
        name="trained-xor",
        description="two heads fetch a bit each, an MLP takes their exclusive or",
        vocabulary=["0", "1", "="],
        n_ctx=5,
        edges=["input->a0.h0<v>", "input->a0.h1<v>", "a0.h0->m0", "a0.h1->m0", "m0->logits"],
        nodes=["a0.h0", "a0.h1", "m0"],
        draw=draw_bits,
        answer=xor_answer,
        d_model=6,
    ),
    Program(
        name="trained-pointer",
        description="a head fetches a pointer, which another head follows to a letter",
        vocabulary=["a", "b", "c", "d", "1", "2", "3", "="],
        n_ctx=5,
        edges=["input->a0.h0<v>", "a0.h0->a1.h0<q>", "input->a1.h0<v>", "a1.h0->logits"],
        nodes=["a0.h0", "a1.h0"],
        draw=draw_pointers,
        answer=pointer_answer,
    ),
)


# ---- the model, with every edge to be taken from another run -------------------------------------


def make_weights(program):
    """Small random weights; biases of outputs stay 0."""
    d, h, m = program.d_model, program.d_head, program.d_mlp
    shapes = {"W_E": (len(program.vocabulary), d), "W_pos": (program.n_ctx, d)}
    shapes["W_U"] = (len(program.vocabulary), d)
    for layer in range(program.n_layers):
        own = {f"W_{kind}": (program.n_heads, d, h) for kind in "QKV"}
        own |= {"W_O": (program.n_heads, h, d)}
        own |= {f"b_{kind}": (program.n_heads, h) for kind in "QKV"}
        own |= {"W_in": (m, d), "b_in": (m,), "W_out": (d, m)}
        shapes |= {f"blocks.{layer}.{key}": shape for key, shape in own.items()}
    return {
        key: (0.5 * torch.randn(shape)).requires_grad_(True)
        if "b_" not in key
        else torch.zeros(shape, requires_grad=True)
        for key, shape in shapes.items()
    }


def names_of(program):
    """Senders and receivers in the package's order."""
    senders, receivers = ["input"], []
    for layer in range(program.n_layers):
        heads = [f"a{layer}.h{head}" for head in range(program.n_heads)]
        receivers += [f"{head}<{kind}>" for kind in "qkv" for head in heads] + [f"m{layer}"]
        senders += [*heads, f"m{layer}"]
    return senders, [*receivers, "logits"]


def run(program, W, tokens, kept=None, source=None):
    """Logits at the last token, and the outputs of all nodes.

    `kept` [sender, receiver] marks the edges that carry the sender's output in this run; all other
    edges carry the sender's output in the run of `source`.
    """
    outputs = [W["W_E"][tokens]]
    number = 0

    def read(n_receivers):
        nonlocal number
        own = torch.stack(outputs)
        if kept is None:
            x = own.sum(0).expand(n_receivers, *own.shape[1:])
        else:
            mask = kept[: len(own), number : number + n_receivers]
            x = torch.einsum("ubpd,ur->rbpd", own, mask)
            x = x + torch.einsum("ubpd,ur->rbpd", source[: len(own)], 1 - mask)
        number += n_receivers
        return x + W["W_pos"]

    hidden = torch.full((tokens.shape[1], tokens.shape[1]), -torch.inf).triu(1)
    for layer in range(program.n_layers):
        own = {key.split(".")[-1]: w for key, w in W.items() if key.startswith(f"blocks.{layer}.")}
        q, k, v = (
            x @ own[f"W_{kind}"][:, None] + own[f"b_{kind}"][:, None, None]
            for kind, x in zip("QKV", read(3 * program.n_heads).split(program.n_heads), strict=True)
        )
        pattern = (q @ k.transpose(-1, -2) + hidden).softmax(-1)
        outputs += (pattern @ v @ own["W_O"][:, None]).unbind()
        x = read(1)[0]
        outputs.append(F.relu(x @ own["W_in"].T + own["b_in"]) @ own["W_out"].T)
    return read(1)[0][:, -1] @ W["W_U"].T, torch.stack(outputs)


# ---- training ------------------------------------------------------------------------------------


def train(program, *, steps=2500, batch=64, seed=0):
    """Train, and return the weights after all steps."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    W = make_weights(program)
    senders, receivers = names_of(program)
    true = torch.zeros(len(senders), len(receivers))
    for edge in program.edges:
        sender, receiver = edge.split("->")
        true[senders.index(sender), receivers.index(receiver)] = 1
    optimizer = torch.optim.Adam(W.values(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        base, source = program.draw(random, batch), program.draw(random, batch)
        tokens = torch.tensor(base)
        node = program.nodes[step % len(program.nodes)]
        labels = {
            "base": program.answer(base, base, None),
            "interchange": program.answer(base, source, node),
        }
        labels["strict"] = labels["base"]
        _, others = run(program, W, torch.tensor(source))
        kept = torch.ones_like(true)
        kept[senders.index(node)] = 0
        # All edges off the circuit every other time, else a random share of them.
        share = 0.0 if step % 2 else float(random.random())
        strict = torch.maximum(true, (torch.rand_like(true) < share).float())
        logits = {
            "base": run(program, W, tokens)[0],
            "interchange": run(program, W, tokens, kept, others)[0],
            "strict": run(program, W, tokens, strict, others)[0],
        }
        losses = {key: F.cross_entropy(logits[key], torch.tensor(labels[key])) for key in WEIGHTS}
        optimizer.zero_grad()
        sum(WEIGHTS[key] * loss for key, loss in losses.items()).backward()
        optimizer.step()
        schedule.step()
        if step % 500 == 499:
            print(
                program.name, step + 1, {key: f"{x:.1e}" for key, x in losses.items()}, flush=True
            )
    return {key: weight.detach().numpy() for key, weight in W.items()}


def write(program):
    """Train a model, and save it with 64 held-out pairs whose answers differ."""
    W = train(program)
    for layer in range(program.n_layers):
        W[f"blocks.{layer}.b_O"] = np.zeros(program.d_model)
        W[f"blocks.{layer}.b_out"] = np.zeros(program.d_model)
    random, examples = np.random.default_rng(1), []
    while len(examples) < 64:
        clean, corrupted = program.draw(random, 1), program.draw(random, 1)
        answers = [int(program.answer(own, own, None)[0]) for own in (clean, corrupted)]
        if answers[0] != answers[1]:
            examples.append(pair(clean[0], corrupted[0], *answers))
    save(
        program.name,
        W,
        {
            "description": program.description,
            "made_by": "training",
            "n_layers": program.n_layers,
            "n_heads": program.n_heads,
            "scale": 1.0,
            "vocabulary": program.vocabulary,
            "edges": program.edges,
            "nodes": program.nodes,
            "examples": examples,
        },
    )


if __name__ == "__main__":
    for program in PROGRAMS:
        if len(sys.argv) == 1 or program.name in sys.argv[1:]:
            write(program)

"""Train transcoders of the toy model's MLPs, in circuit-tracer's format.

    python data/toy-transcoders/train.py              about 2 minutes on 2 cores

1. Inputs and outputs of every MLP are collected on the clean and corrupted prompts of all tasks;
   every other pair of prompts is held out for measurements.
2. For each layer, an encoder that keeps the K largest activations and a decoder are trained to
   reconstruct the MLP's output.
3. The variance explained on held-out outputs, and the behaviour of the model with transcoders in
   place of MLPs, are printed and written to training.json. Weights are written in float16.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

import eap
from eap.data.tasks import TASKS
from eap.model.blocks import MLP
from eap.model.rules import EXACT, BackwardRules
from eap.model.runs import outputs_everywhere, run_tokens
from eap.parts.features import Dictionary, load_features

K = 16
"""Number of features that are active at a token."""

CONFIG = """\
{
  "model_kind": "transcoder_set",
  "feature_input_hook": "mlp.hook_in",
  "feature_output_hook": "hook_mlp_out",
  "model_name": "toy"
}
"""


def prompts_of(model: eap.Model, half: int) -> list[tuple[int, ...]]:
    """Clean and corrupted prompts of every other pair of all tasks."""
    prompts = []
    for task in TASKS:
        examples = eap.load_dataset(task, model.tokenizer).examples[half::2]
        prompts += [tokens for one in examples for tokens in (one.clean, one.corrupted)]
    return sorted(set(prompts))


@torch.no_grad()
def activations(
    model: eap.Model, prompts: list[tuple[int, ...]]
) -> list[tuple[Float[Tensor, "token d_model"], Float[Tensor, "token d_model"]]]:
    """Input (after the norm) and output of the MLP at every token, by layer."""
    pieces: list[list[tuple[Tensor, Tensor]]] = [[] for _ in model.blocks]
    for tokens in by_length(prompts):
        last = torch.full((len(tokens),), tokens.shape[1] - 1)
        _, trace, _ = outputs_everywhere(model, tokens, last)
        for block, run, layer in zip(model.blocks, trace, pieces, strict=True):
            layer.append((block.ln2(run.mlp_in).flatten(0, 1), run.mlp_out.flatten(0, 1)))
    return [
        (torch.cat([x for x, _ in layer]), torch.cat([y for _, y in layer])) for layer in pieces
    ]


def by_length(prompts: list[tuple[int, ...]], n: int = 256) -> list[Int[Tensor, "batch pos"]]:
    """Batches of prompts of one length."""
    lengths: dict[int, list[tuple[int, ...]]] = {}
    for tokens in prompts:
        lengths.setdefault(len(tokens), []).append(tokens)
    return [
        torch.tensor(prompts_of_length[first : first + n])
        for prompts_of_length in lengths.values()
        for first in range(0, len(prompts_of_length), n)
    ]


def encode(x: Tensor, W_enc: Tensor, b_enc: Tensor) -> Tensor:
    """Activations of the features, with all but the K largest set to zero."""
    pre = F.linear(x, W_enc, b_enc).relu()
    best = pre.topk(K, dim=-1)
    return torch.zeros_like(pre).scatter(-1, best.indices, best.values)


def train(x: Tensor, y: Tensor, *, n_features: int, steps: int, batch: int) -> dict[str, Tensor]:
    """Train the weights of one layer."""
    d_model = x.shape[1]
    spread = (y - y.mean(0)).square().sum(-1).mean()
    W_dec = F.normalize(torch.randn(n_features, d_model), dim=-1)
    W_enc = F.normalize(torch.randn(n_features, d_model), dim=-1)
    weights = {
        "W_enc": W_enc, "W_dec": W_dec * 0.1 * y.norm(dim=-1).mean(),
        "b_enc": torch.zeros(n_features), "b_dec": y.mean(0),
    }  # fmt: skip
    for tensor in weights.values():
        tensor.requires_grad_()
    optimiser = torch.optim.Adam(weights.values(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.05, steps)
    for _ in range(steps):
        rows = torch.randint(len(x), (batch,))
        c = encode(x[rows], weights["W_enc"], weights["b_enc"])
        loss = (y[rows] - c @ weights["W_dec"] - weights["b_dec"]).square().sum(-1).mean() / spread
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return {name: tensor.detach().half() for name, tensor in weights.items()}


class Spliced(MLP):
    """A module that replaces an MLP by its features."""

    def put(self, dictionary: Dictionary, b_dec: Tensor) -> "Spliced":
        """Set the features."""
        object.__setattr__(self, "features", (dictionary, b_dec))
        return self

    def __call__(self, x: Tensor, rules: BackwardRules = EXACT) -> Tensor:
        """The reconstruction of the output."""
        dictionary, b_dec = self.features  # type: ignore[attr-defined]
        return (
            dictionary.activation(F.linear(x, dictionary.W_enc, dictionary.b_enc))
            @ dictionary.W_dec
            + b_dec
        )


def measure(model: eap.Model, folder: Path, prompts: list[tuple[int, ...]]) -> dict[str, float]:
    """Variance explained by layer, features active at a token, and the model with transcoders.

    `kl` is the KL divergence in nats of the next token at each prompt's last position, with
    transcoders in place of the MLPs; `kl_zero` is the divergence with zero MLP outputs.
    """
    features = load_features(folder, model)
    figures: dict[str, float] = {}
    biases = []
    for layer, (x, y) in enumerate(activations(model, prompts)):
        dictionary = features.dictionaries[layer]
        b_dec = load_bias(folder, layer)
        biases.append(b_dec)
        c = dictionary.activation(F.linear(x, dictionary.W_enc, dictionary.b_enc))
        missed = (y - c @ dictionary.W_dec - b_dec).square().sum()
        figures[f"explained_{layer}"] = 1 - float(missed / (y - y.mean(0)).square().sum())
        figures[f"active_{layer}"] = float((c > 0).sum(-1).float().mean())
    fields = MLP.__dataclass_fields__
    spliced, silent = [], []
    for layer, block in enumerate(model.blocks):
        values = {name: getattr(block.mlp, name) for name in fields}
        dictionary = features.dictionaries[layer]
        spliced.append(replace(block, mlp=Spliced(**values).put(dictionary, biases[layer])))
        nothing = replace(dictionary, W_dec=dictionary.W_dec * 0)
        silent.append(replace(block, mlp=Spliced(**values).put(nothing, biases[layer] * 0)))
    totals = {"kl": 0.0, "kl_zero": 0.0, "same_answer": 0.0}
    n = 0
    for tokens in by_length(prompts):
        clean = run_tokens(model, tokens).log_softmax(-1)
        for name, blocks in (("kl", spliced), ("kl_zero", silent)):
            other = run_tokens(replace(model, blocks=tuple(blocks)), tokens).log_softmax(-1)
            totals[name] += float((clean.exp() * (clean - other)).sum())
            if name == "kl":
                totals["same_answer"] += float((clean.argmax(-1) == other.argmax(-1)).sum())
        n += len(tokens)
    return figures | {name: total / n for name, total in totals.items()}


def load_bias(folder: Path, layer: int) -> Float[Tensor, " d_model"]:
    """b_dec, the bias that does not belong to any feature."""
    return load_file(folder / f"layer_{layer}.safetensors")["b_dec"].float()


def main() -> None:
    """Train, write and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--n_features", type=int, default=512)
    add("--steps", type=int, default=400)
    add("--batch", type=int, default=256)
    add("--seed", type=int, default=0)
    add("--output", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    model = eap.load_model("toy", device="cpu")
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "config.yaml").write_text(CONFIG)
    for layer, (x, y) in enumerate(activations(model, prompts_of(model, 0))):
        print(f"layer {layer}: {len(x):,} tokens", flush=True)
        weights = train(x, y, n_features=args.n_features, steps=args.steps, batch=args.batch)
        save_file(weights | {"k": torch.tensor(K)}, args.output / f"layer_{layer}.safetensors")
    figures = measure(model, args.output, prompts_of(model, 1))
    settings = {name: getattr(args, name) for name in ("n_features", "steps", "batch", "seed")}
    document = {"settings": settings | {"k": K}, "held_out": figures}
    (args.output / "training.json").write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()

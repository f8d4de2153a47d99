"""Models with known circuits, to test methods on: made by hand, compiled by Tracr, or trained.

The models are data, `data/known-circuits/<name>/`: `model.safetensors`, and `circuit.json` with the
true edges, pairs of prompts, and the origin of the model; the scripts in the same folder make them.
They have no norms and no Hugging Face model. In models made by hand or compiled, an edge outside
the circuit has a value of exactly 0.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from safetensors.numpy import load_file
from torch.nn import functional as F

from eap.data.dataset import DATA, Dataset, Example
from eap.graph.graph import Graph, GraphConfig
from eap.model.blocks import MLP, Attention, Block, Norm
from eap.model.model import Model
from eap.model.runs import run_tokens
from eap.runtime.errors import UserError

FOLDER = DATA / "known-circuits"

REDUNDANT = ("redundant",)
"""Models with several circuits that each do the task alone, so that no single edge matters."""

TRAINED = ("trained-pointer", "trained-xor")
"""Models with weights in superposition: edges outside the circuit are not exactly 0, but ablating
all of them at once changes no answer."""

ATTENTION_WEIGHTS = ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O")
MLP_WEIGHTS = ("W_in", "b_in", "W_out", "b_out")

Weights = dict[str, Float[np.ndarray, "..."]]

NO_NORM = Norm(weight=None, bias=None, eps=0.0, kind="none")


@dataclass(frozen=True, eq=False)
class KnownCircuit:
    """Model with its circuit, and pairs of prompts on which every edge of the circuit matters.

    Attributes:
        name: name of the folder.
        description: what the model computes.
        made_by: 'hand', 'training', or the name of the compiler.
        model: model without a tokenizer and a bridge.
        dataset: data set of token ids.
        circuit: circuit of the true edges.
        alternatives: circuits that each do the whole task alone; empty if there is one circuit.
    """

    name: str
    description: str
    made_by: str
    model: Model
    dataset: Dataset
    circuit: Graph
    alternatives: tuple[Graph, ...] = ()

    @property
    def truth(self) -> Bool[np.ndarray, " n_edges"]:
        """Mask of the true edges, in the order of `graph.scores[graph.edge_exists]`."""
        return self.circuit.in_graph[self.circuit.edge_exists].numpy()


def names() -> list[str]:
    """Names of constructed models with one circuit, in which other edges are worth exactly 0."""
    return [name for name in _all_names() if name not in (*REDUNDANT, *TRAINED)]


def _all_names() -> list[str]:
    return sorted(path.parent.name for path in FOLDER.glob("*/circuit.json"))


def load(name: str, *, dtype: torch.dtype = torch.float32) -> KnownCircuit:
    """Load a model with a known circuit.

    The engine's logits are compared with those of a plain forward pass in numpy.

    Raises:
        UserError: an unknown name, or logits that differ.
    """
    if name not in _all_names():
        raise UserError(f"no known circuit {name!r}; there are {', '.join(_all_names())}")
    path = FOLDER / name
    document = json.loads((path / "circuit.json").read_text(encoding="utf8"))
    weights = load_file(path / "model.safetensors")
    digest = hashlib.sha256((path / "model.safetensors").read_bytes())
    source = {"directory": name, "weights_sha256": digest.hexdigest()}
    tensors = {key: torch.from_numpy(weight).to(dtype) for key, weight in weights.items()}
    model = _model_of(name, document, tensors, source)
    examples = tuple(
        Example(*(tuple(row[key]) for key in ("clean", "corrupted", "correct", "incorrect")))
        for row in document["examples"]
    )
    _check_against_numpy(model, weights, document["scale"], examples)
    graph = Graph.from_model(model)
    origin = {"source": f"data/known-circuits/{name}", "n_pairs": len(examples)}
    return KnownCircuit(
        name=name,
        description=document["description"],
        made_by=document["made_by"],
        model=model,
        dataset=Dataset(name, examples, provenance=origin),
        circuit=graph.empty().add(*document["edges"]),
        alternatives=tuple(graph.empty().add(*edges) for edges in document.get("alternatives", [])),
    )


def numpy_logits(
    weights: Weights, scale: float, tokens: tuple[int, ...]
) -> Float[np.ndarray, " d_vocab"]:
    """Logits at the last token, by a plain forward pass in float64."""
    W = {name: weight.astype(np.float64) for name, weight in weights.items()}
    n = len(tokens)
    x = W["W_E"][list(tokens)] + W["W_pos"][:n]
    n_layers = sum(name.endswith("W_in") for name in W)
    hidden = np.triu(np.full((n, n), -np.inf), k=1)
    for layer in range(n_layers):
        block = {name.split(".")[-1]: W[name] for name in W if name.startswith(f"blocks.{layer}.")}
        q, k, v = (x @ block[f"W_{kind}"] + block[f"b_{kind}"][:, None] for kind in "QKV")
        scores = q @ k.swapaxes(1, 2) * scale + hidden  # [head, query, key]
        pattern = np.exp(scores - scores.max(axis=-1, keepdims=True))
        pattern /= pattern.sum(axis=-1, keepdims=True)
        x = x + (pattern @ v @ block["W_O"]).sum(axis=0) + block["b_O"]
        hidden_units = np.maximum(x @ block["W_in"].T + block["b_in"], 0)
        x = x + hidden_units @ block["W_out"].T + block["b_out"]
    return x[-1] @ W["W_U"].T


def _model_of(
    name: str, document: dict[str, Any], tensors: dict[str, torch.Tensor], source: dict[str, Any]
) -> Model:
    n_layers, n_heads = document["n_layers"], document["n_heads"]
    W_E = tensors["W_E"]
    return Model(
        name=name,
        bridge=None,
        tokenizer=None,
        config=GraphConfig(n_layers, n_heads, d_model=W_E.shape[1], n_kv_heads=n_heads),
        blocks=tuple(_block_of(tensors, layer, document["scale"]) for layer in range(n_layers)),
        W_E=W_E,
        embed_scale=1.0,
        W_pos=tensors["W_pos"],
        ln_final=NO_NORM,
        W_U=tensors["W_U"],
        b_U=None,
        logit_softcap=None,
        source=source,
    )


def _block_of(tensors: dict[str, torch.Tensor], layer: int, scale: float) -> Block:
    def read(names: Iterable[str]) -> dict[str, torch.Tensor]:
        return {name: tensors[f"blocks.{layer}.{name}"] for name in names}

    mlp = MLP(**read(MLP_WEIGHTS), W_gate=None, b_gate=None, activation=F.relu)
    attention = Attention(
        **read(ATTENTION_WEIGHTS),
        scale=scale,
        window=None,
        softcap=None,
        clip=None,
        q_norm=None,
        k_norm=None,
        rotary=None,
        rotary_interleaved=False,
    )
    return Block(
        ln1=NO_NORM,
        attention=attention,
        post_attention_norm=None,
        ln2=NO_NORM,
        mlp=mlp,
        post_mlp_norm=None,
    )


def _check_against_numpy(
    model: Model, weights: Weights, scale: float, examples: Sequence[Example]
) -> None:
    prompts = [prompt for example in examples[:4] for prompt in (example.clean, example.corrupted)]
    expected = np.stack([numpy_logits(weights, scale, prompt) for prompt in prompts])
    logits = run_tokens(model, torch.tensor(prompts)).double().numpy()
    error = np.abs(logits - expected).max()
    if not error <= 1e-4 * np.abs(expected).max():  # true also for NaN
        raise UserError(
            f"known circuit {model.name!r}: its logits differ from a plain forward pass by "
            f"{error:.1e}; data/known-circuits/make.py makes the model again"
        )

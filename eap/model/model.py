"""A model in the form that the engine computes with: embedding, blocks, final norm, unembedding."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from eap.graph import GraphConfig
from eap.model.blocks import Block, Norm, residual_dtype
from eap.model.origin import Origin
from eap.model.rules import EXACT, BackwardRules


@dataclass(eq=False)
class Model:
    """Loaded model: the weights in the form that the engine computes with, and their bridge.

    Attributes:
        name: name that was given to `eap.load_model`.
        bridge: TransformerLens bridge, for uses beyond this package.
        tokenizer: Hugging Face tokenizer; None: only token ids can be used.
        config: shape of the model's graph.
        source: identity of the weights (directory and hash, or hub name and revision).
        origin: modules that the weights were read from; None: the weights belong to this object.

    Example:
        >>> model = eap.load_model("toy")
        >>> model.short_name, model.config.n_layers
        ('toy', 4)
    """

    name: str
    bridge: Any
    tokenizer: Any
    config: GraphConfig
    blocks: tuple[Block, ...]
    W_E: Float[Tensor, "d_vocab d_model"]
    embed_scale: float
    W_pos: Float[Tensor, "n_ctx d_model"] | None
    ln_final: Norm
    W_U: Float[Tensor, "d_vocab_out d_model"]
    b_U: Float[Tensor, " d_vocab_out"] | None
    logit_softcap: float | None
    source: dict[str, Any] = field(default_factory=dict)
    origin: Origin | None = None

    def refresh(self) -> None:
        """Read the weights again, with a new hash, if they have changed since they were read.

        Every verb calls this first, because weights may be edited or trained between two calls.

        Raises:
            UserError: the engine can no longer compute the changed model.
        """
        anew = None if self.origin is None else self.origin.anew()
        if anew is not None:
            for part in fields(self):
                setattr(self, part.name, getattr(anew, part.name))

    @property
    def device(self) -> torch.device:
        """Device of the token ids and of the first layer's residual stream."""
        return self.W_E.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self.W_E.dtype

    @property
    def residual_dtype(self) -> torch.dtype:
        """Dtype of residual streams, differences and gradients: float32 or wider."""
        return residual_dtype(self.dtype)

    @property
    def n_positions(self) -> int | None:
        """Largest number of tokens of a prompt, from the position table and the configuration."""
        config = getattr(getattr(self.bridge, "original_model", None), "config", None)
        limits = [getattr(config, "max_position_embeddings", None)]
        limits += [None if self.W_pos is None else len(self.W_pos)]
        return min((n for n in limits if isinstance(n, int) and n > 0), default=None)

    @property
    def short_name(self) -> str:
        """Name after the last slash, which is also the name of folders under `results/`."""
        return Path(self.name).name

    def __repr__(self) -> str:
        shape = self.config
        return (
            f"Model({self.name!r}: {shape.n_layers} layers, {shape.n_heads} heads, d_model "
            f"{shape.d_model}, {self.dtype} on {self.device})"
        )

    # ---- before the first layer and after the last -----------------------------------------------

    def embed(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        """Token embedding, which is the output of the input node."""
        return F.embedding(tokens, self.W_E).to(self.residual_dtype) * self.embed_scale

    def position_embedding(
        self, start: int, n_positions: int
    ) -> Float[Tensor, "pos d_model"] | float:
        """Position embeddings from position `start` on; 0.0 if the model has none."""
        if self.W_pos is None:
            return 0.0
        return self.W_pos[start : start + n_positions].to(self.device, self.residual_dtype)

    def unembed(
        self,
        x: Float[Tensor, "*batch d_model"],
        token_ids: Int[Tensor, " n_tokens"] | None = None,
        rules: BackwardRules = EXACT,
    ) -> Float[Tensor, "*batch n_tokens"]:
        """Final norm and unembedding: logits of the whole vocabulary, or of `token_ids` only."""
        W, b = self.W_U, self.b_U
        if token_ids is not None:
            token_ids = token_ids.to(W.device)
            W, b = W[token_ids], None if b is None else b[token_ids]
        normed = self.ln_final(x.to(W.device), rules)
        logits = F.linear(normed.to(W.dtype), W, b).to(x)
        cap = self.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

"""Model of the benchmarks: random weights in the shape of GPT-2 small."""

import torch
import transformers
from measuring import random_pairs
from transformer_lens.model_bridge import TransformerBridge

from eap.data.dataset import Dataset
from eap.model.loading import from_bridge

N_POSITIONS = 16


class Bench:
    """The bare model, its bridge, and the model as loaded by the engine, with the same weights."""

    def __init__(self, n_layers: int = 12, n_heads: int = 12) -> None:
        torch.manual_seed(0)
        config = transformers.GPT2Config(n_layer=n_layers, n_head=n_heads)
        self.bare = transformers.GPT2LMHeadModel(config).eval().requires_grad_(False)
        self.bare.set_attn_implementation("sdpa")
        copy = transformers.GPT2LMHeadModel(config)
        copy.load_state_dict(self.bare.state_dict())
        copy.config.architectures = ["GPT2LMHeadModel"]
        self.bridge = TransformerBridge.boot_transformers(
            "gpt2", hf_model=copy, tokenizer=_tokenizer(), device="cpu", dtype=torch.float32
        )
        self.model = from_bridge(self.bridge, name=f"gpt2-shaped-{n_layers}-{n_heads}")

    def data(self, n: int, first_difference: int, n_positions: int = N_POSITIONS) -> Dataset:
        """Random prompts that differ in one token."""
        return random_pairs(n, first_difference, n_positions)


def _tokenizer() -> transformers.PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models

    words = {"<bos>": 0}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<bos>")),
        bos_token="<bos>", eos_token="<bos>", unk_token="<bos>", pad_token="<bos>",
        name_or_path="bench", add_bos_token=True,
    )  # fmt: skip

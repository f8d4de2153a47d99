"""Every experiment passes --expanded_kv on: its tables are of the graph that was asked for."""

from __future__ import annotations

import json

import pytest
import shapes
import torch
from running import EXPERIMENTS, call
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from eap.model.directory import TOY_MODEL

FEW = {
    "pareto.py": ("--task", "ioi", "--sizes", 60, "--n_random", 0),
    "pareto_big.py": ("--task", "ioi", "--n_random", 0),
    "get_real_values.py": ("--task", "ioi", "--sizes", 60, "--verify", 5, "--sample", 3),
    "overlap_heatmaps.py": ("--tasks", "ioi", "greater-than"),
    "all_cross_task_faithfulness.py": ("--tasks", "ioi", "greater-than"),
    "test_ig_iterations.py": ("--task", "ioi", "--sizes", 60, "--steps", 2),
    "positions.py": ("--task", "ioi"),
    "stability.py": ("--task", "ioi", "--sizes", 60, "--n_resamples", 2, "--n_random", 19),
    "parts.py": ("--task", "ioi", "--size", 60, "--parts", "channels"),
}


@pytest.fixture(scope="module")
def grouped(tmp_path_factory):
    """A tiny random model whose four query heads share two keys and values."""
    folder = tmp_path_factory.mktemp("model") / "grouped"
    tokenizer = AutoTokenizer.from_pretrained(TOY_MODEL)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        bos_token_id=0, eos_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_all_experiments_are_here():
    assert set(FEW) == set(EXPERIMENTS)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("script", FEW)
def test_every_table_is_of_the_expanded_graph(script, grouped, tmp_path):
    shapes.is_on = False
    try:
        options = ("--model", grouped, "--head", 4, "--ig_steps", 2, "--output", tmp_path)
        own = [*FEW[script]]
        if script == "test_ig_iterations.py":
            options = tuple(o for o in options if o not in ("--ig_steps", 2))
        assert call(script, *own, *options, "--expanded_kv") == 0
    finally:
        shapes.is_on = True
    found = [*tmp_path.rglob("*.csv-metadata.json")]
    assert found
    for path in found:
        origin = json.loads(path.read_text(encoding="utf8"))["dc:provenance"]
        assert origin["expanded_kv"] is True, path.name

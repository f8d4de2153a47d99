"""Train the toy model, a small GPT-2 that does all eight tasks, on generated prompts only.

    python data/toy-model/train.py                    about 20 minutes on 2 cores

1. A byte-level BPE tokenizer in which every word of the tasks is one token and numbers are split
   into pieces of two digits.
2. Pools of prompts for every task, each with the distribution of answers that the model should
   give. Pairs that `eap.data.tasks.split` holds out are left out.
3. Training on the last position of each prompt; on ioi prompts also on every other position, which
   is how the model learns to copy names.
4. Model, tokenizer and settings are written to this folder. `data/create_datasets.py --model toy`
   then makes `data/<task>/toy.csv` from held-out pairs, and `data/score_model.py` scores it.
"""

import argparse
import json
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from jaxtyping import Float, Int
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from eap.data.tasks import (
    fact_retrieval,
    gender_bias,
    greater_than,
    greater_than_price,
    greater_than_sequence,
    hypernymy,
    ioi,
    sva,
)
from eap.data.tasks.split import is_held_out
from eap.data.tasks.task import Row
from eap.data.vocabulary import Vocabulary

BOS = "<|endoftext|>"

# Share of every batch that each task has.
MIXTURE = {
    "ioi": 0.34,
    "greater-than": 0.12,
    "greater-than-price": 0.08,
    "greater-than-sequence": 0.12,
    "sva": 0.12,
    "fact-retrieval-comma": 0.08,
    "hypernymy-comma": 0.08,
    "gender-bias": 0.06,
}

# Weight of the other positions of ioi prompts beside the last ones.
LANGUAGE_WEIGHT = 0.5

# How long things last: the answer is the label plus an exponentially distributed number.
MEAN_DURATION = 15.0


# ---- tokenizer -----------------------------------------------------------------------------------


def words_of_all_tasks() -> list[str]:
    """Texts that contain every word of the tasks, both after a space and at the start."""
    lists = (
        ioi.NAMES, ioi.PLACES, ioi.OBJECTS, greater_than.EVENTS, greater_than_price.ITEMS,
        gender_bias.MALE, gender_bias.FEMALE,
    )  # fmt: skip
    texts = [f" {word}" for own in lists for word in own]
    texts += [*ioi.TEMPLATES, *gender_bias.TEMPLATES, greater_than.TEMPLATE]
    texts += [greater_than_price.TEMPLATE, " man woman he she", hypernymy.TEMPLATE]
    for capital, country in fact_retrieval.CAPITALS.items():
        texts += [fact_retrieval.TEMPLATE.format(capital), f" {country}"]
    for names, members in hypernymy.CLASSES.items():
        texts += [f" {word}" for word in (*names, *members)]
    texts += [f" {form}" for pair in sva.VERB_PAIRS[:120] for form in pair]
    texts += [text for pairs in sva.constructions().values() for pair in pairs for text in pair]
    texts += [f"{n:02d}{m:02d} {n:02d}" for n in range(100) for m in range(100)]
    # Every word of every text counts alike, so that none is split for being rare.
    return sorted({word for text in texts for word in split_words(text)}) * 3


def split_words(text: str) -> list[str]:
    """Pieces into which the tokenizer splits a text before merging."""
    return [piece for piece, _ in _splitter().pre_tokenize_str(text)]


def _splitter() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(r" ?\d{2}| ?\d| ?[^\s\d\W]+| ?[^\s\w]+|\s+"), "isolated")


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, merged until every word of the tasks is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [_splitter(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=20000,
        min_frequency=2,
        special_tokens=[BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(words_of_all_tasks(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS, pad_token=BOS
    )


# ---- prompts and the answers that the model should give ------------------------------------------


@dataclass(frozen=True)
class Pool:
    """Prompts of one task: tokens [n, pos], padded right; last positions; rows of the targets."""

    tokens: Tensor
    last: Tensor
    targets: Tensor


class Targets:
    """Distributions over the vocabulary, each stored once."""

    def __init__(self, vocabulary: Vocabulary, d_vocab: int) -> None:
        self.vocabulary, self.d_vocab = vocabulary, d_vocab
        self.rows: dict[tuple, int] = {}
        self.table: list[Tensor] = []

    def row(self, answers: dict[str, float]) -> int:
        """Row of the distribution with these weights of the answers."""
        key = tuple(sorted(answers.items()))
        if key not in self.rows:
            target = torch.zeros(self.d_vocab)
            for answer, weight in answers.items():
                target[self.vocabulary.continuation(answer)[0]] += weight
            self.rows[key] = len(self.table)
            self.table.append(target / target.sum())
        return self.rows[key]


def uniform(answers: tuple[str, ...]) -> dict[str, float]:
    """Equal weight for every answer."""
    return dict.fromkeys(answers, 1.0)


def number_target(label: int) -> dict[str, float]:
    """Numbers above the label; closer numbers are more likely."""
    return {f"{n:02d}": math.exp(-(n - label) / MEAN_DURATION) for n in range(label + 1, 100)}


def training_prompts(
    source: random.Random, vocabulary: Vocabulary
) -> dict[str, list[tuple[str, dict[str, float]]]]:
    """Prompts and their answers for every task, without held-out pairs."""
    prompts: dict[str, list[tuple[str, dict[str, float]]]] = {name: [] for name in MIXTURE}

    def rows_of(module: ModuleType, **n: int) -> list[dict[str, str]]:
        def seen(row: Row) -> bool:
            return not is_held_out(module.TASK.name, row)

        return module.generate(source, vocabulary, seen, **n)

    for row in rows_of(ioi, n=240_000):
        correct, incorrect = ioi.answers(row, vocabulary)
        prompts["ioi"].append((row["clean"], uniform(correct)))
        # A third person gives: either of the two may receive.
        if source.random() < 0.25:
            prompts["ioi"].append((row["corrupted"], uniform((*correct, *incorrect))))

    for module, n in (
        (greater_than, 12_000),
        (greater_than_price, 7_000),
        (greater_than_sequence, 80_000),
    ):
        name = module.TASK.name
        for row in rows_of(module, n=n):
            prompts[name].append((row["clean"], number_target(int(row["correct_idx"]))))
            if source.random() < 0.03:
                prompts[name].append((row["corrupted"], number_target(1)))

    for row in rows_of(sva):
        correct, _ = sva.answers(row, vocabulary)
        prompts["sva"].append((row["clean"], uniform(correct)))
    for capital, country in fact_retrieval.CAPITALS.items():
        prompt = fact_retrieval.TEMPLATE.format(capital)
        prompts["fact-retrieval-comma"].append((prompt, {f" {country}": 1.0}))
    for names, members in hypernymy.CLASSES.items():
        answers = uniform(tuple(f" {name}" for name in names))
        for member in members:
            prompts["hypernymy-comma"].append((hypernymy.TEMPLATE.format(member), answers))
    for template in gender_bias.TEMPLATES:
        for words, he in ((gender_bias.MALE, 0.85), (gender_bias.FEMALE, 0.15)):
            for word in vocabulary.one_token_words(words):
                prompts["gender-bias"].append((template.format(word), {" he": he, " she": 1 - he}))
        for word, he in (("man", 0.97), ("woman", 0.03)):
            for _ in range(3):
                prompts["gender-bias"].append((template.format(word), {" he": he, " she": 1 - he}))
    return prompts


def make_pool(
    prompts: list[tuple[str, dict[str, float]]], vocabulary: Vocabulary, targets: Targets, bos: int
) -> Pool:
    """Token ids of prompts, and rows of their targets."""
    encoded = vocabulary.encode_all([text for text, _ in prompts])
    tokens = torch.full((len(prompts), 1 + max(map(len, encoded))), bos)
    for row, ids in enumerate(encoded):
        tokens[row, 1 : 1 + len(ids)] = torch.tensor(ids)
    rows = torch.tensor([targets.row(answers) for _, answers in prompts])
    return Pool(tokens, torch.tensor([len(ids) for ids in encoded]), rows)


def draw(
    pool: Pool, n: int, generator: torch.Generator
) -> tuple[Int[Tensor, "n pos"], Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Random prompts of a pool: tokens, last positions, rows of the targets."""
    chosen = torch.randint(len(pool.last), (n,), generator=generator)
    return pool.tokens[chosen], pool.last[chosen], pool.targets[chosen]


# ---- training ------------------------------------------------------------------------------------


def language_loss(model: GPT2LMHeadModel, hidden: Tensor, tokens: Tensor, last: Tensor) -> Tensor:
    """Mean cross-entropy of the next token, over all positions except the last."""
    real = torch.arange(tokens.shape[1]) < last[:, None]
    logits = model.lm_head(hidden[real]).float()
    return F.cross_entropy(logits, tokens[:, 1:][real[:, :-1]])


def train(
    model: GPT2LMHeadModel,
    pools: dict[str, Pool],
    table: Float[Tensor, "row d_vocab"],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> None:
    """Train with AdamW, warm-up and cosine decay, in bfloat16, each task at its own length."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.05
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            min(1.0, step / 200)
            * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))
        ),
    )
    generator = torch.Generator().manual_seed(seed)
    begun = time.monotonic()
    for step in range(steps):
        optimizer.zero_grad(set_to_none=True)
        said = []
        for name, pool in pools.items():
            tokens, last, targets = draw(pool, round(MIXTURE[name] * batch_size), generator)
            with torch.autocast("cpu", torch.bfloat16):
                hidden = model.transformer(tokens).last_hidden_state
                logits = model.lm_head(hidden[torch.arange(len(last)), last])
                words = language_loss(model, hidden, tokens, last) if name == "ioi" else 0.0
            # KL rather than cross-entropy: the same gradient, and zero is perfect.
            loss = F.kl_div(logits.float().log_softmax(-1), table[targets], reduction="batchmean")
            (MIXTURE[name] * loss + LANGUAGE_WEIGHT * words).backward()
            said.append(f"{name} {loss:.3f}")
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            seconds = time.monotonic() - begun
            print(f"step {step} ({seconds:.0f} s): {', '.join(said)}", flush=True)


def main() -> None:
    """Make the tokenizer, train the model, and save both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--learning_rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parent)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    tokenizer = make_tokenizer()
    vocabulary = Vocabulary(tokenizer)
    targets = Targets(vocabulary, len(tokenizer))
    prompts = training_prompts(random.Random(args.seed), vocabulary)
    pools = {
        name: make_pool(own, vocabulary, targets, tokenizer.bos_token_id)
        for name, own in prompts.items()
    }
    print({name: len(pool.last) for name, pool in pools.items()}, len(tokenizer), "tokens")
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=32, n_embd=256, n_layer=4, n_head=8,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, activation_function="gelu_pytorch_tanh",
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.bos_token_id,
    )  # fmt: skip
    # On a CPU the backward pass of fused attention is slower than plain attention's.
    config._attn_implementation = "eager"
    model = GPT2LMHeadModel(config)
    train(
        model,
        pools,
        torch.stack(targets.table),
        steps=args.steps,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        seed=args.seed,
    )
    args.output.mkdir(parents=True, exist_ok=True)
    model.to(torch.float16).save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    settings = {key: str(value) for key, value in vars(args).items() if key != "output"}
    (args.output / "training.json").write_text(json.dumps(settings, indent=2) + "\n")
    print(f"wrote {args.output}; now: python data/create_datasets.py --model toy")


if __name__ == "__main__":
    main()

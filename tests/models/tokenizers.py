"""Small tokenizers of every kind that language models have, made without the hub."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from eap.data.reading import read_rows
from eap.runtime.shipped import data_folder

KINDS = ("byte_bpe", "sentencepiece_bpe", "wordpiece", "unigram")


@lru_cache(maxsize=1)
def corpus() -> list[str]:
    """Prompts of some tasks, each followed by its answers."""
    texts = []
    for task in ("ioi", "gender-bias"):
        for row in read_rows(data_folder() / task / "toy.csv").rows[:400]:
            texts += [f"{row['clean']} he she", f"{row['corrupted']} she he"]
    numbers = [
        " ".join(f"the year {n}" for n in range(start, start + 40)) for start in (1100, 1700)
    ]
    return texts + numbers


def tokenizer_of(kind: str, *, bos: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer of a kind, trained on `corpus`; with `bos`, `<s>` is its BOS token."""
    tokenizer = Tokenizer.from_str(_trained(kind))
    names = {"unk_token": "<unk>"} if kind != "byte_bpe" else {}
    if bos:
        names["bos_token"] = "<s>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", **names)


@lru_cache(maxsize=4)
def _trained(kind: str) -> str:
    special = ["<s>", "</s>", "<unk>"]
    if kind == "byte_bpe":  # GPT-2, Llama 3, Qwen
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=2000,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    elif kind == "sentencepiece_bpe":  # Llama 1 and 2, Gemma: a space before the first word
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.BpeTrainer(vocab_size=2000, special_tokens=special, show_progress=False)
    elif kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(
            vocab_size=2000, special_tokens=special, show_progress=False
        )
    else:
        return _unigram(special).to_str()
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer.to_str()


def _unigram(special: list[str]) -> Tokenizer:
    """T5's and XGLM's kind: every word of the corpus is likelier than its letters."""
    text = " ".join(corpus())
    scores = dict.fromkeys(special, 0.0) | {
        f"▁{word}": -5.0 for word in sorted(set(re.findall(r"\w+", text)))
    }
    scores |= dict.fromkeys(sorted(set(text.replace(" ", "▁"))), -10.0)
    tokenizer = Tokenizer(models.Unigram(list(scores.items()), unk_id=special.index("<unk>")))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def byte_tokenizer(
    merges: Iterable[tuple[str, str]] = (),
    *,
    special: Sequence[str] = ("<s>", "</s>", "<|bot|>"),
    bos: str | None = "<s>",
) -> PreTrainedTokenizerFast:
    """Byte-level BPE with exactly these merges: every byte is a token, a space is `Ġ`."""
    merges = list(merges)
    pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    pieces += [a + b for a, b in merges if a + b not in pieces]
    model = models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = {} if bos is None else {"bos_token": bos}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=special[1] if len(special) > 1 else None,
        additional_special_tokens=list(special[2:]),
        **names,
    )


def word_tokenizer(words: Iterable[str], *, digits: int, **names: str) -> PreTrainedTokenizerFast:
    """One token a word, with the space before it; numbers in groups of up to `digits` digits."""
    groups = [f"{n:0{size}d}" for size in range(1, digits + 1) for n in range(10**size)]
    pieces = [w for w in words if not any(c.isdigit() for c in w)]
    pieces += ["<unk>", *groups]
    model = models.WordLevel({w: i for i, w in enumerate(dict.fromkeys(pieces))}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    pattern = rf" ?[^\s\d\W]+|\d{{1,{digits}}}| ?[^\s\w]+|\s"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **names)


def lower_cased() -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer that does not tell capitals from small letters."""
    words = ["<unk>", "the", "man", "said", "he", "she", "nurse", "king"]
    model = models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")

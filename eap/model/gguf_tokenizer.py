"""Tokenizer in a GGUF file: its ids, its BOS token, and how it splits text."""

from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Regex, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from eap.model.gguf_config import ROLES
from eap.model.gguf_header import Header
from eap.runtime.errors import first_line, quoted

CONTROL, USER_DEFINED = 3, 4  # types in tokenizer.ggml.token_type that are never split

_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def _byte_level(*before: Any, use_regex: bool = True) -> Any:
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    return pre_tokenizers.Sequence([*before, last])


def _split(pattern: str) -> Any:
    return _byte_level(pre_tokenizers.Split(Regex(pattern), behavior="isolated"), use_regex=False)


SPLITS: dict[str, Callable[[], Any]] = {
    "gpt-2": _byte_level,
    "smollm": lambda: _byte_level(pre_tokenizers.Digits(individual_digits=True)),
    "qwen2": lambda: _split(_QWEN2),
    "deepseek-r1-qwen": lambda: _split(_QWEN2),
    "llama-bpe": lambda: _split(_LLAMA3),
    "llama3": lambda: _split(_LLAMA3),
    "llama-v3": lambda: _split(_LLAMA3),
}
"""Functions that make the pre-tokenizer of byte-level vocabularies, by tokenizer.ggml.pre."""


def read_tokenizer(header: Header) -> Any:
    """Read the tokenizer that the file describes, with the ids of the file.

    Raises:
        UserError: an unknown way of splitting text, or other ids in transformers.
    """
    metadata = {key.removeprefix("tokenizer.ggml."): v for key, v in header.metadata.items()}
    kind, tokens = metadata.get("model"), metadata.get("tokens")
    if kind not in ("llama", "gpt2") or not isinstance(tokens, list):
        raise header.refused(
            f"its tokenizer is {quoted(str(kind))}; read are llama (SentencePiece) and gpt2 "
            "(byte-level): give one with tokenizer=..."
        )
    split = str(metadata.get("pre"))
    if kind == "gpt2" and split not in SPLITS:
        raise header.refused(
            f"its tokenizer splits text by {quoted(split)}; known are {', '.join(SPLITS)}: "
            "give a tokenizer with tokenizer=..."
        )
    roles = {
        role: metadata[f"{key}_token_id"]
        for role, key in ROLES.items()
        if f"{key}_token_id" in metadata
    }
    for role, number in roles.items():
        if not 0 <= number < len(tokens):
            raise header.refused(f"its {role} token is {number}, and it has {len(tokens)} tokens")
    try:
        # `from_pretrained` would read files beside this one, which may be of another model.
        folder, name = header.path.parent, header.path.name
        tokenizer = PreTrainedTokenizerFast(name_or_path=str(folder), gguf_file=name)
    except Exception as error:  # every library raises its own kind of error
        raise header.refused(f"no tokenizer: {first_line(error)}") from error
    if kind == "gpt2":
        tokenizer.backend_tokenizer.pre_tokenizer = SPLITS[split]()
    adds_bos = metadata.get("add_bos_token", kind == "llama" or split in ("llama-bpe", "llama3"))
    for role in ROLES:
        absent = role not in roles or (role == "bos" and not adds_bos)
        setattr(tokenizer, f"{role}_token", None if absent else tokens[roles[role]])
    _check_added_tokens(header, tokenizer, tokens, metadata.get("token_type", ()))
    if kind == "llama":
        _check_prefix_space(header, tokenizer, metadata.get("add_space_prefix", True))
    return tokenizer


def _check_added_tokens(header: Header, tokenizer: Any, tokens: list, types: Any) -> None:
    """Add tokens that must stay whole but are split; refuse the file if that does not help."""
    whole = [
        (number, token, kind == CONTROL)
        for number, (token, kind) in enumerate(zip(tokens, types, strict=False))
        if kind in (CONTROL, USER_DEFINED)
    ]

    def cut() -> list[tuple[int, str, bool]]:
        texts = [token for _, token, _ in whole]
        encodings = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
        return [entry for entry, at in zip(whole, encodings, strict=True) if at.ids != [entry[0]]]

    if pieces := cut():
        tokenizer.add_tokens(
            [AddedToken(text, normalized=False, special=special) for _, text, special in pieces]
        )
        if pieces := cut():
            number, text, _ = pieces[0]
            raise header.refused(
                f"its token {number}, {quoted(text)}, is cut into pieces by the tokenizer that "
                "transformers makes; give one with tokenizer=..."
            )


def _check_prefix_space(header: Header, tokenizer: Any, expected: bool) -> None:
    """Check that a space is added in front of a prompt if, and only if, the file says so."""
    pieces = tokenizer.convert_ids_to_tokens(tokenizer.encode("a", add_special_tokens=False))
    if pieces[0].startswith("\u2581") != bool(expected):
        says, does = ("a", "none") if expected else ("no", "one")
        raise header.refused(
            f"it says that prompts get {says} space in front, and the tokenizer that transformers "
            f"makes adds {does}; give one with tokenizer=..."
        )

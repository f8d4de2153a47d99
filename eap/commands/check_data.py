"""Check a data set of your own: read the file in the same way as the experiments.

Prints the number of pairs, which rows were dropped and why, and the first few pairs token by token,
with their answers. With --corrupt, makes corrupted prompts for rows without one.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from eap.data.counterparts import Counterparts, corrupt
from eap.data.dataset import load_dataset
from eap.data.spans import KINDS, bracketed
from eap.data.tasks import TASKS
from eap.model.directory import find_directory, read_config
from eap.model.saved_tokenizer import load_tokenizer, without_foreign_bos
from eap.runtime.atomic import write_atomically
from eap.runtime.errors import UserError, quoted
from eap.studies import shell

OWN_TASK = "my-task"


def main() -> None:
    """Check the data that the command line names."""
    parser = shell.OneLineParser(description=__doc__)
    add = parser.add_argument
    add("data", nargs="?", type=shell.data_file, help="file of pairs (default: the task's pairs)")
    shell.add_model_arguments(
        parser, what="model whose tokenizer is used: toy, a directory, or a hub name"
    )
    add("-t", "--task", type=shell.named_task, default=OWN_TASK, help="name of the task")
    add("--head", type=shell.number_of("head"), help="number of pairs to use (default: all)")
    add("--drop_unfit", action="store_true", help="skip rows that do not fit the tokenizer")
    add("--show", type=shell.not_negative, default=3, help="number of pairs to print (default: 3)")
    add("--spans", choices=KINDS, help="kind of spans to show in the printed prompts")
    add(
        "--corrupt", metavar="WORDS",
        help="make corrupted prompts by exchanging names, numbers, or words of a list (red,blue)",
    )  # fmt: skip
    add(
        "--seed",
        type=shell.number_of("seed"),
        default=0,
        help="random seed of --corrupt (default: 0)",
    )
    add("--save", type=Path, metavar="FILE", help="CSV file for the pairs of --corrupt")
    args = parser.parse_args()

    if args.data is None and (args.task not in TASKS or args.corrupt is not None):
        raise UserError(
            "no data file: give one (eap check-data pairs.csv), or show a task's own pairs with "
            f"--task ({', '.join(TASKS)})"
        )
    if args.save is not None and args.corrupt is None:
        raise UserError("--save is for the pairs that --corrupt makes")
    tokenizer = tokenizer_of(args.model, args.revision)
    data = args.data
    if args.corrupt is not None:
        pairs = corrupt(args.data, tokenizer, words_of(args.corrupt), seed=args.seed)
        data = pairs.rows
        print(pairs.summary())
        save(pairs, args.save)
    dataset = load_dataset(
        args.task, tokenizer,
        data=data, head=args.head, drop_unfit=args.drop_unfit, spans=args.spans,
    )  # fmt: skip

    print(dataset.summary())
    for example in dataset.examples[: args.show]:
        print()
        for name in ("clean", "corrupted", "correct", "incorrect"):
            pieces = [str(tokenizer.decode([token])) for token in getattr(example, name)]
            between = " | " if name in ("correct", "incorrect") else "·"
            text = between.join(pieces)
            if name in ("clean", "corrupted") and dataset.span_names:
                text = bracketed(pieces, dataset.span_names, example.spans)
            print(f"{name:>9}: {text}")


def tokenizer_of(name: str, revision: str | None = None) -> Any:
    """Load the tokenizer that experiments on a model use, without the model's weights.

    Raises:
        UserError: there is no readable tokenizer.
    """
    directory = find_directory(name)
    if directory is not None:
        odd = [path for path in directory.iterdir() if not (path.is_file() or path.is_dir())]
        if odd:  # reading a pipe would block
            raise UserError(f"{directory} is not read: {quoted(odd[0].name)} is not a regular file")
    tokenizer = load_tokenizer(name, directory, revision)
    if directory is not None and not (directory / "config.json").is_file():
        return tokenizer  # a tokenizer alone
    d_vocab = read_config(name, directory, revision).get_text_config().vocab_size
    return without_foreign_bos(tokenizer, d_vocab)


def words_of(text: str) -> str | list[str]:
    """Parse the value of --corrupt: a kind of words, or a list of words."""
    return text if text in ("names", "numbers") else [word.strip() for word in text.split(",")]


def save(made: Counterparts, path: Path | None) -> None:
    """Write rows with their corrupted prompts to a CSV, if a path is given."""
    if path is None:
        return
    if path.suffix.lower() != ".csv":
        raise UserError(f"--save writes a CSV: the name {quoted(path.name)} must end in .csv")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UserError(f"--save cannot write {quoted(str(path))[1:-1]}: the folder does not exist")
    with write_atomically(path) as temporary:
        pd.DataFrame(made.rows).to_csv(temporary, index=False)
    print(f"wrote {shell.shown(path)}")

"""Read a data set of your own as the experiments would, and show what was understood.

Says how many pairs there are, what was dropped and why, and writes the first few out, token by
token, with their answers.
"""

from transformers import AutoTokenizer

from eap.data.dataset import load_dataset
from eap.data.spans import KINDS, bracketed
from eap.errors import UserError, first_line, quoted
from eap.model.directory import find_directory
from eap.studies import shell


def main() -> None:
    """Check the data that the command line names."""
    parser = shell.OneLineParser(description=__doc__)
    add = parser.add_argument
    add("data", nargs="?", type=shell.data_file, help="a file of pairs (default: the task's own)")
    add("-m", "--model", default="toy", help="whose tokenizer: toy, a directory, or a hub name")
    add("-t", "--task", type=shell.named_task, default="my-task", help="a task's name")
    add("--head", type=shell.positive, help="use only this many pairs")
    add("--show", type=shell.not_negative, default=3, help="pairs to write out (default: 3)")
    add("--spans", choices=KINDS, help="show the spans of the prompts: the task's roles, or others")
    args = parser.parse_args()

    directory = find_directory(args.model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory or args.model))
    except (OSError, ValueError) as error:
        raise UserError(f"no tokenizer of {quoted(args.model)}: {first_line(error)}") from None
    dataset = load_dataset(args.task, tokenizer, data=args.data, head=args.head, spans=args.spans)

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

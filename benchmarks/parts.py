"""Cost of scores for all hidden units, as a multiple of EAP (used in docs/parts.md).

    python benchmarks/parts.py --model path/to/model

Both methods score the same pairs in alternation. Time is processor time, so that other work on the
machine has little influence.
"""

import statistics
import time
from collections.abc import Callable

import eap
from eap.studies import shell


def main() -> None:
    """Measure, and print the ratio with its range."""
    parser = shell.OneLineParser(description=__doc__)
    add = parser.add_argument
    add("--model", default="toy", help="name, directory or GGUF file of the model")
    add("--pairs", type=shell.positive, default=24, help="number of pairs of ioi")
    add("--repeats", type=shell.positive, default=5, help="number of measurements per method")
    args = parser.parse_args()
    model = eap.load_model(args.model)
    dataset = eap.load_dataset("ioi", model.tokenizer, head=args.pairs)
    ratios = []
    for _ in range(args.repeats):
        edges = seconds(lambda: eap.attribute(model, dataset, method="EAP", batch_size=8))
        units = seconds(lambda: eap.part_scores(model, dataset, method="EAP", batch_size=8))
        ratios.append(units / edges)
    shell.say(
        f"hidden units over EAP: {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f})"
    )


def seconds(work: Callable[[], object]) -> float:
    """Processor time of a function in seconds."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


if __name__ == "__main__":
    shell.run(main)

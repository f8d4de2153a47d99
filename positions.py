"""Where in the prompt: are circuits whose edges are at spans smaller at equal faithfulness?

Scores every edge at every span of the prompt (a task's roles, or --spans auto), selects circuits of
pairs of an edge and a span, and circuits of edges everywhere, of several sizes, and measures both.
Writes results/positions/<model>/csv/<task>.csv and graphs/<model>/<task>_spans.safetensors. With
--verify K the K highest pairs and a random sample of the others are patched exactly
(real_test/<task>_<metric>_spans_verified.safetensors), and circuits by these scores are measured,
too.
"""

import eap_circuits
from eap import studies
from eap.data.spans import KINDS
from eap.studies import shell


def main() -> None:
    """Run the experiment that the command line describes."""
    parser = shell.make_parser(__doc__)
    parser.add_argument("--metric", help="logit_diff, prob_diff, ... (default: the task's own)")
    parser.add_argument(
        "--spans",
        choices=KINDS,
        default="roles",
        help="spans of the prompts (default: the task's roles)",
    )
    parser.add_argument(
        "--verify", type=shell.positive, metavar="K", help="exact values of the best K pairs"
    )
    parser.add_argument(
        "--sample", type=shell.positive, default=200, help="others to patch with --verify"
    )
    shell.add_ig_arguments(parser)
    args = parser.parse_args()

    settings = shell.settings_of(args)
    metric = studies.metric_name(args.metric, args.task)
    model = studies.load_model_of(settings)
    dataset = studies.load_task(settings, model, args.task, spans=args.spans)
    studies.positions_study(
        settings, model, dataset, metric=metric, verify=args.verify, sample=args.sample
    )


if __name__ == "__main__":
    eap_circuits.run(main)

"""Faithfulness of circuits whose edges are restricted to spans of the prompt.

Scores every edge at every span of the prompt (the task's roles, or --spans auto). Selects circuits
of several sizes, made of (edge, span) pairs or of edges at all positions, and measures both kinds.
Writes results/positions/<model>/csv/<task>.csv and graphs/<model>/<task>_spans.safetensors. With
--verify K, patches the K best (edge, span) pairs and a random sample of the others exactly, writes
real_test/<task>_<metric>_spans_verified.safetensors, and also measures circuits by these scores.
"""

import eap_circuits
from eap import studies
from eap.data.spans import KINDS
from eap.studies import shell


def main() -> None:
    """Run the experiment that the command line describes."""
    parser = shell.make_parser(__doc__)
    add = parser.add_argument
    add("--metric", help="logit_diff, prob_diff, etc. (default: the task's metric)")
    kinds = "kind of spans (default: the task's roles)"
    add("--spans", choices=KINDS, default="roles", help=kinds)
    add("--verify", type=shell.positive, metavar="K", help="patch the K best (edge, span) pairs")
    others = "number of other pairs to patch with --verify (default: 200)"
    add("--sample", type=shell.positive, help=others)
    shell.add_ig_arguments(parser)
    args = parser.parse_args()
    if args.sample is not None and args.verify is None:
        parser.error("--sample is about pairs that --verify leaves out: add --verify")

    settings = shell.settings_of(args)
    metric = studies.metric_name(args.metric, args.task)
    model = studies.load_model_of(settings)
    dataset = studies.load_task(settings, model, args.task, spans=args.spans)
    studies.positions_study(
        settings, model, dataset, metric=metric, verify=args.verify, sample=args.sample or 200
    )


if __name__ == "__main__":
    eap_circuits.run(main)

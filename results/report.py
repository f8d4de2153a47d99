"""Report of a model's results as one self-contained page: results/<model>/report.html.

Shows every figure that has been made, with a caption and the tables behind the figure, and the
settings of all results. Pictures are embedded, so the page can be sent as one file.
"""

import eap_circuits
from eap.figures import report, tables
from eap.runtime.atomic import write_atomically
from eap.studies import shell


def main() -> None:
    """Write the page."""
    args = shell.figure_parser(__doc__, tasks=()).parse_args()
    results = tables.Results(args.output, args.model)
    page = report.render(results)
    path = args.output / "results" / results.folder("pareto").name / "report.html"
    with write_atomically(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    shell.say(f"wrote {shell.shown(path)}")


if __name__ == "__main__":
    eap_circuits.run(main)

"""One self-contained page of a model's results: results/<model>/report.html.

Shows every figure that has been made with a line on what it shows, the tables behind it, and the
settings that all was made with. Pictures are inside the page, so that it can be sent as one file.
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

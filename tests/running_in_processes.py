"""For `torchrun`: the scripts that a JSON list of commands names, one after the other."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

from eap.runtime import distributed

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    distributed.start()
    for script, *arguments in json.loads(sys.argv[1]):
        sys.argv = [script, *arguments]
        runpy.run_path(str(ROOT / script))["main"]()
    distributed.stop()


if __name__ == "__main__":
    main()

"""Figure scripts called on files that say where they come from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from running import call, files_below

from eap.studies.provenance import write_table

MODEL = {"name": "small", "weights_sha256": "a" * 64, "dtype": "float32"}
OTHER = {**MODEL, "weights_sha256": "b" * 64}


def signed(frame, path, *, task="ioi", model=None, pairs=7, metric="logit_diff", **settings):
    """A table with metadata, as the experiments write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {"source": "data", "tokens_sha256": f"{pairs}", "n_pairs": pairs}
    provenance = {
        "model": model or MODEL, "task": task, "data": data, "metric": metric, **settings
    }  # fmt: skip
    write_table(frame, path, provenance)
    return path


def draw(script, output, *options):
    return call(script, "--model", "small", "--output", output, *options)


PARETO = "results/pareto/plot_pareto.py"
NORMALIZED = "results/pareto/plot_pareto_normalized.py"
COMBINED = "results/real_pareto_combined/plot_real_pareto_normalized.py"


def pictures(output: Path) -> set[str]:
    return {Path(name).stem for name in files_below(output) if name.endswith(".png")}


def square(names, **columns):
    n = len(names)
    values = np.arange(n * n, dtype=float).reshape(n, n) / (n * n)
    return pd.DataFrame(values, index=list(names), columns=list(names)).assign(**columns)

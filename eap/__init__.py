"""Find the circuit that performs a task in a language model, and measure its faithfulness.

import eap

model = eap.load_model("toy")
dataset = eap.load_dataset("ioi", model.tokenizer)
graph = eap.attribute(model, dataset, method="EAP-IG", metric="logit_diff")
circuit = graph.greedy(200).prune()
values = eap.evaluate(model, circuit, dataset, metrics=["logit_diff"])

The public names are listed in `__init__.pyi`. Each name loads its module on first use, so that
`import eap.graph` or a script's `--help` does not have to wait for the model libraries.
"""

import sys
from typing import Any

import lazy_loader

from eap.runtime.other_names import PACKAGE, OtherModules, unknown
from eap.runtime.short_names import ShortNames

_public, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
sys.meta_path.extend([ShortNames(), OtherModules()])


def __getattr__(name: str) -> Any:
    if name in PACKAGE:
        raise AttributeError(unknown("the package eap", name, PACKAGE))
    return _public(name)

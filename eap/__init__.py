"""Find the circuit that does a task in a language model, and measure whether it is faithful.

import eap

model = eap.load_model("toy")
dataset = eap.load_dataset("ioi", model.tokenizer)
graph = eap.attribute(model, dataset, method="EAP-IG", metric="logit_diff")
circuit = graph.greedy(200).prune()
values = eap.evaluate(model, circuit, dataset, metrics=["logit_diff"])

The public names are in `__init__.pyi`; each loads its module when it is first used, so that
`import eap.graph` or a script's `--help` need not wait for the libraries of models.
"""

import sys
from typing import Any

import lazy_loader

from eap.runtime.other_names import PACKAGE, OtherModules, unknown

_public, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
sys.meta_path.append(OtherModules())


def __getattr__(name: str) -> Any:
    if name in PACKAGE:
        raise AttributeError(unknown("the package eap", name, PACKAGE))
    return _public(name)

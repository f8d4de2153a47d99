"""Find the circuit that does a task in a language model, and measure whether it is faithful.

import eap

model = eap.load_model("toy")
dataset = eap.load_dataset("ioi", model.tokenizer)
graph = eap.attribute(model, dataset, method="EAP-IG", metric="logit_diff")
circuit = graph.greedy(200).prune()
values = eap.evaluate(model, circuit, dataset, metrics=["logit_diff"])
"""

from eap.attribution import attribute
from eap.circuits import evaluate, evaluate_baselines
from eap.data.dataset import Dataset, Example, load_dataset
from eap.errors import UserError
from eap.graph.graph import Edge, Graph, GraphConfig
from eap.metrics import Metric, from_sequence_metric
from eap.model.loading import Model, from_bridge, load_model
from eap.patching import patch_edges
from eap.rankings import Areas, areas

__all__ = [
    "Areas",
    "Dataset",
    "Edge",
    "Example",
    "Graph",
    "GraphConfig",
    "Metric",
    "Model",
    "UserError",
    "areas",
    "attribute",
    "evaluate",
    "evaluate_baselines",
    "from_bridge",
    "from_sequence_metric",
    "load_dataset",
    "load_model",
    "patch_edges",
]

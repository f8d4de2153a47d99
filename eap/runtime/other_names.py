"""Names of the EAP-IG library and of MIB's code, and what is written here (docs/switching.md).

People bring notebooks from there, whose package is imported as `eap`, too. Where a name is unknown
here, the error says the name that is known.
"""

from importlib.abc import MetaPathFinder
from typing import Any

GRAPH = {
    "apply_greedy": "graph.greedy(200).prune()",
    "apply_threshold": "graph.threshold(0.01).prune()",
    "apply_topn": "graph.top_n(200).prune()",
    "count_included_edges": "graph.count_edges()",
    "count_included_nodes": "len(graph.nodes_in_graph())",
    "forward_index": "graph.sender_names.index(name)",
    "get_dst_nodes": "graph.receiver_names",
    "nodes": "graph.nodes_in_graph(), graph.sender_names or graph.receiver_names",
    "prune_dead_nodes": "graph.prune()",
    "real_edge_mask": "graph.edge_exists",
    "reset": "graph.empty()",
    "to_graphviz": "graph.to_html('circuit.html'), or graph.to_networkx()",
    "to_image": "graph.to_html('circuit.html')",
    "to_json": "graph.save('graph.json')",
    "to_pt": "graph.save('graph.pt')",
    "weighted_edge_count": "graph.count_edges()",
}
"""Members of a graph there, and the same here."""

PACKAGE = {
    "EAPDataset": "eap.load_dataset('my-task', model.tokenizer, data='pairs.csv')",
    "evaluate_area_under_curve": "eap.areas(model, graph, dataset)",
    "evaluate_baseline": "eap.evaluate_baselines(model, dataset)",
    "evaluate_graph": "eap.evaluate(model, circuit, dataset)",
}
"""Functions and classes there, and the same here."""

MODULES = {
    "eap.attribute": "eap.attribute(model, dataset, method='EAP-IG')",
    "eap.attribute_node": "eap.attribute(model, dataset, level='node')",
    "eap.dataset": PACKAGE["EAPDataset"],
    "eap.evaluate": PACKAGE["evaluate_graph"],
    "eap.utils": PACKAGE["EAPDataset"],
    "eap.visualization": GRAPH["to_image"],
}
"""Modules there, and what they are imported for, here."""


def unknown(what: str, name: str, known: dict[str, str]) -> str:
    """What the error about a name says."""
    equivalent = f"; here that is {known[name]} (docs/switching.md)" if name in known else ""
    return f"{what} has no {name!r}{equivalent}"


class OtherModules(MetaPathFinder):
    """Stands last among the finders of modules: what it is asked for is nowhere."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        """Find nothing; a module of the EAP-IG library is refused with what is written here."""
        if fullname in MODULES:
            raise ModuleNotFoundError(unknown("the package eap", fullname, MODULES), name=fullname)

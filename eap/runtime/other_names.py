"""Names in the EAP-IG library and in MIB's code, and their replacements here (docs/switching.md).

Users bring notebooks from these libraries, whose package is also imported as `eap`. If a name is
unknown here, the error names the replacement.
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
"""Members of a graph in these libraries, and their replacements."""

PACKAGE = {
    "EAPDataset": "eap.load_dataset('my-task', model.tokenizer, data='pairs.csv')",
    "evaluate_area_under_curve": "eap.areas(model, graph, dataset)",
    "evaluate_baseline": "eap.evaluate_baselines(model, dataset)",
    "evaluate_graph": "eap.evaluate(model, circuit, dataset)",
}
"""Functions and classes in these libraries, and their replacements."""

MODULES = {
    "eap.attribute": "eap.attribute(model, dataset, method='EAP-IG')",
    "eap.attribute_node": "eap.attribute(model, dataset, level='node')",
    "eap.dataset": PACKAGE["EAPDataset"],
    "eap.evaluate": PACKAGE["evaluate_graph"],
    "eap.utils": PACKAGE["EAPDataset"],
    "eap.visualization": GRAPH["to_image"],
}
"""Modules in these libraries, and replacements for their main function."""


def unknown(what: str, name: str, known: dict[str, str]) -> str:
    """Error message for an unknown name, with its replacement if there is one."""
    equivalent = f"; here that is {known[name]} (docs/switching.md)" if name in known else ""
    return f"{what} has no {name!r}{equivalent}"


class OtherModules(MetaPathFinder):
    """Last finder of modules, which is asked only for modules that no other finder has."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        """Find nothing; for a module of the EAP-IG library, raise an error with a replacement."""
        if fullname in MODULES:
            raise ModuleNotFoundError(unknown("the package eap", fullname, MODULES), name=fullname)

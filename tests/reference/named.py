"""A graph by the names of its nodes and edges."""

from __future__ import annotations


def receivers_of_node(graph, node):
    """Every receiver that a node reads, by the definition of the names."""
    config = graph.config
    if node.startswith("m") or node == "logits":
        return {node}
    if node == "input":
        return set()
    layer, head = (int(part[1:]) for part in node.split("."))
    kv_head = head // (config.n_heads // config.n_kv_receivers)
    kv = "h" if config.n_kv_receivers == config.n_heads else "kv"
    return {f"a{layer}.h{head}<q>", f"a{layer}.{kv}{kv_head}<k>", f"a{layer}.{kv}{kv_head}<v>"}


def named_edges(table, graph):
    return [(graph.sender_names[u], graph.receiver_names[v]) for u, v in table.nonzero().tolist()]

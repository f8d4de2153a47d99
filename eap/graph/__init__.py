"""The model as a graph: which nodes and edges exist, their scores, selections, and files."""

from eap.graph.graph import Edge, Graph
from eap.graph.numbering import GraphConfig

__all__ = ["Edge", "Graph", "GraphConfig"]

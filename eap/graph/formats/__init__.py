"""Formats of graphs: files of this package and of other programs, tables and networkx."""

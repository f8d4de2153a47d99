"""How a graph is written and read: files of this package and of others, frames, networkx."""

"""What a result is worth: overlap, stability, areas, tests of a circuit, groups of examples."""

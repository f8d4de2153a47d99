"""How verbs run: prepared batches, gradients at points and receivers, scorers, runs, moments."""

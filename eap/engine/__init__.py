"""How verbs run: prepared batches, gradients at receivers, scorers, circuit runs, moments."""

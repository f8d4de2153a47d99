"""Engine of the verbs: prepared batches, gradients at points and receivers, scorers, moments."""

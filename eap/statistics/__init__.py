"""Numbers in, numbers out: measures, intervals and tests. No model is read here."""

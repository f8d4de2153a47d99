"""From rows of text to batches of token ids: data sets, tasks, what a tokenizer can be asked."""

"""Tasks of texts: rows of a file, a tokenizer, splits of token ids. Torch-free."""

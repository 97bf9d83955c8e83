"""Structured pruning: whole channels, heads and blocks leave a model; what is left is an ordinary, smaller model."""

"""A torch model in, a smaller torch model out."""

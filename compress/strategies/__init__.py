"""Who teaches whom: one strategy a file, on top of the losses and the one training loop."""

"""Fake quantization: where quantizers go in, how their ranges and weights are chosen, how they learn."""

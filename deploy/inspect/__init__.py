"""Two forms of one model, layer by layer: where a conversion or a quantizer changed what the net computes."""

"""Nets that read texts: token ids (N, L) in, logits out; what is padding they find out themselves."""

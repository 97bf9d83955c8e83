"""Files in, measurements and a verdict out; never imports torch."""

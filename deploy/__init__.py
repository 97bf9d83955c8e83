"""A torch model in, files for a device out."""

"""The model families, one a file, and the tasks (data and metric) beside them."""

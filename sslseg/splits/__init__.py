"""Splits of a dataset: their file, the random choice of labeled images, and lists that others published."""

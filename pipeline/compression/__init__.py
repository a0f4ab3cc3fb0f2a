"""Quantization and the size of its results."""

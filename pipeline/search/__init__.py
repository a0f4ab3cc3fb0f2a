"""Hyperparameter search: drawing the values of trials, and saying what they came to."""

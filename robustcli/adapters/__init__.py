"""Loads models by name or file: network, weights, preprocessing, labels and `predict()`."""

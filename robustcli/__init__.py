"""How well vision models, state-space models above all, stand image transformations."""

__version__ = "0.1.0"

"""Data sets: images with stable ids and classes or masks; layouts, splits, subsets, decoding."""

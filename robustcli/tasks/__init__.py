"""The seam between classifying and segmenting: nothing else asks which of the two it serves."""

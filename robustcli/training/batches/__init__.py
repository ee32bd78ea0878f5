"""From image files to batches: decoded once, cut, changed, in an order of their own."""

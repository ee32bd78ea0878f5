"""What is read: label spaces, image indexes with stable ids, subsets, decoding, data sets."""

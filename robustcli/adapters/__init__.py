"""From a name or a file to a network with weights, preprocessing, labels, `predict()`."""

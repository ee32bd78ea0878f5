"""Task-specific parts of evaluation and prediction, for classification and segmentation."""

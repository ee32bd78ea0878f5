"""Training on Lightning: recipes as data, losses, augmentation, checkpoints, resuming."""

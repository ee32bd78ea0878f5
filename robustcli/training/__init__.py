"""Training on Lightning: recipes as data, losses, checkpoints, resume."""

"""Training: recipes, losses, the loop on Lightning, gradient profiles and freezing."""

"""How a recipe is trained: our way, as the paper did, as nnU-Net does."""

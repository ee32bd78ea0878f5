"""How a recipe is trained where it is not our way: as nnU-Net does, as the paper did."""

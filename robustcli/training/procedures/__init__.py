"""Training procedures: ours, the papers' and nnU-Net's."""

from __future__ import annotations

from robustcli.training.procedures.base import Paper, Procedure
from robustcli.training.procedures.nnunet import NNUNet
from robustcli.training.procedures.photos import PaperPhotos, Speedrun
from robustcli.training.recipes import Recipe


def procedure_of(recipe: Recipe) -> Procedure:
    """The procedure of `recipe`; no other code distinguishes the procedures."""
    if recipe.patches is not None:
        return NNUNet(recipe)
    if recipe.photos is not None and recipe.photos.resident:
        return Speedrun(recipe)
    if recipe.photos is not None and recipe.photos.validates_on == "test":
        return PaperPhotos(recipe)
    return Procedure(recipe) if recipe.paper_batch is None else Paper(recipe)

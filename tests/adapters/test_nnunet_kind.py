"""Which U-Mamba a checkpoint is of; refusals are tested with whole files in test_nnunet.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustcli.adapters.nnunet_kind import TRAINERS, recognised
from robustcli.models.umamba import build

SMALL = {"features": (4, 8), "strides": (1, 2), "patch_size": 16}


@pytest.mark.parametrize("model", sorted(TRAINERS))
def test_is_told_by_the_names_of_the_tensors(model: str) -> None:
    names = list(build(model, **SMALL).state_dict())
    for trainer in ("", TRAINERS[model], f"{TRAINERS[model]}NoAMP", "nnUNetTrainerOfMine"):
        assert recognised(Path("x"), names, trainer) == model

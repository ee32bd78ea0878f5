"""The paper's way of scoring, and the list of what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from robustcli.models.architectures import everything_decays
from robustcli.training.lit_segmenter import SegmentationModule
from robustcli.training.procedures.paper import Paper, paper_rows, write_paper_rows
from robustcli.training.recipes import recipe_for
from robustcli.training.record import PAPER
from robustcli.training.samples import WholeSamples
from tests.training.pairs import decoded


def of(model: str) -> str:
    return "\n".join(Paper(recipe_for(model, "paper", "lgg")).faults(model))


@pytest.mark.parametrize("model", ["unet", "ulvm_v5", "segformer", "resnet18_seg", "vmunet"])
def test_the_faults_of_all(model: str) -> None:
    for said in ("Slices of one patient", "pooled over batches", "last epoch", "blue, green, red",
                 "Nothing is augmented", "seeded"):  # fmt: skip
        assert said in of(model)


def test_the_faults_of_some() -> None:
    assert "batches of 64 slices" in of("unet")
    assert "batches of 16 slices" in of("ulvm")
    assert "probability 0.622" in of("umambabot")
    assert "0.622" not in of("ulvm")
    assert "224 pixels" in of("segformer")
    assert "not on record" in of("resnet50_seg")
    assert "has no such network" in of("vmunet")


def test_rows_by_hand() -> None:
    said = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 1]]).bool().reshape(2, 1, 2, 2)
    mask = torch.tensor([[0.5, 0, 0.25, 0], [0, 0, 0, 0]]).reshape(2, 1, 2, 2)
    first, second = paper_rows(["a", "b"], said, mask)
    assert tuple(first.values()) == ("a", 0.5, 2.0, 0.75, 1, 3)
    assert tuple(second.values()) == ("b", 0.0, 1.0, 0.0, 0, 1)


class Redness(nn.Module):
    """Logits that are high where the third channel, which is red in BGR, is bright."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, x: Tensor) -> Tensor:
        """See the class: 0.5 exactly between ground and disc."""
        return self.scale * (x[:, 2:] - x[:, :1] - 0.3) + 0.5


def test_the_rows_of_a_network_that_is_right(tmp_path: Path) -> None:
    pixels = decoded(5, 32, 32)
    recipe = recipe_for("unet", "paper", "x")
    module = SegmentationModule(
        Redness(), recipe, channels="bgr", decays=everything_decays, val_groups=()
    )
    ids = [f"{i}" for i in range(5)]
    write_paper_rows(tmp_path, module, WholeSamples(ids, pixels, 32), batch_size=2)
    rows = pd.read_parquet(tmp_path / "paper.parquet")
    assert tuple(rows.columns) == PAPER
    assert rows["image_id"].tolist() == ids
    area = [int(one.mask.sum()) for one in pixels]
    for column in PAPER[1:]:
        assert rows[column].tolist() == area

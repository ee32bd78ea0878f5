"""Table I of the tumour paper as the catalogue has it."""

from __future__ import annotations

import pytest

from robustcli.adapters.catalogue import CATALOGUE
from robustcli.adapters.entry import FOREGROUND

# Typed from the paper: Dice as printed, parameters in millions as printed.
TABLE_I = {
    "umambabot_pp": (0.8867, 10.0),
    "umambabot": (0.8799, 9.8),
    "resnet18_seg": (0.8648, 13.9),
    "resnet50_seg": (0.8672, 42.9),
    "segformer": (0.8454, 17.8),
    "unet": (0.8929, 7.8),
    "ulvm": (0.79955, 0.049),
    "ulvm_v1": (0.8409, 0.20),
    "ulvm_v2": (0.8243, 0.042),
    "ulvm_v3": (0.8109, 0.176),
    "ulvm_v4": (0.8548, 1.1),
    "ulvm_v5": (0.8633, 0.7),
    "ulvm_v6": (0.8628, 0.77),
}
BEYOND = {"vmunet", "umamba", "umamba-enc", "umamba-pico", "otsu"}


def test_the_names_are_those_of_the_interface() -> None:
    assert {e.name for e in CATALOGUE.values() if e.task == "seg"} == {*TABLE_I, *BEYOND}


@pytest.mark.parametrize("name", TABLE_I)
def test_dice_and_size_are_those_of_the_paper(name: str) -> None:
    dice, millions = TABLE_I[name]
    entry = CATALOGUE[name]
    assert entry.published == dice
    assert entry.parameters / 1e6 == pytest.approx(millions, rel=0.09)  # v1 is printed rounded
    assert entry.licence == "none stated"
    assert entry.source == "https://github.com/lxaw/mamba-tumor-seg"


@pytest.mark.parametrize("name", TABLE_I)
def test_dice_and_iou_are_of_one_kind(name: str) -> None:
    """Both are means over batches: the IoU is near that of one image with this Dice."""
    entry = CATALOGUE[name]
    assert entry.published is not None
    expected = entry.published / (2 - entry.published)
    assert entry.published_iou == pytest.approx(expected, abs=0.03)


def test_what_the_paper_and_its_code_disagree_on_is_said() -> None:
    remarked = {name: CATALOGUE[name].remark for name in TABLE_I if CATALOGUE[name].remark}
    assert set(remarked) == {"segformer", "ulvm"}
    for number in ("0.8454", "0.7260", "0.7945", "0.6750"):
        assert number in remarked["segformer"]
    assert "0.79555" in remarked["ulvm"]


@pytest.mark.parametrize("name", BEYOND)
def test_others_have_no_published_number(name: str) -> None:
    assert (CATALOGUE[name].published, CATALOGUE[name].published_iou) == (None, None)


def test_segmenters_have_no_published_weights_and_no_classes() -> None:
    for entry in CATALOGUE.values():
        if entry.task == "seg":
            assert (entry.weights_url, entry.label_space) == (None, FOREGROUND)
            assert (entry.asset is not None) == (entry.name == "umamba-pico")
        else:
            assert entry.label_space != FOREGROUND
            assert entry.published_iou is None

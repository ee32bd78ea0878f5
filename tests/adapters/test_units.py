"""Units and number of `--mean` and `--std`, and greyscale."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from robustcli.adapters.preprocessing import Preprocessing, grey, overridden
from robustcli.core.errors import UsageError
from robustcli.training.lit_module import luma

OWN = Preprocessing(256, 224)


def test_units_of_255_are_read_and_announced() -> None:
    given = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}
    found, notes = overridden(OWN, given)
    assert found == OWN  # to the bit, so that the run is the same one
    assert len(notes) == 2
    assert "`--mean` is read in units of 0 to 255: 0.485,0.456,0.406" in notes[0]


def test_units_of_one_stay_as_they_are() -> None:
    found, notes = overridden(OWN, {"mean": (0, 0, 0), "std": (1, 1, 1), "crop": 32})
    assert (found.mean, found.std, found.crop, notes) == ((0.0,) * 3, (1.0,) * 3, 32, ())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mean": (123.0, 116, 103), "std": (1.0, 1, 1)}, "not in the same units"),
        ({"mean": (0.4, 116, 0.4)}, "units of `--mean .*` cannot be told"),
        ({"mean": (2.0, 2, 2)}, "cannot be told"),
        ({"mean": (300.0, 2, 2)}, "out of range"),
        ({"mean": (-0.1, 0.2, 0.2)}, "out of range"),
        ({"mean": (float("nan"), 0.2, 0.2)}, "no number"),
        ({"std": (0.0, 0.2, 0.2)}, "above zero in every channel"),
        ({"std": (-58.0, 57, 57)}, "above zero in every channel"),
        ({"mean": (0.5, 0.5)}, "has 2 numbers(.|\n)*Give 3"),
        ({"mean": (0.5,)}, "has 1 numbers"),
    ],
)
def test_values_that_cannot_be_meant(changes: dict[str, tuple[float, ...]], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        overridden(OWN, changes)


def test_one_number_for_a_greyscale_network() -> None:
    one = OWN.of_channels(1)
    found, _ = overridden(one, {"mean": (127.5,), "std": (127.5,)})
    assert (found.mean, found.std) == ((0.5,), (0.5,))
    with pytest.raises(UsageError, match="has 3 numbers"):
        overridden(one, {"mean": (0.5, 0.5, 0.5)})


def test_every_configuration_of_timm_is_read() -> None:
    for name in timm.list_pretrained():
        config = timm.get_pretrained_cfg(name)
        own = OWN.of_channels(len(config.mean))
        _, notes = overridden(own, {"mean": config.mean, "std": config.std})
        assert notes == (), name


def test_greyscale_is_pillows_in_evaluation_and_training() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    expected = np.asarray(Image.fromarray(image).convert("L"))
    assert (grey(image)[:, :, 0] == expected).all()
    assert grey(image).flags.writeable  # torch warns of tensors over anything else
    batch = torch.from_numpy(image.transpose(2, 0, 1).copy())[None]
    assert (luma(batch)[0, 0].numpy() == expected).all()
    soft = luma(batch.float() / 255)[0, 0].numpy() * 255
    assert np.abs(soft - expected).max() < 0.51


def test_colour_and_greyscale_of_one_geometry_are_two_views() -> None:
    assert OWN.view != OWN.of_channels(1).view

"""Window, batch and normalisation: whose word counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from robustcli.adapters.entry import ModelEntry
from robustcli.adapters.load import resolve
from robustcli.adapters.nnunet_normalise import Channel
from robustcli.adapters.nnunet_plan import NnUNetPlan
from robustcli.adapters.nnunet_planner import make_plan
from robustcli.core.errors import RunError
from robustcli.data.open_pairs import open_pairs
from robustcli.data.pairs import PairIndex
from robustcli.training.config import TrainConfig
from robustcli.training.named_recipes import NAMED_RECIPES
from robustcli.training.nnunet.planned import planned
from robustcli.training.recipes import Recipe
from tests.training.pairs import write_pairs


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> PairIndex:
    folder = tmp_path_factory.mktemp("pairs") / "data"
    return open_pairs(str(write_pairs(folder, 40, size=64)))


def made(images: PairIndex, model: str, recipe: str = "nnunet", **said: Any) -> Recipe:
    config = TrainConfig(model, **said)
    entry: ModelEntry = resolve(model)
    return planned(NAMED_RECIPES[recipe], config, entry, images)


@pytest.mark.parametrize(
    ("model", "recipe", "arguments", "window"),
    [
        ("umamba", "nnunet", {}, 256),
        ("umamba", "nnunet-light", {}, 128),
        ("umamba-pico", "nnunet", {}, 128),
        ("umamba", "nnunet", {"patch_size": [320, 192]}, 192),
        ("umamba", "nnunet-light", {"patch_size": [96, 96]}, 96),
        ("umamba-enc", "nnunet-light", {}, 256),  # its weights have its patch's size
        ("unet", "nnunet", {}, 256),
        ("unet", "nnunet-light", {}, 128),
    ],
)
def test_the_window_is_the_networks_patch(
    images: PairIndex, model: str, recipe: str, arguments: dict[str, Any], window: int
) -> None:
    assert made(images, model, recipe, model_args=arguments).window == window


def test_a_window_leaves_the_smallest_map_four_pixels(images: PairIndex) -> None:
    deep = {"features": [8] * 7, "strides": [1, *[2] * 6], "patch_size": [512, 512]}
    assert made(images, "umamba", "nnunet-light", model_args=deep).window == 256  # 4 * 2 ** 6


def test_the_batch_is_that_of_nnunets_planner(images: PairIndex) -> None:
    """40 images of 64 x 64: a twentieth of their pixels is 2 patches of 64 x 64."""
    arguments = {"patch_size": [64, 64]}
    assert made(images, "umamba", model_args=arguments).batch_size == 2
    arguments = {"patch_size": [32, 32], "features": [32, 64, 128], "strides": [1, 2, 2]}
    assert made(images, "umamba", model_args=arguments).batch_size == 8
    assert made(images, "umamba", "nnunet-light", model_args=arguments).batch_size == 4


def test_what_the_user_says_counts(images: PairIndex) -> None:
    found = made(images, "umamba", window=64, batch_size=7)
    assert (found.window, found.batch_size) == (64, 7)


def plan(**settings: Any) -> NnUNetPlan:
    own = make_plan((128, 128), ["R", "G", "rgb_to_0_1"], images=100)
    changed = {**own.plans["configurations"]["2d"], **settings}
    return replace(own, plans={**own.plans, "configurations": {"2d": changed}})


def test_the_plan_of_pretrained_weights_counts(images: PairIndex) -> None:
    own = plan(batch_size=5, batch_dice=False)
    found = made(images, "umamba", model_args=own.options, plan=own)
    assert (found.window, found.batch_size) == (128, 5)
    assert found.patches is not None
    assert found.patches.channels == (Channel(), Channel(), Channel("rgb_to_0_1"))
    assert not found.patches.batch_dice
    light = made(images, "umamba", "nnunet-light", model_args=own.options, plan=own)
    assert light.batch_size == 4


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    broken = open_pairs(str(write_pairs(tmp_path / "data", 3)))
    broken.pairs[1].image.path.write_text("nothing")
    with pytest.raises(RunError, match=r"The image `001.png` cannot be read"):
        made(broken, "umamba")

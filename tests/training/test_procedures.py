"""The procedures of recipes: this package's, the paper's and nnU-Net's."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from robustcli.adapters.catalogue import ModelEntry
from robustcli.adapters.load import resolve
from robustcli.adapters.trainable import start_segmenter
from robustcli.core.errors import RunError, UsageError
from robustcli.data.dataset import Dataset
from robustcli.data.mask_values import IGNORED
from robustcli.data.sources import Masks, open_dataset
from robustcli.models.architectures import architecture, everything_decays
from robustcli.nnunet.normalisation import Channel
from robustcli.nnunet.plans_json import NnUNetPlan, make_plan
from robustcli.training.config import TrainConfig
from robustcli.training.datamodule import BatchSettings, Decoded, DecodedSubset, ImageData
from robustcli.training.lit_module import SegmenterModule
from robustcli.training.mask_samples import AllWindows, MaskBatch, ResizedImages
from robustcli.training.procedures.base import Paper, Procedure, paper_rows, write_paper_rows
from robustcli.training.procedures.nnunet import (
    NNUNet,
    NnUNetModule,
    PatchData,
    PatchOrder,
    moving_average,
    poly_lr,
)
from robustcli.training.recipes import NAMED_RECIPES, Recipe, recipe_for
from robustcli.training.record import AVERAGED, PAPER
from robustcli.training.train_plan import plan_training
from tests.training.images import decoded, write_pairs
from tests.training.runs import RECIPE, TINY_UMAMBA, Recorder, tiny_unet

SUBSET, SINGLE = DecodedSubset(["a", "b"], decoded(2)), DecodedSubset(["c"], decoded(1))


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return tiny_unet(write_pairs(tmp_path / "data", 14), tmp_path / "run", workers=1)


def test_our_procedure_cuts_windows_and_keeps_the_best_epoch(config: TrainConfig) -> None:
    plan = plan_training(config, Recorder())
    assert type(plan.procedure) is Procedure
    data = plan.procedure.data(SUBSET, SINGLE, plan.batch_settings())
    assert isinstance(data, ImageData)
    assert isinstance(data.val_samples, AllWindows)
    assert data.settings.workers == 1
    network, _ = start_segmenter(resolve("unet"), config.model_args, seed=0, untrained=True)
    module = plan.task.lit_module(plan, network.eval(), data)
    assert isinstance(module, SegmenterModule)
    assert len(module.val_groups) == len(data.val_samples)
    assert network.training
    assert (plan.monitor, plan.channels, plan.procedure.keeps_best) == ("val_dice", "rgb", True)
    assert (plan.procedure.normalised, plan.procedure.faults("unet")) == ((), [])
    assert plan_training(replace(config, quick=True), Recorder()).per_epoch == 12  # all that exist


def test_the_papers_takes_whole_images_and_the_last_epoch(config: TrainConfig) -> None:
    plan = plan_training(replace(config, protocol="paper"), Recorder())
    assert type(plan.procedure) is Paper
    data = plan.procedure.data(SUBSET, SINGLE, plan.batch_settings())
    assert isinstance(data, ImageData)
    assert isinstance(data.val_samples, ResizedImages)
    assert (plan.channels, plan.procedure.keeps_best) == ("bgr", False)
    assert plan.per_epoch == len(plan.splits.train.samples) == 11
    assert len(plan.procedure.faults("unet")) > 3


def test_nnunets_draws_patches_and_watches_a_moving_average(config: TrainConfig) -> None:
    plan = plan_training(replace(config, recipe="nnunet-light"), Recorder())
    assert type(plan.procedure) is NNUNet
    assert isinstance(plan.procedure.data(SUBSET, SUBSET, plan.batch_settings()), PatchData)
    network, _ = start_segmenter(resolve("unet"), config.model_args, seed=0, untrained=True)
    assert isinstance(plan.task.lit_module(plan, network), NnUNetModule)
    assert (plan.per_epoch, plan.steps_per_epoch) == (25 * 4, 25)
    assert plan.val_batches == 10
    assert plan.monitor == AVERAGED
    assert [channel.scheme for channel in plan.procedure.normalised] == ["zscore"] * 3


def group_of(model: str) -> str:
    return "\n".join(Paper(recipe_for(model, "paper", "lgg")).faults(model))


@pytest.mark.parametrize("model", ["unet", "ulvm_v5", "segformer", "resnet18_seg", "vmunet"])
def test_every_paper_recipe_lists_its_common_faults(model: str) -> None:
    for fault in ("of the same patient", "pooled over batches", "last epoch", "blue, green, red",
                 "No augmentation is used", "seeded"):  # fmt: skip
        assert fault in group_of(model)


def test_some_paper_recipes_list_further_faults() -> None:
    assert "batches of 64 slices" in group_of("unet")
    assert "batches of 16 slices" in group_of("ulvm")
    assert "probability 0.622" in group_of("umambabot")
    assert "0.622" not in group_of("ulvm")
    assert "224 pixels" in group_of("segformer")
    assert "is not recorded" in group_of("resnet50_seg")
    assert "is not in the paper" in group_of("vmunet")


def test_rows_by_hand() -> None:
    prediction = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 1]]).bool().reshape(2, 1, 2, 2)
    mask = torch.tensor([[0.5, 0, 0.25, 0], [0, 0, 0, 0]]).reshape(2, 1, 2, 2)
    first, second = paper_rows(["a", "b"], prediction, mask)
    assert tuple(first.values()) == ("a", 0.5, 2.0, 0.75, 1, 3)
    assert tuple(second.values()) == ("b", 0.0, 1.0, 0.0, 0, 1)


class Redness(nn.Module):
    """Returns high logits where the third channel, which is red in BGR, is bright."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, x: Tensor) -> Tensor:
        """Returns a probability of 0.5 exactly between ground and disc."""
        return self.scale * (x[:, 2:] - x[:, :1] - 0.3) + 0.5


def test_the_rows_of_a_network_that_is_right(tmp_path: Path) -> None:
    pixels = decoded(5, 32, 32)
    recipe = recipe_for("unet", "paper", "x")
    module = SegmenterModule(
        Redness(), recipe, channels="bgr", decays=everything_decays, val_groups=()
    )
    ids = [f"{i}" for i in range(5)]
    write_paper_rows(tmp_path, module, ResizedImages(DecodedSubset(ids, pixels), 32), batch_size=2)
    rows = pd.read_parquet(tmp_path / "paper.parquet")
    assert tuple(rows.columns) == PAPER
    assert rows["image_id"].tolist() == ids
    area = [int(item.mask.sum()) for item in pixels]
    for column in PAPER[1:]:
        assert rows[column].tolist() == area


MASKS = Masks(surveyed=False)

TRAIN = DecodedSubset([f"t{i}" for i in range(7)], decoded(7))
VAL = DecodedSubset(["v0", "v1"], decoded(2, 50, 30))


def data(*, seed: int = 1, workers: int = 0, val: DecodedSubset = VAL) -> PatchData:
    return PatchData(TRAIN, val, RECIPE, BatchSettings(seed, workers))


def epoch(patches: PatchData, number: int, phase: str = "train") -> list[MaskBatch]:
    loader = getattr(patches, f"{phase}_dataloader")()
    loader.batch_sampler.sampler.set_epoch(number)
    return list(loader)


def test_an_epoch_has_full_batches_of_normalised_patches() -> None:
    batches = epoch(data(), 0)
    assert [len(batch.ids) for batch in batches] == [3] * 4
    assert {image for batch in batches for image in batch.ids} <= set(TRAIN.ids)
    first_batch = batches[0]
    assert (first_batch.images.shape, first_batch.masks.shape) == ((3, 3, 16, 16), (3, 1, 16, 16))
    assert (first_batch.images.dtype, first_batch.masks.dtype) == (torch.float32, torch.uint8)
    assert first_batch.images.min() < 0 < first_batch.images.max()
    assert first_batch.counted.all()


def test_validation_batches_contain_numbered_validation_images() -> None:
    batches = epoch(data(), 0, "val")
    assert torch.cat([batch.numbers for batch in batches]).tolist() == list(range(6))
    assert {image for batch in batches for image in batch.ids} <= set(VAL.ids)


@pytest.mark.parametrize("phase", ["train", "val"])
def test_batches_depend_on_epoch_and_seed_only(phase: str) -> None:
    patches = data()
    first, second = epoch(patches, 0, phase), epoch(patches, 1, phase)
    repeated = epoch(data(workers=1), 1, phase)
    assert not torch.equal(first[0].images, second[0].images)
    for second_batch, repeated_batch in zip(second, repeated, strict=True):
        assert second_batch.ids == repeated_batch.ids
        assert torch.equal(second_batch.images, repeated_batch.images)
        assert torch.equal(second_batch.masks, repeated_batch.masks)
    assert not torch.equal(epoch(data(seed=2), 1, phase)[0].images, second[0].images)


def test_the_last_of_a_batch_shows_foreground_in_validation() -> None:
    """In training, rotations and flips may move the foreground out of the patch."""
    no_foreground = [item._replace(mask=item.mask * 0) for item in decoded(3)]
    mixed_subset = DecodedSubset(
        ["a", "b", "c", "d"], [*no_foreground, Decoded(decoded(4)[3].image, decoded(4)[3].mask)]
    )
    batches = [b for n in range(5) for b in epoch(data(val=mixed_subset), n, "val")]
    assert all(batch.masks[2].any() and batch.ids[2] == "d" for batch in batches)


def test_no_foreground_at_all_is_refused() -> None:
    no_foreground = DecodedSubset(["a"], [item._replace(mask=item.mask * 0) for item in decoded(1)])
    with pytest.raises(UsageError, match="The val images cannot be used for training"):
        data(val=no_foreground)


def test_the_order_is_numbers_with_the_epoch() -> None:
    order = PatchOrder(3)
    order.set_epoch(5)
    assert list(order) == [(5, 0), (5, 1), (5, 2)]
    assert len(order) == 3


def test_ignored_pixels_are_marked_and_are_no_foreground() -> None:
    """An image with ignored pixels only is never selected as the foreground image."""
    items = decoded(2, 64, 64)
    void = Decoded(items[0].image, np.zeros_like(items[0].mask))
    void.mask[:32] = IGNORED
    subset = DecodedSubset(["shown", "void"], [items[1], void])
    patches = PatchData(subset, subset, RECIPE, BatchSettings(1, 0, ignores=True))
    assert patches.train.patches._with_foreground == (0,)
    batches = epoch(patches, 0) + epoch(patches, 0, "val")
    assert any((batch.masks == IGNORED).any() for batch in batches)
    for batch in batches:
        assert set(batch.masks.unique().tolist()) <= {0, 1, IGNORED}
        assert torch.equal(batch.counted, batch.masks != IGNORED)


# Two images of two pixels with p(foreground) = 3/4 everywhere.
def umamba() -> nn.Module:
    options: dict[str, Any] = TINY_UMAMBA
    return architecture("umamba-pico").build(**options)


def test_a_umamba_answers_at_every_resolution() -> None:
    options: dict[str, Any] = {**TINY_UMAMBA, "features": [4, 4, 8], "strides": [1, 2, 2]}
    network = architecture("umamba-pico").build(**options)
    NnUNetModule(network, RECIPE)
    assert [o.shape[-1] for o in network(torch.rand(1, 3, 16, 16))] == [16, 8]


@pytest.mark.parametrize(("name", "factors"), [("swin-umamba", [1, 2]), ("swin-umamba-d", [1, 4])])
def test_a_swin_umamba_answers_at_its_resolutions(name: str, factors: list[int]) -> None:
    network = architecture(name).build(dim=8, depths=(1, 1))
    NnUNetModule(network, RECIPE)
    outputs = network(torch.rand(1, 3, 16, 16))
    assert [16 // output.shape[-1] for output in outputs] == factors


def test_the_optimizer_is_sgd_with_nesterov_over_what_trains() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Conv2d(2, 1, 1))
    network[0].requires_grad_(False)
    optimizer = NnUNetModule(network, RECIPE).make_optimizer()
    assert isinstance(optimizer, torch.optim.SGD)
    (group,) = optimizer.param_groups
    assert group["params"] == list(network[1].parameters())
    values = [group[key] for key in ("lr", "momentum", "nesterov", "weight_decay")]
    assert values == [1e-2, 0.99, True, 3e-5]


def test_the_learning_rate_is_the_epochs() -> None:
    module = NnUNetModule(umamba(), replace(RECIPE, epochs=10))
    optimizer = module.make_optimizer()
    module._trainer = SimpleNamespace(optimizers=[optimizer], current_epoch=4)  # type: ignore[assignment]
    module.on_train_epoch_start()
    assert optimizer.param_groups[0]["lr"] == poly_lr(4, 10, 1e-2)


def test_the_average_goes_into_the_checkpoint_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    module = NnUNetModule(umamba(), RECIPE)
    logged: dict[str, float] = {}
    monkeypatch.setattr(module, "_log", lambda name, value: logged.update({name: float(value)}))
    module.log_scores(math.nan, math.nan)
    assert module.average is None
    assert math.isnan(logged[AVERAGED])
    module.log_scores(0.5, 0.4)
    module.log_scores(0.7, 0.6)
    assert logged == pytest.approx({"val_dice": 0.7, "val_iou": 0.6, AVERAGED: 0.52})
    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    restored = NnUNetModule(umamba(), RECIPE)
    restored.on_load_checkpoint(checkpoint)
    assert restored.average == pytest.approx(0.52)


def test_patches_pool_their_pixels() -> None:
    """All patches form one group: nnU-Net's pseudo dice."""
    assert set(NnUNetModule(umamba(), RECIPE).val_groups) == {"all"}
    assert len(NnUNetModule(umamba(), RECIPE).val_groups) == 2 * 3


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("pairs") / "data"
    return open_dataset(str(write_pairs(folder, 40, size=64)), MASKS)


def fit_recipe(images: Dataset, model: str, recipe: str = "nnunet", **overrides: Any) -> Recipe:
    config = TrainConfig(model, **overrides)
    entry: ModelEntry = resolve(model)
    return NNUNet(NAMED_RECIPES[recipe]).planned(config, entry, images)


@pytest.mark.parametrize(
    ("model", "recipe", "arguments", "window"),
    [
        ("umamba", "nnunet", {}, 256),
        ("umamba", "nnunet-light", {}, 128),
        ("umamba-pico", "nnunet", {}, 128),
        ("umamba", "nnunet", {"patch_size": [320, 192]}, 192),
        ("umamba", "nnunet-light", {"patch_size": [96, 96]}, 96),
        ("umamba-enc", "nnunet-light", {}, 256),  # its weights depend on the size of its patch
        ("unet", "nnunet", {}, 256),
        ("unet", "nnunet-light", {}, 128),
    ],
)
def test_the_window_is_the_networks_patch(
    images: Dataset, model: str, recipe: str, arguments: dict[str, Any], window: int
) -> None:
    assert fit_recipe(images, model, recipe, model_args=arguments).window == window


def test_a_window_leaves_the_smallest_map_four_pixels(images: Dataset) -> None:
    deep_network = {"features": [8] * 7, "strides": [1, *[2] * 6], "patch_size": [512, 512]}
    recipe = fit_recipe(images, "umamba", "nnunet-light", model_args=deep_network)
    assert recipe.window == 4 * 2**6


def test_the_batch_is_that_of_nnunets_planner(images: Dataset) -> None:
    """40 images of 64 x 64: a twentieth of their pixels is two patches of 64 x 64."""
    arguments = {"patch_size": [64, 64]}
    assert fit_recipe(images, "umamba", model_args=arguments).batch_size == 2
    arguments = {"patch_size": [32, 32], "features": [32, 64, 128], "strides": [1, 2, 2]}
    assert fit_recipe(images, "umamba", model_args=arguments).batch_size == 8
    assert fit_recipe(images, "umamba", "nnunet-light", model_args=arguments).batch_size == 4


def test_options_override_window_and_batch_size(images: Dataset) -> None:
    fitted = fit_recipe(images, "umamba", window=64, batch_size=7)
    assert (fitted.window, fitted.batch_size) == (64, 7)


def plan(**settings: Any) -> NnUNetPlan:
    base_plan = make_plan((128, 128), ["R", "G", "rgb_to_0_1"], images=100)
    changed = {**base_plan.plans["configurations"]["2d"], **settings}
    return replace(base_plan, plans={**base_plan.plans, "configurations": {"2d": changed}})


def test_the_plan_of_pretrained_weights_counts(images: Dataset) -> None:
    base_plan = plan(batch_size=5, batch_dice=False)
    fitted = fit_recipe(images, "umamba", model_args=base_plan.options, plan=base_plan)
    assert (fitted.window, fitted.batch_size) == (128, 5)
    assert fitted.patches.channels == (Channel(), Channel(), Channel("rgb_to_0_1"))
    assert not fitted.patches.batch_dice
    light_one = fit_recipe(
        images, "umamba", "nnunet-light", model_args=base_plan.options, plan=base_plan
    )
    assert light_one.batch_size == 4


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    unreadable = open_dataset(str(write_pairs(tmp_path / "data", 3)), MASKS)
    unreadable.samples[1].image.path.write_text("nothing")
    with pytest.raises(RunError, match=r"The image `001.png` cannot be read"):
        fit_recipe(unreadable, "umamba")


EPOCHS, LR = 1000, 1e-2


def test_the_learning_rate_is_torchs_polynomial_one() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    torch_scheduler = torch.optim.lr_scheduler.PolynomialLR(optimizer, EPOCHS, 0.9)
    for epoch in range(1001):
        rate = poly_lr(epoch, EPOCHS, LR)
        assert rate == pytest.approx(torch_scheduler.get_last_lr()[0], rel=1e-9, abs=1e-15)
        optimizer.step()
        torch_scheduler.step()


def test_the_learning_rate_by_hand_and_after_the_end() -> None:
    assert poly_lr(0, EPOCHS, LR) == 0.01
    assert poly_lr(500, EPOCHS, LR) == pytest.approx(0.01 * 0.5**0.9)
    assert poly_lr(500, EPOCHS, LR, 2) == pytest.approx(0.01 * 0.25)
    assert poly_lr(1000, EPOCHS, LR) == poly_lr(1200, EPOCHS, LR) == 0


def test_the_average_starts_with_the_first_value_and_moves_by_a_tenth() -> None:
    averages: list[float | None] = [None]
    for dice in (0.5, 0.7, 0.1, 0.9):
        averages.append(moving_average(averages[-1], dice))
    assert averages[1:] == pytest.approx([0.5, 0.52, 0.478, 0.5202])
    assert moving_average(0.4, 0.8, 0.5) == pytest.approx(0.6)


def test_an_epoch_without_foreground_changes_nothing() -> None:
    assert moving_average(0.5, math.nan) == 0.5
    assert moving_average(None, math.nan) is None

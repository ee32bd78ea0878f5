"""Losses: the paper's numbers, exact values, and half precision."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.losses.dice import DiceLoss as MonaiDice
from monai.losses.ds_loss import DeepSupervisionLoss
from skimage.transform import resize
from torch import Tensor

from robustcli.core.errors import UsageError
from robustcli.data.mask_values import IGNORED
from robustcli.training.losses import (
    LOSSES,
    DeepSupervision,
    DiceCrossEntropy,
    SegmentationLoss,
    loss_name,
    make_loss,
    shrunk,
    supervision_weights,
)


def fixed_pair() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(2, 1, 8, 8), torch.randint(0, 2, (2, 1, 8, 8)).float()


def test_the_weights() -> None:
    assert supervision_weights(4) == pytest.approx((4 / 7, 2 / 7, 1 / 7, 0))
    assert supervision_weights(2) == (1.0, 0.0)
    assert supervision_weights(1) == (1.0,)


def test_levels_are_added_up() -> None:
    logits, target = fixed_pair()
    coarse, coarsest = logits[..., ::2, ::2], logits[..., ::4, ::4]
    loss = make_loss("bce", probabilities=False)
    value = DeepSupervision(loss)([logits, coarse, coarsest], target)
    # The nearest pixel of each 2 x 2, as nearest-exact selects it.
    nearest = target[..., 1::2, 1::2]
    expected = 2 / 3 * loss(logits, target) + 1 / 3 * loss(coarse, nearest)
    assert value.item() == pytest.approx(expected.item(), abs=1e-6)


def test_one_output_is_the_loss_itself() -> None:
    logits, target = fixed_pair()
    loss: SegmentationLoss = make_loss("dice", probabilities=False)
    assert DeepSupervision(loss)([logits], target) == loss(logits, target)
    scores, labels = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))
    classes = DiceCrossEntropy()
    assert torch.equal(DeepSupervision(classes)(scores, labels), classes(scores, labels))
    assert torch.equal(DeepSupervision(classes)([scores], labels[:, None]), classes(scores, labels))


@pytest.mark.parametrize("channel", [False, True])
@pytest.mark.parametrize("size", [(16, 16), (8, 4), (4, 32), (1, 1)])
def test_targets_shrink_as_scikit_image_shrinks_labels(
    size: tuple[int, int], channel: bool
) -> None:
    """nnU-Net resizes targets with `skimage.transform.resize`, order 0."""
    labels = np.random.default_rng(0).integers(-1, 200, (32, 32)).astype(np.int16)
    expected = resize(  # type: ignore[no-untyped-call]
        labels.astype(float), size, order=0, mode="edge", clip=True, anti_aliasing=False
    )
    target = torch.from_numpy(labels)[None]
    shrunk_target = shrunk(target[:, None] if channel else target, torch.empty(1, 2, *size))
    assert shrunk_target.shape == ((1, 1, *size) if channel else (1, *size))
    assert shrunk_target.dtype == torch.int16
    assert np.array_equal(shrunk_target.reshape(size).numpy(), expected)


GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "seeds_losses.json"


def fixed_losses() -> tuple[Tensor, Tensor]:
    """Returns the logits and the target of the golden numbers."""
    logits = 2 * np.random.default_rng(10).standard_normal((4, 1, 16, 16)).astype(np.float32)
    target = (np.random.default_rng(11).random((4, 1, 16, 16)) < 0.2).astype(np.float32)
    target[2] = 0
    return torch.from_numpy(logits), torch.from_numpy(target)


@pytest.mark.skipif(not GOLDEN.is_file(), reason="needs ../shared")
@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize(
    ("name", "golden"),
    [
        ("dice", "DiceLoss(logits,target)"),
        ("bce-dice", "BceDiceLoss(probs,target)"),
        ("bce", "BCEWithLogits(logits,target)"),
    ],
)
def test_the_papers_numbers(name: str, golden: str, probabilities: bool) -> None:
    logits, target = fixed_losses()
    output = logits.sigmoid() if probabilities else logits
    value = make_loss(name, probabilities=probabilities)(output, target)
    assert value.item() == pytest.approx(json.loads(GOLDEN.read_text())[golden], abs=1e-6)


def test_dice_by_hand() -> None:
    probabilities = torch.full((1, 1, 10, 10), 0.5)
    target = torch.zeros(1, 1, 10, 10)
    target[..., :5] = 1
    value = make_loss("dice", probabilities=True)(probabilities, target)
    assert value.item() == pytest.approx(1 - (2 * 25 + 100) / (50 + 50 + 100))


def test_bce_dice_of_an_empty_mask_by_hand() -> None:
    value = make_loss("bce-dice", probabilities=True)(
        torch.full((1, 1, 2, 2), 0.25), torch.zeros(1, 1, 2, 2)
    )
    assert value.item() == pytest.approx(-np.log(0.75) + 1 - 1 / 2)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("probabilities", [False, True])
def test_a_network_that_is_sure_and_wrong_gets_a_finite_gradient(
    name: str, probabilities: bool
) -> None:
    """In float16 a sigmoid is exactly 0 or 1 long before its logit overflows."""
    logits = torch.tensor([60.0, -60.0], dtype=torch.float16).reshape(1, 1, 1, 2)
    logits.requires_grad_()
    output = logits.sigmoid() if probabilities else logits
    target = torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2)
    loss = make_loss(name, probabilities=probabilities)(output, target)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_a_sure_and_wrong_logit_is_pulled_back_as_far_as_a_doubtful_one() -> None:
    """After rounding the sigmoid, the logarithm is cut at -100 and has no gradient."""
    logit = torch.tensor([150.0]).reshape(1, 1, 1, 1).requires_grad_()
    loss = make_loss("bce", probabilities=False)(logit, torch.zeros(1, 1, 1, 1))
    loss.backward()
    assert loss.item() == pytest.approx(150)
    assert logit.grad is not None
    assert logit.grad.item() == pytest.approx(1)


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_a_nan_output_gives_a_nan_loss(name: str, probabilities: bool) -> None:
    output = torch.full((2, 1, 4, 4), 0.25)
    output[1, 0, 2, 3] = torch.nan
    loss = make_loss(name, probabilities=probabilities)
    assert loss(output, torch.ones_like(output)).isnan()


def test_the_loss_leaves_autocast() -> None:
    output, target = fixed_losses()
    with torch.autocast("cpu", torch.bfloat16):
        loss_inside = make_loss("bce-dice", probabilities=True)(output.sigmoid(), target)
    loss_outside = make_loss("bce-dice", probabilities=True)(output.sigmoid(), target)
    assert loss_inside.item() == pytest.approx(loss_outside.item(), abs=1e-6)


def test_names_are_forgiving_and_unknown_ones_get_the_nearest() -> None:
    assert loss_name("BCE_Dice") == "bce-dice"
    with pytest.raises(UsageError, match="No loss is called `dise`") as caught:
        make_loss("dise", probabilities=False)
    assert "Did you mean `dice`" in str(caught.value)


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_ignored_pixels_change_neither_loss_nor_gradient(name: str, probabilities: bool) -> None:
    """The loss equals that of the remaining columns."""
    logits, target = fixed_losses()
    counted_columns = 10
    marked = target.clone()
    marked[..., counted_columns:] = IGNORED
    loss = make_loss(name, probabilities=probabilities, ignores=True)
    plain_loss = make_loss(name, probabilities=probabilities)
    output = (logits.sigmoid() if probabilities else logits).requires_grad_()
    value = loss(output, marked.to(torch.uint8))
    expected = plain_loss(output[..., :counted_columns], target[..., :counted_columns])
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(value, output)
    (expected_gradient,) = torch.autograd.grad(expected, output)
    assert not gradient[..., counted_columns:].any()
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("name", LOSSES)
def test_where_nothing_is_ignored_the_loss_is_the_same(name: str) -> None:
    logits, target = fixed_losses()
    ignoring = make_loss(name, probabilities=False, ignores=True)
    plain_loss = make_loss(name, probabilities=False)
    assert ignoring(logits, target).item() == pytest.approx(
        plain_loss(logits, target).item(), rel=1e-6
    )


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_that_is_ignored_whole_has_a_finite_loss(name: str) -> None:
    logits, target = fixed_losses()
    logits.requires_grad_()
    loss = make_loss(name, probabilities=False, ignores=True)(logits, target * 0 + IGNORED)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(loss)
    assert not gradient.any()


@pytest.mark.parametrize(
    ("name", "batch", "smooth"), [("dice", True, 100.0), ("bce-dice", False, 1.0)]
)
def test_the_dice_is_monais_with_its_gradient(name: str, batch: bool, smooth: float) -> None:
    logits, target = fixed_pair()
    logits.requires_grad_()
    loss = make_loss(name, probabilities=False)(logits, target)
    expected = MonaiDice(sigmoid=True, batch=batch, smooth_nr=smooth, smooth_dr=smooth)(
        logits, target
    )
    if name == "bce-dice":
        expected = expected + torch.nn.BCEWithLogitsLoss()(logits, target)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits)
    )


def test_deep_supervision_is_monais_with_our_weights() -> None:
    torch.manual_seed(1)
    outputs = [torch.randn(2, 1, width, width) for width in (16, 8, 4)]
    target = torch.randint(0, 2, (2, 1, 16, 16)).float()
    loss = torch.nn.BCEWithLogitsLoss()
    monai_loss = DeepSupervisionLoss(loss, weights=list(supervision_weights(3)))
    torch.testing.assert_close(DeepSupervision(loss)(outputs, target), monai_loss(outputs, target))

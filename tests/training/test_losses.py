"""Losses: the numbers of the paper and of nnU-Net, exact values, and half precision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.losses import DiceCELoss
from monai.losses import DiceLoss as MonaiDice
from monai.losses.ds_loss import DeepSupervisionLoss
from skimage.transform import resize
from torch import Tensor

from robustcli.adapters.segmenter import foreground_logits
from robustcli.core.errors import UsageError
from robustcli.data.mask_values import IGNORED
from robustcli.training.losses import (
    CLASS_LOSSES,
    COUNTERPARTS,
    LOSSES,
    DeepSupervision,
    DiceCrossEntropy,
    NnUNetLoss,
    SegmentationLoss,
    SoftmaxLoss,
    class_scores,
    loss_name,
    make_loss,
    shrunk,
    supervision_weights,
)
from tests.models import golden


def fixed_pair() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(2, 1, 8, 8), torch.randint(0, 2, (2, 1, 8, 8)).float()


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
    ("name", "key"),
    [
        ("dice", "DiceLoss(logits,target)"),
        ("bce-dice", "BceDiceLoss(probs,target)"),
        ("bce", "BCEWithLogits(logits,target)"),
    ],
)
def test_the_papers_numbers(name: str, key: str, probabilities: bool) -> None:
    logits, target = fixed_losses()
    output = logits.sigmoid() if probabilities else logits
    value = make_loss(name, probabilities=probabilities)(output, target)
    assert value.item() == pytest.approx(json.loads(GOLDEN.read_text())[key], abs=1e-6)


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
    assert torch.isfinite(logits.grad).all()


def test_a_sure_and_wrong_logit_is_pulled_back_as_far_as_a_doubtful_one() -> None:
    """After rounding the sigmoid, the logarithm is cut at -100 and has no gradient."""
    logit = torch.tensor([150.0]).reshape(1, 1, 1, 1).requires_grad_()
    loss = make_loss("bce", probabilities=False)(logit, torch.zeros(1, 1, 1, 1))
    loss.backward()
    assert loss.item() == pytest.approx(150)
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


def stored_tensor(name: str) -> Tensor:
    return torch.from_numpy(golden.arrays("nnunet_loss.npz")[name])


@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize("ignore", [None, 3])
def test_agrees_with_nnunets_numbers_and_gradients(batch_dice: bool, ignore: int | None) -> None:
    logits, target = stored_tensor("logits0").requires_grad_(), stored_tensor("target0")
    loss = DiceCrossEntropy(batch_dice=batch_dice, ignore_label=ignore)
    scores = logits if ignore is None else logits[:, :ignore]
    entropy, dice = loss.terms(scores, target)
    total = loss(scores, target)
    total.backward()
    tag = f"bd{int(batch_dice)}_ign{ignore}"
    assert entropy.item() == pytest.approx(stored_tensor(f"{tag}_ce").item(), rel=1e-12)
    assert -dice.item() == pytest.approx(stored_tensor(f"{tag}_dice").item(), rel=1e-12)
    assert total.item() == pytest.approx(stored_tensor(f"{tag}_total").item(), rel=1e-12)
    assert golden.distance(logits.grad, stored_tensor(f"{tag}_grad").numpy()) <= 1e-15


class FromFile(DiceCrossEntropy):
    """Computes the loss with stored targets, independently of this package's resizing."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        level = {32: 0, 16: 1, 8: 2, 4: 3}[logits.shape[-1]]
        return super().forward(logits, stored_tensor(f"target{level}"))


def test_deep_supervision_agrees_with_nnunets_total_and_gradients() -> None:
    outputs = [stored_tensor(f"logits{i}").requires_grad_() for i in range(4)]
    total = DeepSupervision(FromFile())(outputs, stored_tensor("target0"))
    total.backward()
    assert total.item() == pytest.approx(stored_tensor("ds_total_bd1").item(), rel=1e-12)
    for i, output in enumerate(outputs[:3]):
        assert golden.distance(output.grad, stored_tensor(f"ds_grad{i}").numpy()) <= 1e-15
    assert outputs[3].grad is None


def test_the_weights_are_nnunets() -> None:
    assert supervision_weights(4) == pytest.approx(stored_tensor("ds_weights").tolist())
    assert (supervision_weights(2), supervision_weights(1)) == ((1.0, 0.0), (1.0,))


@pytest.mark.parametrize("value", [7.0, -3.0])
def test_ignored_pixels_count_nowhere(value: float) -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(2, 2, 4, 4), torch.randint(0, 2, (2, 4, 4))
    target[:, :2] = 2
    loss = DiceCrossEntropy(ignore_label=2)
    expected = loss(logits[:, :, 2:], target[:, 2:])
    changed_logits = logits.clone()
    changed_logits[:, :, :2] = value
    assert torch.allclose(loss(changed_logits, target), expected)


def test_a_batch_that_nobody_annotated_gives_a_finite_loss_without_gradient() -> None:
    logits = torch.randn(1, 2, 4, 4, requires_grad=True)
    DiceCrossEntropy(ignore_label=2)(logits, torch.full((1, 4, 4), 2)).backward()
    assert logits.grad.abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_labels_of_any_whole_type(dtype: Any) -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(1, 2, 4, 4), torch.randint(0, 2, (1, 4, 4))
    assert torch.equal(
        DiceCrossEntropy()(logits, target.to(dtype)), DiceCrossEntropy()(logits, target)
    )


def supervised(**settings: Any) -> DeepSupervision:
    """Returns nnU-Net's loss of all outputs of a network."""
    return DeepSupervision(NnUNetLoss(**settings))


def levels(channels: int) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    outputs = [
        torch.randn(3, channels, width, width, generator=generator, dtype=torch.float32)
        for width in (16, 8, 4)
    ]
    target = torch.randint(0, 2, (3, 1, 16, 16), generator=generator, dtype=torch.uint8)
    return [output.requires_grad_() for output in outputs], target


@pytest.mark.parametrize("batch_dice", [True, False])
def test_a_network_of_two_classes_gets_nnunets_own_loss(batch_dice: bool) -> None:
    outputs, target = levels(2)
    nnunet_loss = DeepSupervision(DiceCrossEntropy(batch_dice=batch_dice))(outputs, target)
    expected = torch.autograd.grad(nnunet_loss, outputs[:2])
    own_loss = supervised(probabilities=False, batch_dice=batch_dice)(
        [foreground_logits(output) for output in outputs], target
    )
    assert own_loss.item() == pytest.approx(nnunet_loss.item(), rel=1e-6)
    for own_gradient, gradient in zip(
        torch.autograd.grad(own_loss, outputs[:2]), expected, strict=True
    ):
        torch.testing.assert_close(own_gradient, gradient, rtol=1e-4, atol=1e-7)


def test_probabilities_and_their_logits_give_the_same_loss() -> None:
    outputs, target = levels(1)
    logits = supervised(probabilities=False)(outputs, target)
    probabilities = supervised(probabilities=True)([o.sigmoid() for o in outputs], target)
    assert probabilities.item() == pytest.approx(logits.item(), rel=1e-5)


def test_a_probability_of_0_or_1_has_a_finite_loss_and_gradient() -> None:
    output = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2).requires_grad_()
    loss = supervised(probabilities=True)([output], torch.tensor([1, 0]).view(1, 1, 1, 2))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(output.grad).all()


def test_a_perfect_output_has_a_loss_of_minus_one_also_in_half_precision() -> None:
    target = torch.randint(0, 2, (2, 1, 8, 8), generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        loss = supervised(probabilities=False)([(target * 200.0 - 100).bfloat16()], target)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(-1, abs=1e-6)


def test_the_background_of_a_single_logit_scores_0() -> None:
    scores = class_scores(torch.tensor(2.0).view(1, 1, 1, 1), probabilities=False)
    assert scores.flatten().tolist() == [0, 2]


@pytest.mark.parametrize("batch_dice", [True, False])
def test_pixels_that_nnunets_loss_ignores_change_neither_it_nor_its_gradient(
    batch_dice: bool,
) -> None:
    outputs, target = levels(1)
    target[..., 8:] = 255
    loss = supervised(probabilities=False, batch_dice=batch_dice, ignore_label=255)
    value = loss(outputs, target)
    for gradient in torch.autograd.grad(value, outputs[:2], retain_graph=True):
        half_width = gradient.shape[-1] // 2
        assert gradient[..., :half_width].any()
        assert not gradient[..., half_width:].any()
    cut_outputs = [output[..., : output.shape[-1] // 2] for output in outputs]
    expected = supervised(probabilities=False, batch_dice=batch_dice)(cut_outputs, target[..., :8])
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


def class_batch(seed: int, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, classes + 1, 6, 5, generator=generator)
    return logits, torch.randint(0, classes + 1, (2, 1, 6, 5), generator=generator)


@pytest.mark.parametrize(
    ("name", "oracle"),
    [
        ("ce-dice", {"smooth_nr": 1.0, "smooth_dr": 1.0}),
        ("dice", {"smooth_nr": 100.0, "smooth_dr": 100.0, "batch": True}),
    ],
)
def test_losses_are_monais_without_the_background_in_the_dice(name, oracle):
    logits, target = class_batch(0)
    kind = DiceCELoss if name == "ce-dice" else MonaiDice
    expected = kind(include_background=False, softmax=True, to_onehot_y=True, **oracle)
    value = SoftmaxLoss(CLASS_LOSSES[name])(logits, target.to(torch.uint8))
    assert float(value) == pytest.approx(float(expected(logits, target)), rel=1e-5)


def test_cross_entropy_counts_every_pixel_of_background_too():
    logits, target = class_batch(1)
    value = SoftmaxLoss(CLASS_LOSSES["ce"])(logits, target)
    expected = torch.nn.functional.cross_entropy(logits, target[:, 0])
    assert float(value) == pytest.approx(float(expected))


@pytest.mark.parametrize(("two_valued", "several_classes"), COUNTERPARTS.items())
def test_with_one_class_both_losses_are_the_same_number(two_valued, several_classes):
    """For two scores the softmax of the second is the sigmoid of their difference."""
    logits, target = class_batch(2, classes=1)
    expected = make_loss(two_valued, probabilities=False)(logits[:, 1:] - logits[:, :1], target)
    value = SoftmaxLoss(CLASS_LOSSES[several_classes])(logits, target)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_ignored_pixels_change_neither_loss_nor_gradient_of_several_classes(name):
    logits, target = class_batch(3)
    logits = logits[:1].requires_grad_()
    ignoring = target[:1].clone()
    ignoring[..., :2] = IGNORED
    loss = SoftmaxLoss(CLASS_LOSSES[name], ignores=True)(logits, ignoring.to(torch.uint8))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert not gradient[..., :2].any()
    cut_loss = SoftmaxLoss(CLASS_LOSSES[name])(logits[..., 2:], target[:1, ..., 2:])
    assert float(loss.detach()) == pytest.approx(float(cut_loss.detach()), rel=1e-5)


def test_nnunets_loss_of_several_classes_is_over_all_resolutions():
    logits, target = class_batch(4)
    coarse = torch.nn.functional.avg_pool2d(logits, 2, ceil_mode=True)
    value = supervised()([logits, coarse, coarse], target)
    small_target = target.float()
    small_target = torch.nn.functional.interpolate(
        small_target, coarse.shape[2:], mode="nearest-exact"
    )
    single = DiceCrossEntropy()
    expected = 2 / 3 * single(logits, target) + 1 / 3 * single(coarse, small_target.long())
    assert float(value) == pytest.approx(float(expected), rel=1e-5)


def test_names_of_losses_belong_to_masks_of_one_kind():
    for name in LOSSES:
        assert loss_name(name) == name
    for name in CLASS_LOSSES:
        assert loss_name(name, 3) == name
    with pytest.raises(UsageError, match=r"(?s)`--loss bce` cannot be.*3 classes.*`--loss ce`"):
        loss_name("bce", 3)
    with pytest.raises(UsageError, match=r"(?s)several classes.*`--loss bce-dice`"):
        loss_name("CE_Dice")

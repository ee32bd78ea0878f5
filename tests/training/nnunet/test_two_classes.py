"""nnU-Net's loss from foreground scores is that from class scores."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustcli.adapters.foreground import foreground_logits
from robustcli.training.deep_supervision import DeepSupervision
from robustcli.training.nnunet.loss import DiceCrossEntropy
from robustcli.training.nnunet.two_classes import TwoClasses, class_scores


def levels(channels: int) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    outputs = [
        torch.randn(3, channels, side, side, generator=generator, dtype=torch.float32)
        for side in (16, 8, 4)
    ]
    target = torch.randint(0, 2, (3, 1, 16, 16), generator=generator, dtype=torch.uint8)
    return [output.requires_grad_() for output in outputs], target


@pytest.mark.parametrize("batch_dice", [True, False])
def test_a_network_of_two_classes_gets_nnunets_own_loss(batch_dice: bool) -> None:
    outputs, target = levels(2)
    own = DeepSupervision(DiceCrossEntropy(batch_dice=batch_dice))(outputs, target)
    expected = torch.autograd.grad(own, outputs[:2])
    ours = TwoClasses(probabilities=False, batch_dice=batch_dice)(
        [foreground_logits(output) for output in outputs], target
    )
    assert ours.item() == pytest.approx(own.item(), rel=1e-6)
    for found, gradient in zip(torch.autograd.grad(ours, outputs[:2]), expected, strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-7)


def test_probabilities_mean_what_their_logits_do() -> None:
    outputs, target = levels(1)
    logits = TwoClasses(probabilities=False)(outputs, target)
    probabilities = TwoClasses(probabilities=True)([o.sigmoid() for o in outputs], target)
    assert probabilities.item() == pytest.approx(logits.item(), rel=1e-5)


def test_a_probability_of_0_or_1_has_a_finite_loss_and_gradient() -> None:
    output = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2).requires_grad_()
    loss = TwoClasses(probabilities=True)([output], torch.tensor([1, 0]).view(1, 1, 1, 2))
    loss.backward()
    assert torch.isfinite(loss)
    assert output.grad is not None
    assert torch.isfinite(output.grad).all()


def test_perfect_is_minus_one_also_in_half_precision() -> None:
    target = torch.randint(0, 2, (2, 1, 8, 8), generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        loss = TwoClasses(probabilities=False)([(target * 200.0 - 100).bfloat16()], target)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(-1, abs=1e-6)


def test_the_background_of_a_single_logit_scores_0() -> None:
    scores = class_scores(torch.tensor(2.0).view(1, 1, 1, 1), probabilities=False)
    assert scores.flatten().tolist() == [0, 2]


@pytest.mark.parametrize("batch_dice", [True, False])
def test_ignored_pixels_change_neither_loss_nor_gradient(batch_dice: bool) -> None:
    outputs, target = levels(1)
    target[..., 8:] = 255
    loss = TwoClasses(probabilities=False, batch_dice=batch_dice, ignore_label=255)
    found = loss(outputs, target)
    for gradient in torch.autograd.grad(found, outputs[:2], retain_graph=True):
        half = gradient.shape[-1] // 2
        assert gradient[..., :half].any()
        assert not gradient[..., half:].any()
    cut = [output[..., : output.shape[-1] // 2] for output in outputs]
    expected = TwoClasses(probabilities=False, batch_dice=batch_dice)(cut, target[..., :8])
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)

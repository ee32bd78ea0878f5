"""nnU-Net's loss against its own numbers, and what follows from its definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from robustcli.training.deep_supervision import DeepSupervision, supervision_weights
from robustcli.training.nnunet.loss import (
    DiceCrossEntropy,
)
from tests.models import golden

# By hand, on two images of two pixels with p(foreground) = 3/4 everywhere.
QUARTER = torch.tensor([0.0, np.log(3.0)], dtype=torch.float64).view(1, 2, 1, 1)


def stored(name: str) -> Tensor:
    return torch.from_numpy(golden.arrays("nnunet_loss.npz")[name])


@pytest.mark.parametrize("batch_dice", [True, False])
@pytest.mark.parametrize("ignore", [None, 3])
def test_agrees_with_nnunets_numbers_and_gradients(batch_dice: bool, ignore: int | None) -> None:
    logits, target = stored("logits0").requires_grad_(), stored("target0")
    loss = DiceCrossEntropy(batch_dice=batch_dice, ignore_label=ignore)
    parts = loss.parts(logits if ignore is None else logits[:, :ignore], target)
    parts.total.backward()
    tag = f"bd{int(batch_dice)}_ign{ignore}"
    assert parts.cross_entropy.item() == pytest.approx(stored(f"{tag}_ce").item(), rel=1e-12)
    assert -parts.dice.item() == pytest.approx(stored(f"{tag}_dice").item(), rel=1e-12)
    assert parts.total.item() == pytest.approx(stored(f"{tag}_total").item(), rel=1e-12)
    assert logits.grad is not None
    assert golden.distance(logits.grad, stored(f"{tag}_grad").numpy()) <= 1e-15


class FromFile(DiceCrossEntropy):
    """The loss, with the stored targets in place of the shrunken ones: those are independent."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        level = {32: 0, 16: 1, 8: 2, 4: 3}[logits.shape[-1]]
        return super().forward(logits, stored(f"target{level}"))


def test_deep_supervision_agrees_with_nnunets_total_and_gradients() -> None:
    outputs = [stored(f"logits{i}").requires_grad_() for i in range(4)]
    total = DeepSupervision(FromFile())(outputs, stored("target0"))
    total.backward()
    assert total.item() == pytest.approx(stored("ds_total_bd1").item(), rel=1e-12)
    for i, output in enumerate(outputs[:3]):
        assert output.grad is not None
        assert golden.distance(output.grad, stored(f"ds_grad{i}").numpy()) <= 1e-15
    assert outputs[3].grad is None


def test_the_weights_are_nnunets() -> None:
    assert supervision_weights(4) == pytest.approx(stored("ds_weights").tolist())


def test_a_worked_example() -> None:
    logits = QUARTER.expand(2, 2, 1, 2)
    target = torch.tensor([[[1, 1]], [[0, 1]]])
    pooled = DiceCrossEntropy().parts(logits, target)
    # 3 pixels of foreground at 3/4, 4 pixels guessed 3/4: 2 * 9/4 / (3 + 3)
    assert pooled.dice.item() == pytest.approx(0.75, abs=1e-5)
    single = DiceCrossEntropy(batch_dice=False).parts(logits, target)
    # 2 * 3/2 / (2 + 3/2) and 2 * 3/4 / (1 + 3/2)
    assert single.dice.item() == pytest.approx((6 / 7 + 3 / 5) / 2, abs=1e-5)
    assert pooled.cross_entropy.item() == pytest.approx(-(3 * np.log(0.75) + np.log(0.25)) / 4)


def test_a_perfect_network_has_minus_one() -> None:
    target = torch.randint(0, 2, (1, 8, 8), generator=torch.Generator().manual_seed(0))
    sure = torch.stack([1 - target, target], 1).float() * 200 - 100
    assert DiceCrossEntropy()(sure, target).item() == pytest.approx(-1, abs=1e-5)


@pytest.mark.parametrize("value", [7.0, -3.0])
def test_ignored_pixels_count_nowhere(value: float) -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(2, 2, 4, 4), torch.randint(0, 2, (2, 4, 4))
    target[:, :2] = 2
    loss = DiceCrossEntropy(ignore_label=2)
    expected = loss(logits[:, :, 2:], target[:, 2:])
    other = logits.clone()
    other[:, :, :2] = value
    assert torch.allclose(loss(other, target), expected)


def test_a_batch_that_nobody_annotated_gives_a_finite_loss_without_gradient() -> None:
    logits = torch.randn(1, 2, 4, 4, requires_grad=True)
    DiceCrossEntropy(ignore_label=2)(logits, torch.full((1, 4, 4), 2)).backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_labels_of_any_whole_type(dtype: Any) -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(1, 2, 4, 4), torch.randint(0, 2, (1, 4, 4))
    assert torch.equal(
        DiceCrossEntropy()(logits, target.to(dtype)), DiceCrossEntropy()(logits, target)
    )

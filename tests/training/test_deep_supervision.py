"""Losses over several resolutions; nnU-Net's own numbers for them are in nnunet/test_loss.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.transform import resize
from torch import Tensor

from robustcli.training.deep_supervision import DeepSupervision, shrunk, supervision_weights
from robustcli.training.losses import SegmentationLoss, make_loss
from robustcli.training.nnunet.loss import DiceCrossEntropy


def fixed() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(2, 1, 8, 8), torch.randint(0, 2, (2, 1, 8, 8)).float()


def test_the_weights() -> None:
    assert supervision_weights(4) == pytest.approx((4 / 7, 2 / 7, 1 / 7, 0))
    assert supervision_weights(2) == (1.0, 0.0)
    assert supervision_weights(1) == (1.0,)


def test_levels_are_added_up() -> None:
    logits, target = fixed()
    coarse, coarsest = logits[..., ::2, ::2], logits[..., ::4, ::4]
    loss = make_loss("bce", probabilities=False)
    found = DeepSupervision(loss)([logits, coarse, coarsest], target)
    near = target[..., 1::2, 1::2]  # the nearest pixel of each 2 x 2, as nearest-exact takes it
    expected = 2 / 3 * loss(logits, target) + 1 / 3 * loss(coarse, near)
    assert found.item() == pytest.approx(expected.item(), abs=1e-6)


def test_one_output_is_the_loss_itself() -> None:
    logits, target = fixed()
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
    """Upstream shrinks them with `skimage.transform.resize`, order 0."""
    labels = np.random.default_rng(0).integers(-1, 200, (32, 32)).astype(np.int16)
    expected = resize(  # type: ignore[no-untyped-call]
        labels.astype(float), size, order=0, mode="edge", clip=True, anti_aliasing=False
    )
    target = torch.from_numpy(labels)[None]
    found = shrunk(target[:, None] if channel else target, torch.empty(1, 2, *size))
    assert found.shape == ((1, 1, *size) if channel else (1, *size))
    assert found.dtype == torch.int16
    assert np.array_equal(found.reshape(size).numpy(), expected)

"""The pooled dice of a validation pass."""

from __future__ import annotations

import math

import pytest
import torch
from torchmetrics.functional.classification import multiclass_f1_score

from robustcli.finetune.nnunet.pseudo_dice import PseudoDice


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(2, 4, 8, 8, generator=generator),
            torch.randint(0, 4, (2, 1, 8, 8), generator=generator),
        )
        for _ in range(3)
    ]


def test_is_the_f1_score_of_all_pixels_together() -> None:
    dice = PseudoDice()
    for logits, target in batches():
        dice.add(logits, target)
    guesses = torch.cat([logits.argmax(1) for logits, _ in batches()]).flatten()
    truths = torch.cat([target[:, 0] for _, target in batches()]).flatten()
    expected = multiclass_f1_score(guesses, truths, num_classes=4, average="none")[1:]
    assert dice.by_class() == pytest.approx(expected.tolist())
    assert dice.mean() == pytest.approx(expected.mean().item())


def test_ignored_pixels_do_not_count() -> None:
    logits, target = batches()[0]
    whole, part = PseudoDice(ignore_label=9), PseudoDice()
    marked = target.clone()
    marked[..., :3] = 9
    whole.add(logits, marked)
    part.add(logits[..., 3:], target[..., 3:])
    assert whole.by_class() == part.by_class()


def test_a_class_that_never_occurred_is_left_out_of_the_mean() -> None:
    logits = torch.zeros(1, 3, 2, 2)
    logits[:, 1, 0] = 5  # class 1 in the first row, class 0 below
    dice = PseudoDice()
    dice.add(logits, torch.tensor([[[1, 0], [0, 0]]]))
    first, second = dice.by_class()
    assert first == pytest.approx(2 / 3)
    assert math.isnan(second)
    assert dice.mean() == pytest.approx(2 / 3)


def test_nothing_at_all_is_not_a_number() -> None:
    assert PseudoDice().by_class() == ()
    assert math.isnan(PseudoDice().mean())
    dice = PseudoDice()
    dice.add(torch.tensor([1.0, 0.0]).view(1, 2, 1, 1), torch.zeros(1, 1, 1, dtype=torch.int64))
    assert math.isnan(dice.mean())

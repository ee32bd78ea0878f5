"""Samples are functions of seed, epoch and image."""

from __future__ import annotations

import numpy as np
import torch

from robustcli.adapters.preprocessing import Preprocessing
from robustcli.training.classification.photos import Photo
from robustcli.training.classification.samples import (
    Part,
    TrainingSamples,
    ValidationSamples,
    collate,
)

OWN = Preprocessing(resize=16, crop=16, interpolation="bilinear")
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 20, 24, 3), dtype=np.uint8)
PART = Part(["a", "b"], [Photo(pixels) for pixels in PIXELS], [1, 0])


def test_epoch_and_id_decide_and_not_the_place() -> None:
    samples = TrainingSamples(PART, OWN, "light", seed=3)
    turned = Part(["b", "a"], PART.photos[::-1], [0, 1])
    again = TrainingSamples(turned, OWN, "light", seed=3)
    assert torch.equal(samples[0, 0].image, again[0, 1].image)
    assert not torch.equal(samples[0, 0].image, samples[1, 0].image)
    other = TrainingSamples(PART, OWN, "light", seed=4)
    assert not torch.equal(samples[0, 0].image, other[0, 0].image)


def test_without_augmentation_training_sees_what_evaluation_sees() -> None:
    plain, seen = TrainingSamples(PART, OWN, "none", seed=3), ValidationSamples(PART, OWN)
    expected = torch.from_numpy(OWN.apply(PIXELS[1]).transpose(2, 0, 1).copy())
    assert torch.equal(plain[5, 1].image, seen[1].image)
    assert torch.equal(seen[1].image, expected)


def test_a_batch_keeps_ids_and_classes_together() -> None:
    seen = ValidationSamples(PART, OWN)
    batch = collate([seen[1], seen[0]])
    assert batch.images.shape == (2, 3, 16, 16)
    assert batch.ids == ["b", "a"]
    assert (batch.targets.tolist(), batch.numbers.tolist()) == ([0, 1], [1, 0])

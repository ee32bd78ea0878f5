"""Parts of the record."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from robustcli.training.cache import Decoded
from robustcli.training.run_record import LOGIT_HALF, decision_words, split_record, threshold
from robustcli.training.train_plan import plan_training
from tests.training.pairs import decoded, write_pairs
from tests.training.runs import Heard, small


def test_a_logit_of_a_half_as_a_probability(tmp_path: Path) -> None:
    assert pytest.approx(1 / (1 + math.exp(-0.5)), abs=1e-15) == LOGIT_HALF
    data = write_pairs(tmp_path / "data", 10)
    recipe = plan_training(small(data, tmp_path / "run", protocol="paper"), Heard()).recipe
    assert threshold(recipe, probabilities=False) == LOGIT_HALF
    assert threshold(recipe, probabilities=True) == 0.5
    assert threshold(replace(recipe, decision="probability"), probabilities=False) == 0.5


def test_the_decision_in_words() -> None:
    assert decision_words(0.5) == "probability >= 0.5"
    assert decision_words(LOGIT_HALF) == "logit >= 0.5, that is probability >= 0.622"


def test_a_part_counts_images_groups_and_empty_masks(tmp_path: Path) -> None:
    part = plan_training(
        small(write_pairs(tmp_path / "data", 10), tmp_path / "run"), Heard()
    ).splits.train
    pixels = decoded(8)
    pixels[3] = Decoded(pixels[3].image, np.zeros_like(pixels[3].mask))
    counted = split_record(part, pixels)
    assert (counted.images, counted.groups, counted.empty) == (8, 8, 1)

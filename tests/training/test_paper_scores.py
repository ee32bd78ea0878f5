"""The paper's dice and IoU against its own numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from robustcli.training.paper import paper_rows
from robustcli.training.paper_scores import paper_scores
from tests.training.test_losses import GOLDEN, fixed

needs_golden = pytest.mark.skipif(not GOLDEN.is_file(), reason="needs ../shared")


def golden() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(GOLDEN).read_text())
    return found


def rows(said: Tensor, target: Tensor) -> pd.DataFrame:
    ids = [f"{i}" for i in range(len(said))]
    return pd.DataFrame(list(paper_rows(ids, said, target)))


@needs_golden
def test_a_batch_pooled() -> None:
    logits, target = fixed()
    by_logit = paper_scores(rows(logits >= 0.5, target), 4)
    assert by_logit.dice == pytest.approx(golden()["dice_batch[logit>=0.5]"], abs=1e-6)
    assert by_logit.iou == pytest.approx(golden()["iou_batch[logit>=0.5]"], abs=1e-6)
    by_probability = paper_scores(rows(logits.sigmoid() >= 0.5, target), 16)
    assert by_probability.dice == pytest.approx(golden()["dice_batch[prob>=0.5]"], abs=1e-6)
    assert by_probability.iou == pytest.approx(golden()["iou_batch[prob>=0.5]"], abs=1e-6)


@needs_golden
def test_batches_of_one_and_of_three_and_one() -> None:
    logits, target = fixed()
    table = rows(logits >= 0.5, target)
    each = golden()["dice_each[logit>=0.5]"]
    assert paper_scores(table, 1).dice == pytest.approx(np.mean(each), abs=1e-6)
    assert paper_scores(table, 1).iou == pytest.approx(
        np.mean(golden()["iou_each[logit>=0.5]"]), abs=1e-6
    )
    first, last = paper_scores(table[:3], 3), paper_scores(table[3:], 3)
    both = paper_scores(table, 3)
    assert both.batches == 2
    assert both.dice == pytest.approx((first.dice + last.dice) / 2)  # the smaller counts as much


@needs_golden
def test_a_soft_mask_counts_softly_for_dice_and_whole_for_iou() -> None:
    logits, target = fixed()
    found = paper_scores(rows(logits >= 0.5, 0.7 * target), 4)
    key = "(logit>=0.5, 0.7*target)"
    assert found.dice == pytest.approx(golden()[f"dice_softmask{key}"], abs=1e-6)
    assert found.iou == pytest.approx(golden()[f"iou_softmask{key}"], abs=1e-6)


def test_a_batch_without_anything_has_no_dice_and_an_iou_of_zero() -> None:
    nothing = torch.zeros(2, 1, 4, 4)
    only = paper_scores(rows(nothing.bool(), nothing), 2)
    assert math.isnan(only.dice)
    assert (only.iou, only.batches, only.undefined) == (0.0, 1, 1)
    full = torch.ones(2, 1, 4, 4)
    mixed = paper_scores(pd.concat([rows(nothing.bool(), nothing), rows(full.bool(), full)]), 2)
    assert mixed == (1.0, 0.5, 2, 1)

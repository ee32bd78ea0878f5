"""What a classifier's batch holds, its rows, and its forward passes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import softmax

from robustcli.adapters.classifier import Classifier, Predictions
from robustcli.adapters.preprocessing import Preprocessing
from robustcli.core.errors import RunError
from robustcli.data.decode import decode
from robustcli.data.sources import Classes, open_dataset
from robustcli.tasks.base import Batch, Forward
from robustcli.tasks.classification import ClassRows, Views
from robustcli.transforms.base import CLEAN
from robustcli.transforms.registry import image_seed, resolve_transforms
from tests.evaluation.photos import CROP24, CROP32, make_photos, source


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = make_photos(tmp_path_factory.mktemp("photos"))
    return open_dataset(str(folder), Classes("cifar10"))


def test_what_is_sent_is_transform_then_resize(index, tmp_path):
    batch = next(b for b in source(index, tmp_path, "affine") if b.cell.transform == "affine")
    ref = index.samples[0]
    seed = image_seed(0, "affine", 0, ref.image_id)
    affine = resolve_transforms(["affine"], None)[1].transform
    expected = CROP32.apply(affine.apply(decode(ref.image), seed=seed, severity=0))
    assert np.array_equal(batch.inputs.views[CROP32.view][0].numpy().transpose(1, 2, 0), expected)


def test_at_crop_is_resize_then_transform_and_measures_each_view(index, tmp_path):
    batches = list(source(index, tmp_path, "affine", at_crop=True))
    batch = next(b for b in batches if b.cell.transform == "affine")
    ref = index.samples[0]
    seed = image_seed(0, "affine", 0, ref.image_id)
    affine = resolve_transforms(["affine"], None)[1].transform
    expected = affine.apply(CROP24.apply(decode(ref.image)), seed=seed, severity=0)
    assert np.array_equal(batch.inputs.views[CROP24.view][0].numpy().transpose(1, 2, 0), expected)
    assert set(batch.measures) == {CROP32.view, CROP24.view}


# Answers among some classes, and several true classes.


LOGITS = torch.tensor([[2.0, 1.0, 4.0, 0.0, 3.0, -1.0, 0.5], [0.0, 5.0, 1.0, 2.0, 2.0, 9.0, 3.0]])


def classifier() -> Classifier:
    """A model whose logits are LOGITS of the row that its image's first pixel says."""

    class Network(torch.nn.Module):
        num_classes = 7

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return LOGITS[(images[:, 0, 0, 0] * 255).round().long()]

    preprocessing = Preprocessing(None, 1, "nearest", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return Classifier(Network().eval(), preprocessing, SimpleNamespace(name="fixed"))


IMAGES = torch.tensor([0, 1], dtype=torch.uint8)[:, None, None, None].expand(2, 3, 1, 1)


def test_masked_answers_are_the_softmax_over_the_logits_that_are_left():
    kept = [0, 3, 4, 6]
    made = classifier().predict(IMAGES, torch.tensor([3, 0]), answers=kept)
    left = LOGITS[:, kept].numpy().astype(np.float64)
    share = softmax(left, axis=1)
    order = np.argsort(-left, axis=1)
    assert made.top5.tolist() == np.array(kept)[order].tolist()  # four classes, not five
    np.testing.assert_allclose(made.probability, share.max(1), rtol=1e-6)
    np.testing.assert_allclose(made.target_probability, [share[0, 1], share[1, 0]], rtol=1e-6)
    assert made.target.tolist() == [3, 0]


def test_an_answer_is_right_where_it_is_any_of_the_true_classes():
    targets = torch.tensor([[0, 2, 3], [0, 4, 4]])
    made = classifier().predict(IMAGES, targets)
    share = softmax(LOGITS.numpy().astype(np.float64), axis=1)
    assert made.top5[:, 0].tolist() == [2, 5]
    assert made.target.tolist() == [2, 4]  # right, and of the wrong answer the best-ranked one
    np.testing.assert_allclose(made.target_probability, [share[0, 2], share[1, 4]], rtol=1e-6)


def test_rows_hold_the_true_class_that_the_model_ranks_highest():
    views = Views([0, 3], [(2,), ()], {classifier().preprocessing.view: IMAGES})
    batch = Batch(0, 0, 2, CLEAN, ("fixed",), ["a", "b"], views, {}, [])
    rows = ClassRows(classifier()).rows(batch)
    assert [(row["image_id"], row["target"], row["prediction"]) for row in rows] == [
        ("a", 2, 2), ("b", 3, 5),
    ]  # fmt: skip


# Forward passes that do not fit into memory.


class Small:
    """A classifier whose memory holds `most` images; it remembers the sizes it was asked for."""

    def __init__(self, most: int, error: Exception) -> None:
        self.most, self.error, self.sizes = most, error, []
        self.facts, self.device = SimpleNamespace(name="small"), torch.device("cpu")

    def forward(self) -> Forward:
        return Forward(self)

    def predict(self, views: torch.Tensor, targets: torch.Tensor) -> Predictions:
        self.sizes.append(len(views))
        if len(views) > self.most:
            raise self.error
        top5 = targets[:, None].to(torch.int32).numpy()
        chance = views[:, 0, 0, 0].numpy().astype(np.float32)
        return Predictions(top5, chance, targets.numpy(), chance)


VIEWS = torch.arange(11, dtype=torch.uint8)[:, None, None, None].expand(11, 3, 2, 2)
TARGETS = torch.arange(11)


OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
)


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_the_batch_is_halved_until_it_fits_and_stays_in_order(error):
    small = Small(3, error)
    forward = small.forward()
    answers = forward(VIEWS, TARGETS)
    assert [n for a in answers for n in a.top5[:, 0].tolist()] == list(range(11))
    assert [n for a in answers for n in a.probability.tolist()] == list(range(11))
    assert small.sizes == [11, 5, 2, 2, 2, 2, 2, 1]
    small.sizes.clear()
    forward(VIEWS, TARGETS)
    assert max(small.sizes) == 2, "the size that fits is remembered"


def test_not_even_one_image_fits():
    forward = Small(0, torch.OutOfMemoryError("CUDA out of memory")).forward()
    with pytest.raises(RunError, match="`small` does not fit into the memory of cpu"):
        forward(VIEWS, TARGETS)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shapes differ"):
        Small(0, RuntimeError("shapes differ")).forward()(VIEWS, TARGETS)


def test_cost_counts_images_and_seconds():
    forward = Small(99, MemoryError()).forward()
    forward(VIEWS, TARGETS)
    forward(VIEWS, TARGETS)
    assert forward.cost.images == 22
    assert forward.cost.seconds > 0

"""Patches, stages and batches as nnU-Net's planner finds them."""

from __future__ import annotations

import pytest

from robustcli.adapters.nnunet_topology import batch_size, fitted, topology

FEATURES = (32, 512)


# Source: the specification's table of plans simulated with nnU-Net's own planner. The batch depends
# a little on the number of classes, which the table does not give: the abdomen's 14 for 320 x 320.
@pytest.mark.parametrize(
    ("shape", "classes", "patch", "batch", "stages"),
    [
        ((512, 512), 3, (512, 512), 12, 8),
        ((320, 320), 14, (320, 320), 30, 7),
        ((540, 960), 8, (384, 640), 13, 7),
        ((256, 256), 3, (256, 256), 49, 7),
        ((128, 128), 3, (128, 128), 198, 6),
    ],
)
def test_agrees_with_nnunets_planner(
    shape: tuple[int, int], classes: int, patch: tuple[int, int], batch: int, stages: int
) -> None:
    found = fitted(shape, shape, classes=classes, features=FEATURES)
    assert found.patch == patch
    assert len(found.strides) == stages
    assert batch_size(found, shape, 10**6, classes=classes, features=FEATURES) == batch


def test_a_batch_is_at_most_a_twentieth_of_all_pixels_and_at_least_two() -> None:
    found = fitted((128, 128), (128, 128), classes=2, features=FEATURES)
    sizes = [
        batch_size(found, (128, 128), images, classes=2, features=FEATURES)
        for images in (500, 100, 10)
    ]
    assert sizes == [25, 5, 2]  # 25 is the table's, of 500 images


@pytest.mark.parametrize(
    ("size", "patch", "strides"),
    [
        ((8, 8), (8, 8), [(1, 1), (2, 2)]),
        ((7, 7), (7, 7), [(1, 1)]),
        ((9, 8), (10, 8), [(1, 1), (2, 2)]),
        ((7, 11), (7, 11), [(1, 1)]),  # one axis alone needs 12
        ((7, 12), (7, 12), [(1, 1), (1, 2)]),
        ((24, 12), (24, 12), [(1, 1), (2, 2), (2, 1)]),
        ((16, 64), (16, 64), [(1, 1), (2, 2), (2, 2), (1, 2)]),
        ((500, 500), (512, 512), [(1, 1)] + [(2, 2)] * 6 + [(2, 2)]),
    ],
)
def test_edges_are_halved_down_to_four(
    size: tuple[int, int], patch: tuple[int, int], strides: list[tuple[int, int]]
) -> None:
    found = topology(size)
    assert (found.patch, list(found.strides)) == (patch, strides)
    assert found.patch[0] % found.steps[0] == found.patch[1] % found.steps[1] == 0

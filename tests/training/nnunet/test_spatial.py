"""Rotation and scaling against SciPy, and how often they happen."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform

from robustcli.training.nnunet.spatial import TurnAndScale, largest_angle

SIZE, PATCH = (56, 61), (48, 52)


@pytest.mark.parametrize(
    ("patch", "degrees"), [((512, 512), 180), ((320, 480), 180), ((384, 640), 15), ((64, 16), 15)]
)
def test_long_patches_are_turned_a_little_only(patch: tuple[int, int], degrees: float) -> None:
    assert largest_angle(patch) == degrees


class Told(np.random.RandomState):
    """A generator that says what it is told."""

    def __init__(self, *says: float) -> None:
        super().__init__(0)
        self.says = iter(says)

    def rand(self, *_: int) -> float:  # type: ignore[override]
        return next(self.says)

    def uniform(self, *_: object) -> float:  # type: ignore[override]
        return next(self.says)


def moved(image: torch.Tensor, *says: float) -> tuple[torch.Tensor, torch.Tensor]:
    step = TurnAndScale(PATCH)
    step.set_random_state(state=Told(*says))
    return step(image, image)


@pytest.mark.parametrize(("angle", "scale"), [(0.7, None), (None, 1.3), (-2.5, 0.75)])
def test_is_one_resampling_about_the_middle(angle: float | None, scale: float | None) -> None:
    """As SciPy's: a cubic spline for the image, linear for the labels, 0 outside."""
    image = torch.randn(2, *SIZE, generator=torch.Generator().manual_seed(0))
    turn = (0.9,) if angle is None else (0.1, angle)
    zoom = (0.9,) if scale is None else (0.1, 0.3, scale)
    pixels, labels = moved(image, *turn, *zoom)
    cos, sin = math.cos(angle or 0), math.sin(angle or 0)
    matrix = np.array([[cos, -sin], [sin, cos]]) * (scale or 1)
    offset = (np.array(SIZE) - 1) / 2 - matrix @ (np.array(PATCH) - 1) / 2
    for channel in range(2):
        for found, order, mode in ((pixels, 3, "constant"), (labels, 1, "grid-constant")):
            expected = affine_transform(
                image[channel].numpy(), matrix, offset, PATCH, order=order, mode=mode
            )
            assert np.abs(found[channel].numpy() - expected).max() < 1e-3


def test_what_is_seen_grows_with_the_scale() -> None:
    image = torch.zeros(1, *SIZE)
    image[:, 18:38, 20:41] = 1
    smaller, larger = (moved(image, 0.9, 0.1, 0.3, scale)[1].sum() for scale in (1.4, 0.7))
    assert smaller == pytest.approx(420 / 1.4**2, rel=0.02)
    assert larger == pytest.approx(420 / 0.7**2, rel=0.02)


def test_else_it_is_the_middle_untouched() -> None:
    image = torch.randn(1, *SIZE)
    assert torch.equal(moved(image, 0.9, 0.9)[0], image[:, 4:52, 4:56])


def test_each_happens_to_one_in_five_by_itself_and_within_its_limits() -> None:
    image = torch.zeros(1, 64, 16)
    seen: list[tuple[float, float]] = []

    class Spy(TurnAndScale):
        def _happens(self) -> bool:
            happens = super()._happens()
            chances.append(happens)
            return happens

    chances: list[bool] = []
    step = Spy((64, 16))
    step.set_random_state(seed=0)
    for _ in range(1000):
        step(image, image)
        seen.append((float(chances[-2]), float(chances[-1])))
    turned, scaled = np.array(seen).T
    assert 0.16 < turned.mean() < 0.24
    assert 0.16 < scaled.mean() < 0.24
    assert 0.02 < (turned * scaled).mean() < 0.07
    scales = np.array([step._scale() for _ in range(2000)])
    assert scales.min() == pytest.approx(0.7, abs=0.01)
    assert scales.max() == pytest.approx(1.4, abs=0.01)
    assert 0.46 < (scales < 1).mean() < 0.54

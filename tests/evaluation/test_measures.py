"""PSNR, digest and change of pixels, against scikit-image and by hand."""

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio

from robustcli.evaluation.measures import mean_squared_error, measure

RNG = np.random.default_rng(0)
CLEAN = RNG.integers(0, 256, (31, 17, 3), np.uint8)


def test_psnr_is_that_of_scikit_image():
    other = RNG.integers(0, 256, CLEAN.shape, np.uint8)
    expected = peak_signal_noise_ratio(CLEAN, other, data_range=255)
    assert measure(CLEAN, other).psnr_db == pytest.approx(expected, rel=1e-12)


def test_extreme_differences_do_not_overflow():
    black, white = np.zeros((9, 9, 3), np.uint8), np.full((9, 9, 3), 255, np.uint8)
    assert mean_squared_error(black, white) == 255**2
    assert measure(black, white).psnr_db == 0.0


def test_unchanged_pixels_have_infinite_psnr():
    found = measure(CLEAN, CLEAN.copy())
    assert found.psnr_db == np.inf
    assert not found.changed


def test_one_changed_value_counts_as_changed():
    other = CLEAN.copy()
    other[3, 4, 1] ^= 1
    assert measure(CLEAN, other).changed
    assert measure(CLEAN, other).digest != measure(CLEAN, CLEAN).digest


def test_another_size_has_no_psnr():
    found = measure(CLEAN, CLEAN[:-1])
    assert np.isnan(found.psnr_db)
    assert found.changed


def test_digest_depends_on_shape_and_not_on_memory_order():
    assert measure(CLEAN, CLEAN.reshape(17, 31, 3)).digest != measure(CLEAN, CLEAN).digest
    fortran = np.asfortranarray(CLEAN)
    assert measure(CLEAN, fortran).digest == measure(CLEAN, CLEAN).digest

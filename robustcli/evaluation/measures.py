"""What a transform did to the pixels of one image."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Measures:
    """Digest of the transformed pixels, PSNR in dB against the clean ones, whether any changed.

    PSNR is infinite for unchanged pixels and NaN where the transform changed the size.
    """

    digest: str
    psnr_db: float
    changed: bool


def measure(clean: NDArray[np.uint8], transformed: NDArray[np.uint8]) -> Measures:
    """The measures of `transformed` (H, W, 3) against `clean`."""
    digest = hashlib.blake2b(repr(transformed.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(transformed).data)
    if transformed.shape != clean.shape:
        return Measures(digest.hexdigest(), float("nan"), True)
    error = mean_squared_error(clean, transformed)
    psnr = float("inf") if error == 0 else float(10 * np.log10(255**2 / error))
    return Measures(digest.hexdigest(), psnr, error > 0)


def mean_squared_error(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Mean of (a - b)**2 over all values, exact: the sum is taken in integers."""
    difference = np.subtract(a, b, dtype=np.int16).ravel().astype(np.int32)
    return float(np.square(difference).sum(dtype=np.int64)) / difference.size

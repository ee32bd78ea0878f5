"""The whole image is normalised, by its own numbers."""

from __future__ import annotations

import numpy as np
import pytest

from robustcli.adapters.nnunet_inference import NnUNetInference
from robustcli.adapters.nnunet_normalise import Channel
from robustcli.core.errors import UsageError

IMAGE = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)


def test_each_channel_has_its_own_way() -> None:
    channels = (Channel(), Channel("rgb_to_0_1"), Channel("none"))
    found = NnUNetInference(channels).normalised(IMAGE)
    assert (found.shape, found.dtype) == ((9, 7, 3), np.float32)
    red = IMAGE[..., 0].astype(float)
    np.testing.assert_allclose(found[..., 0], (red - red.mean()) / red.std(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[..., 1], IMAGE[..., 1] / 255, rtol=1e-6)
    np.testing.assert_array_equal(found[..., 2], IMAGE[..., 2])


def test_another_number_of_channels_is_refused() -> None:
    with pytest.raises(UsageError, match="The image has 3 channels"):
        NnUNetInference((Channel(),)).normalised(IMAGE)

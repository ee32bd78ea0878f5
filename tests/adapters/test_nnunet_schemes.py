"""The names of normalisations."""

from __future__ import annotations

import pytest

from robustcli.adapters.nnunet_normalise import SCHEMES
from robustcli.adapters.nnunet_schemes import scheme_of_channel, scheme_of_class
from robustcli.core.errors import UsageError


def test_the_names_that_plans_and_data_sets_use() -> None:
    classes = ["ZScore", "CT", "RescaleTo01", "RGBTo01", "No"]
    found = [scheme_of_class(f"{name}Normalization") for name in classes]
    assert found == ["zscore", "ct", "rescale_0_1", "rgb_to_0_1", "none"]
    names = ["R", "MR", "T2w", "CT", "noNorm", "rgb_to_0_1", "rescale_to_0_1", "zscore"]
    assert [scheme_of_channel(name) for name in names] == [
        *("zscore", "zscore", "zscore", "ct", "none", "rgb_to_0_1", "rescale_0_1", "zscore")
    ]
    assert set(found) == set(SCHEMES)


def test_an_unknown_class() -> None:
    with pytest.raises(UsageError, match="No normalisation is called `MyNormalization`"):
        scheme_of_class("MyNormalization")

"""Sizes that a network refuses."""

import pytest
import torch

from robustcli.core.errors import UsageError
from robustcli.models.sizes import check_multiple


def test_multiples_pass():
    check_multiple(torch.zeros(1, 1, 32, 48), (32, 16), model="m")


@pytest.mark.parametrize(("height", "width"), [(31, 48), (32, 40)])
def test_each_axis_is_checked_against_its_own_step(height, width):
    with pytest.raises(UsageError, match=rf"(?s){height} x {width} pixels; `m`.*of 32 and 16.*pad"):
        check_multiple(torch.zeros(1, 1, height, width), (32, 16), model="m")

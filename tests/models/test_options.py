"""Changes to a configuration, checked by name."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from robustcli.core.errors import UsageError
from robustcli.models.options import changed, check_multiple


@dataclass(frozen=True)
class Config:
    widths: tuple[int, ...] = (1, 2)
    depth: int = 3


def test_named_fields_change_and_the_rest_stays():
    own = Config()
    assert changed(own, {"depth": 5}, model="m") == Config(depth=5)
    assert own == Config()


def test_lists_become_tuples_at_every_level():
    assert changed(Config(), {"widths": [[1, 2], 3]}, model="m").widths == ((1, 2), 3)


def test_an_unknown_name_is_told_with_the_nearest_and_all():
    with pytest.raises(UsageError, match=r"(?s)`m` has no option `dept`.*`depth`\?.*widths, depth"):
        changed(Config(), {"dept": 5}, model="m")
    with pytest.raises(UsageError, match=r"(?s)no option `zzz`\.\nIts options"):
        changed(Config(), {"zzz": 5}, model="m")


def test_multiples_pass():
    check_multiple(torch.zeros(1, 1, 32, 48), (32, 16), model="m")


@pytest.mark.parametrize(("height", "width"), [(31, 48), (32, 40)])
def test_each_axis_is_checked_against_its_own_step(height, width):
    with pytest.raises(UsageError, match=rf"(?s){height} x {width} pixels; `m`.*of 32 and 16.*pad"):
        check_multiple(torch.zeros(1, 1, height, width), (32, 16), model="m")

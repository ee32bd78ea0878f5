from __future__ import annotations

import pytest

from robustcli.core.errors import UsageError
from robustcli.transforms.imagenet_c import IMAGENET_C
from robustcli.transforms.paper21 import PAPER21
from robustcli.transforms.selection import cells_of_group, cells_of_one

FLIP = next(one for one in PAPER21 if one.name == "fliplr")
BLUR = next(one for one in PAPER21 if one.name == "gaussian_blur")
FOG = next(one for one in IMAGENET_C if one.corruption == "fog")


def test_without_a_wish_severity_0_or_else_all() -> None:
    assert cells_of_one(BLUR, ()) == [("gaussian_blur", 0)]
    assert cells_of_one(FOG, ()) == [("c_fog", severity) for severity in (1, 2, 3, 4, 5)]


def test_a_named_transform_takes_every_wish() -> None:
    assert cells_of_one(BLUR, (0, 3)) == [("gaussian_blur", 0), ("gaussian_blur", 3)]


def test_a_named_transform_must_have_each() -> None:
    with pytest.raises(UsageError, match=r"`fliplr` has no severity 3.\nIt has one strength only"):
        cells_of_one(FLIP, (0, 3))


def test_in_a_group_each_takes_what_it_has() -> None:
    assert cells_of_group((FLIP, BLUR, FOG), (0, 5), "all") == [
        ("fliplr", 0),
        ("gaussian_blur", 0),
        ("gaussian_blur", 5),
        ("c_fog", 5),
    ]


def test_in_a_group_a_severity_must_be_somewhere() -> None:
    with pytest.raises(UsageError, match=r"No transform of `f\*` has severity 9.\nThey have 0, 1"):
        cells_of_group((FLIP, FOG), (9,), "f*")


def test_in_a_group_nothing_is_left_out_silently() -> None:
    with pytest.raises(UsageError, match="`c_fog` has no severity 0"):
        cells_of_group((FLIP, FOG), (0,), "f*")

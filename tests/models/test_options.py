"""Changes to a configuration, checked by name."""

from dataclasses import dataclass

import pytest

from robustcli.core.errors import UsageError
from robustcli.models.options import changed


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

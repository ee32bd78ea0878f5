"""From a downloaded archive to a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from robustcli.core.errors import RunError
from robustcli.data.datasets import DATASETS
from robustcli.data.tar import list_tar
from robustcli.data.unpack import unpack

SAMPLE = replace(DATASETS[1], images=2)
NAMES = ["top/n01440764_tench.JPEG", "top/n01494475_hammerhead.JPEG"]


def test_the_tar_takes_the_place_of_the_download(
    make_tar: Callable[..., Path], tmp_path: Path
) -> None:
    packed = make_tar(NAMES, "archive.tar.gz")
    unpack(SAMPLE, packed, tmp_path / "set.tar")
    assert not packed.exists()
    assert len(list_tar(tmp_path / "set.tar").entries) == 2


@pytest.mark.parametrize(
    ("names", "cut", "message"),
    [
        (NAMES[:1], None, "Expected an archive of 2 images, but it holds 1 images"),
        (NAMES, 200, "Expected an archive of 2 images, but it is damaged"),
    ],
)
def test_something_else_is_thrown_away(
    make_tar: Callable[..., Path], tmp_path: Path, names: list[str], cut: int | None, message: str
) -> None:
    packed = make_tar(names, "archive.tar.gz")
    packed.write_bytes(packed.read_bytes()[:cut])
    remembered = tmp_path / "archive.tar.gz.sha256"
    remembered.touch()
    with pytest.raises(RunError, match=message):
        unpack(SAMPLE, packed, tmp_path / "set.tar")
    assert not packed.exists()
    assert not remembered.exists()
    assert not (tmp_path / "set.tar").exists()

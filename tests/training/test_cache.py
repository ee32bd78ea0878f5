"""Pixels decoded once: in memory or mapped, the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robustcli.core.errors import RunError, UsageError
from robustcli.data.sources import Masks, open_dataset
from robustcli.training import cache
from robustcli.training.cache import decode_masked, decoded_once
from tests.training.pairs import disc, write_pairs

MASKS = Masks(surveyed=False)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = write_pairs(tmp_path / "data", 3)
    image, mask = disc(99, 20, 50)
    Image.fromarray(image).save(folder / "images" / "odd.png")
    Image.fromarray(mask * 255).save(folder / "masks" / "odd.png")
    return folder


@pytest.mark.parametrize("budget", [None, 0, 32 * 32 * 4])
def test_the_pixels_are_those_of_the_files(data: Path, tmp_path: Path, budget: int | None) -> None:
    pairs = open_dataset(str(data), MASKS).samples
    with decoded_once(pairs, tmp_path / "cache", decode_masked, budget=budget) as found:
        mapped = [isinstance(one.image.base, np.memmap) for one in found]
        assert set(mapped) == {budget is not None}
        for pair, one in zip(pairs, found, strict=True):
            image = np.asarray(Image.open(pair.image.path))
            mask = np.asarray(Image.open(pair.mask.path))
            assert np.array_equal(one.image, image)
            assert np.array_equal(one.mask * 255, mask)
    assert not (tmp_path / "cache").exists()


def test_the_mapped_file_goes_away_after_an_error_too(data: Path, tmp_path: Path) -> None:
    pairs = open_dataset(str(data), MASKS).samples
    context = decoded_once(pairs, tmp_path / "cache", decode_masked, budget=0)
    context.__enter__()
    assert list((tmp_path / "cache").iterdir())
    error = KeyError()
    assert not context.__exit__(KeyError, error, None)
    assert not (tmp_path / "cache").exists()


def test_a_damaged_file_is_named(data: Path, tmp_path: Path) -> None:
    pairs = open_dataset(str(data), MASKS).samples
    (data / "images" / "001.png").write_bytes(b"\x89PNG no more")
    with (
        pytest.raises(RunError, match=r"The pair `.*001.*` cannot be read"),
        decoded_once(pairs, tmp_path / "cache", decode_masked),
    ):
        pass


def test_a_mask_of_another_size_is_refused(data: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(data / "masks" / "001.png")
    with (
        pytest.raises(UsageError, match="differ in size"),
        decoded_once(
            open_dataset(str(data), MASKS).samples,
            tmp_path / "cache",
            decode_masked,
        ),
    ):
        pass


def test_a_full_disk_is_told(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.write_text("a file where the folder should be")
    with (
        pytest.raises(RunError, match="Cannot write"),
        decoded_once(open_dataset(str(data), MASKS).samples, folder, decode_masked, budget=0),
    ):
        pass


def test_processes_share_the_memory(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = open_dataset(str(data), MASKS).samples
    needed = 3 * 32 * 32 * 4 + 20 * 50 * 4
    monkeypatch.setattr(cache, "available_bytes", lambda: 2 * needed)
    for processes, mapped in ((1, False), (2, True)):
        with decoded_once(pairs, tmp_path / "cache", decode_masked, processes=processes) as found:
            assert isinstance(found[0].image.base, np.memmap) == mapped

"""Named data sets: where downloads are kept, and what the bundled sets contain."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from collections import Counter, defaultdict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from robustcli.core.errors import UsageError
from robustcli.data.masks import decode_pair
from robustcli.data.named_datasets import (
    DATASETS,
    data_home,
    find_named,
    installed,
    require_tar,
    tar_path,
)
from robustcli.data.sources import Classes, Masks, groups_file, open_dataset
from robustcli.data.splits import split_dataset
from tests.data.sets import load_recipe


def test_names_are_spelling_tolerant() -> None:
    dataset = find_named("CIFAR10_mini")
    assert dataset is not None
    assert dataset.name == "cifar10-mini"
    assert find_named("nothing") is None


def test_bundled_is_installed_and_the_other_is_not() -> None:
    assert installed("cifar10-mini") is not None
    assert installed("imagenet-sample") is None
    with pytest.raises(UsageError, match="Did you mean `imagenet-sample`"):
        installed("imagenet-samples")


def test_one_default_a_label_space() -> None:
    spaces = Counter(d.label_space for d in DATASETS if d.default_for)
    assert set(spaces.values()) == {1}


def test_what_is_missing_says_how_to_fetch_it() -> None:
    dataset = find_named("imagenet-sample")
    assert dataset is not None
    with pytest.raises(UsageError, match=r"not on this machine\.\n.*\n.*`robust fetch imagenet-sa"):
        require_tar(dataset)


def test_cifar10_mini_is_small_and_stratified() -> None:
    index = open_dataset("cifar10-mini", Classes("cifar10"))
    assert index.demonstration
    assert len(index.samples) == DATASETS[0].images == index.available
    assert set(Counter(image.target for image in index.samples).values()) == {96}
    assert tar_path(DATASETS[0]).stat().st_size < 1_500_000


def test_cifar10_mini_holds_test_images_with_their_bytes_unchanged(shared: Path) -> None:
    originals = {}
    with tarfile.open(shared / "cifar10_jpeg" / "test.tar.gz") as archive:
        for member in archive:
            if file := archive.extractfile(member):
                originals[member.name.removeprefix("test/")] = file.read()
    with tarfile.open(tar_path(DATASETS[0])) as archive:
        for member in archive:
            file = archive.extractfile(member)
            assert file is not None
            content = file.read()
            assert content == originals[member.name]
            assert Image.open(io.BytesIO(content)).size == (32, 32)
            assert (member.mtime, member.uid, member.uname) == (0, 0, "")


@pytest.mark.slow  # two seconds; the test above compares the images with their originals
def test_the_recipe_makes_the_asset_again_byte_by_byte(shared: Path) -> None:
    made = load_recipe("make_cifar10_mini").build(shared / "cifar10_jpeg" / "test.tar.gz")
    assert made == tar_path(DATASETS[0]).read_bytes()


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("named_datasets", ("torch", "numpy", "pandas", "pyarrow", "PIL", "urllib.request")),
        ("download", ("torch", "numpy", "pandas", "pyarrow", "PIL", "urllib.request")),
        ("sources", ("torch", "numpy", "pandas", "pyarrow", "PIL", "urllib.request")),
        ("decode", ("torch", "pandas", "pyarrow", "urllib.request")),
    ],
)
def test_importing_takes_nothing_heavy_along(module: str, heavy: tuple[str, ...]) -> None:
    code = f"import sys, robustcli.data.{module}; print(*[m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_data_home_is_that_of_the_environment_or_a_cache_of_the_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ROBUST_HOME", str(tmp_path))
    assert data_home() == tmp_path
    monkeypatch.delenv("ROBUST_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data_home().name == "robust"
    assert not data_home().exists()


# The bundled pairs: complete, faithful to their source, and grouped by photo.


MASKS = Masks(surveyed=False)


def _asset() -> Path:
    dataset = find_named("nuclei-mini")
    assert dataset is not None
    return tar_path(dataset)


def test_it_is_small_and_whole() -> None:
    index = open_dataset("nuclei-mini", MASKS)
    assert (len(index.samples), len(index.groups), index.grouping) == (194, 144, "photo")
    assert _asset().stat().st_size + groups_file(_asset()).stat().st_size < 2_500_000
    assert {pair.image.size + pair.mask.size > 0 for pair in index.samples} == {True}


def test_one_kind_can_be_taken() -> None:
    kinds = {
        name: open_dataset(f"nuclei-mini:{name}", MASKS) for name in ("fluorescence", "stained")
    }
    counts = {name: (len(kind.samples), len(kind.groups)) for name, kind in kinds.items()}
    assert counts == {"fluorescence": (160, 118), "stained": (34, 26)}
    assert kinds["stained"].name == "nuclei-mini:stained"
    assert split_dataset(kinds["stained"], seed=0).test.samples


def test_kinds_look_like_their_names_and_pairs_like_their_originals(shared: Path) -> None:
    """Of every fourth pair; `test_the_recipe_makes_the_asset_again` covers all."""
    decibels = []
    for pair in open_dataset("nuclei-mini", MASKS).samples[::4]:
        image, mask = decode_pair(pair)
        coloured = bool((image.max(axis=2) - image.min(axis=2)).mean() > 5)
        assert coloured == pair.image_id.startswith("stained/")
        assert (image.mean() > 100) == coloured
        assert mask.any()
        assert not mask.all()
        original, truth = _source(shared, pair.image_id)
        np.testing.assert_array_equal(mask, truth)
        error = np.mean((image.astype(float) - original) ** 2)
        decibels.append(10 * np.log10(np.quantile(original, 0.999) ** 2 / error))
    assert min(decibels) > 35
    assert np.median(decibels) > 39


def _source(shared: Path, image_id: str) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    name = image_id.rpartition("/")[2].partition(".")[0]
    folder = shared / "dsb2018_pairs"
    image = np.array(Image.open(folder / "images" / f"{name}.png").convert("RGB"))
    return image, np.asarray(Image.open(folder / "masks" / f"{name}.png")) == 255


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load_recipe("make_nuclei_mini")


def test_the_recipe_finds_the_tiles_of_a_cut_photo(recipe: ModuleType) -> None:
    generator = np.random.default_rng(0)
    tiles = {}
    for name in ("a", "b"):
        small = Image.fromarray(generator.integers(0, 255, (9, 9, 3), dtype=np.uint8))
        pixels = np.array(small.resize((128, 128), Image.Resampling.BICUBIC))
        for row in (0, 1):
            for column in (0, 1):
                part = pixels[row * 64 : row * 64 + 64, column * 64 : column * 64 + 64]
                tiles[f"{name}{row}{column}"] = part
    del tiles["a11"]
    assert recipe.photos(tiles) == {tile: f"{tile[0]}00" for tile in tiles}


def test_images_of_nothing_stay_apart(recipe: ModuleType) -> None:
    generator = np.random.default_rng(0)
    noise = generator.normal(20, 0.6, (4, 64, 64, 1)).repeat(3, axis=3).round().astype(np.uint8)
    images = dict(zip("abcd", noise, strict=True))
    assert recipe.photos(images) == {name: name for name in images}


def test_each_group_is_of_one_kind() -> None:
    index = open_dataset("nuclei-mini", MASKS)
    tiles = defaultdict(set)
    for pair in index.samples:
        tiles[pair.group].add(pair.image_id.partition("/")[0])
    assert all(len(kinds) == 1 for kinds in tiles.values())
    sizes = Counter(Counter(pair.group for pair in index.samples).values())
    assert sizes == {1: 110, 2: 20, 3: 13, 5: 1}


@pytest.mark.slow
def test_the_recipe_makes_the_asset_again(shared: Path, recipe: ModuleType) -> None:
    content, groups = recipe.build(shared / "dsb2018_pairs")
    assert groups == groups_file(_asset()).read_text()
    # Other versions of the encoders may pack the pixels otherwise.
    assert abs(len(content) - _asset().stat().st_size) < 100_000

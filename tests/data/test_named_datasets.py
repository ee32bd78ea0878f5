"""Where downloads are kept."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from robustcli.core.errors import UsageError
from robustcli.data.named_datasets import (
    DATASETS,
    data_home,
    find_named,
    installed,
    require_tar,
    tar_path,
)
from robustcli.data.sources import Classes, open_dataset
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

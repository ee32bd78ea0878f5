"""The data sets that have names: what they are, where they come from and where they are kept."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from platformdirs import user_cache_path

from robustcli.core.errors import UsageError
from robustcli.core.names import canonical, find

LIST_DATASETS = "robust list datasets"
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
SEGMENTATION = "segmentation"
"""What stands for a label space where images have masks."""


@dataclass(frozen=True)
class NamedDataset:
    """A data set that can be named.

    Args:
        name: What the user types.
        label_space: Name of its label space; `SEGMENTATION` for images with masks.
        images: How many images it has.
        bundled: Whether it comes with the package.
        source: Who made it and where it is described.
        licence: The terms, in words.
        url: Where it is downloaded from; None for bundled ones.
        sha256: Published hash of that download; None where the source guarantees none.
        default_for: Whether it serves its label space when no data is named.
    """

    name: str
    label_space: str
    images: int
    bundled: bool
    source: str
    licence: str
    url: str | None = None
    sha256: str | None = None
    default_for: bool = False


DATASETS: tuple[NamedDataset, ...] = (
    NamedDataset(
        name="cifar10-mini",
        label_space="cifar10",
        images=960,
        bundled=True,
        source="Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images: "
        "96 test images per class, as JPEG",
        licence="no formal licence; Krizhevsky 2009",
        default_for=True,
    ),
    NamedDataset(
        name="imagenet-sample",
        label_space="imagenet-1k",
        images=1000,
        bundled=False,
        source="github.com/EliSchwartz/imagenet-sample-images: one photo per class",
        licence="ImageNet terms: non-commercial research and education",
        # GitHub may compress the same commit anew, so there is no lasting hash to pin.
        url="https://github.com/EliSchwartz/imagenet-sample-images/archive/"
        "22d0a5c9c5c76d13532da2d29ea7fa2e9e034387.tar.gz",
    ),
    NamedDataset(
        name="nuclei-mini",
        label_space=SEGMENTATION,
        images=194,
        bundled=True,
        source="2018 Data Science Bowl, stage 1 (BBBC038): 160 fluorescence and 34 stained images "
        "with the masks of their nuclei, images re-encoded",
        licence="CC0",
        default_for=True,
    ),
)


def find_named(name: str) -> NamedDataset | None:
    """The data set called `name` (`-`, `_` and case do not count); None when there is none."""
    return next((d for d in DATASETS if d.name == canonical(name)), None)


def installed(name: str) -> Path | None:
    """The tar of the data set called `name`; None while it is not downloaded.

    Raises:
        UsageError: No data set has that name.
    """
    registered = find(name, (d.name for d in DATASETS), kind="data set", listing=LIST_DATASETS)
    path = tar_path(next(d for d in DATASETS if d.name == registered))
    return path if path.is_file() else None


def tar_path(dataset: NamedDataset) -> Path:
    """Where the tar of `dataset` is or will be."""
    if dataset.bundled:
        return Path(str(files("robustcli") / "assets" / f"{dataset.name}.tar"))
    return data_home() / "datasets" / f"{dataset.name}.tar"


def require_tar(dataset: NamedDataset) -> Path:
    """The tar of `dataset`.

    Raises:
        UsageError: It is not downloaded yet.
    """
    path = tar_path(dataset)
    if not path.is_file():
        raise UsageError(
            f"The data set `{dataset.name}` is not on this machine.",
            f"It was looked for at `{path}`.",
            f"Download it with `robust fetch {dataset.name}` ({dataset.images} images).",
        )
    return path


def data_home() -> Path:
    """The folder for downloads: `ROBUST_HOME`, else the user's cache folder (it need not exist)."""
    chosen = os.environ.get("ROBUST_HOME")
    return Path(chosen).expanduser() if chosen else user_cache_path("robust", appauthor=False)


def lock_on_this_machine(target: Path) -> ExitStack:
    """A context in which no other process of this machine works on the file `target`.

    It saves that two processes download or decompress the same; no content depends on it, for file
    locks do not exclude on network folders, and some file systems have none (then nobody waits).
    So what is made inside is checked, and renamed to `target` when it is whole.

    Args:
        target: The file; its folder is made, and the lock lies beside it.

    Raises:
        OSError: The folder cannot be made, or not be written to.
    """
    from filelock import FileLock  # listing data sets needs no locks

    target.parent.mkdir(parents=True, exist_ok=True)
    lock, held = FileLock(f"{target}.lock"), ExitStack()
    try:
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
    held.callback(lock.release)
    return held

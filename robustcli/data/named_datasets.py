"""Registry of named data sets: contents, sources, and paths on this machine."""

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
"""Used in place of the name of a label space for data sets with masks."""


@dataclass(frozen=True)
class NamedDataset:
    """A data set that the user can select by name.

    Args:
        name: Name of the data set.
        label_space: Name of its label space; `SEGMENTATION` for images with masks.
        images: Number of images.
        bundled: Whether the package contains the data set.
        source: Publication, and selection of images.
        licence: Licence or terms of use.
        url: Address of the download; None for a bundled data set.
        sha256: Published SHA-256 of the download; None for a bundled data set, and if the source
            does not guarantee one.
        default_for: Whether this is the default data set of its label space.
        demonstration: Whether this is a small example data set.
        megabytes: Size of the download.
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
    demonstration: bool = True
    megabytes: int | None = None

    @property
    def downloads_itself(self) -> bool:
        """Whether use as `--data` downloads it, which requires a known SHA-256."""
        return self.url is not None and self.sha256 is not None


_CIFAR_TERMS = "no formal licence; Krizhevsky 2009"
_CIFAR = (  # SHA-256 from Keras; torchvision contains the MD5 of the same files
    (
        "cifar10",
        "cifar-10",
        "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        170,
    ),
    (
        "cifar100",
        "cifar-100",
        "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        169,
    ),
)
DATASETS: tuple[NamedDataset, ...] = (
    NamedDataset(
        name="cifar10-mini",
        label_space="cifar10",
        images=960,
        bundled=True,
        source="Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images: "
        "96 test images per class, as JPEG",
        licence=_CIFAR_TERMS,
        default_for=True,
    ),
    NamedDataset(
        name="imagenet-sample",
        label_space="imagenet-1k",
        images=1000,
        bundled=False,
        source="github.com/EliSchwartz/imagenet-sample-images: one photo per class",
        licence="ImageNet terms: non-commercial research and education",
        # GitHub may compress the same commit differently later, so no permanent hash exists.
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
    *(
        NamedDataset(
            name=name,
            label_space=name,
            images=60_000,
            bundled=False,
            source="Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images: 50,000 "
            "training and 10,000 test images, as published for Python",
            licence=_CIFAR_TERMS,
            url=f"https://www.cs.toronto.edu/~kriz/{archive}-python.tar.gz",
            sha256=sha256,
            demonstration=False,
            megabytes=megabytes,
        )
        for name, archive, sha256, megabytes in _CIFAR
    ),
)


def find_named(name: str) -> NamedDataset | None:
    """The data set `name` (`-`, `_` and case are ignored); None for an unknown name."""
    return next((d for d in DATASETS if d.name == canonical(name)), None)


def installed(name: str) -> Path | None:
    """The tar of the data set `name`, None if missing; raises UsageError for unknown names."""
    registered = find(name, (d.name for d in DATASETS), kind="data set", listing=LIST_DATASETS)
    path = tar_path(next(d for d in DATASETS if d.name == registered))
    # `is_file` fails in a cache folder without permission, as after `su` that keeps HOME.
    return path if os.access(path, os.R_OK) else None


def tar_path(dataset: NamedDataset) -> Path:
    """Path of the tar of `dataset`, which may not be downloaded yet."""
    if dataset.bundled:
        return Path(str(files("robustcli") / "assets" / f"{dataset.name}.tar"))
    return data_home() / "datasets" / f"{dataset.name}.tar"


def require_tar(dataset: NamedDataset) -> Path:
    """The tar of `dataset`; raises UsageError if it is not downloaded yet."""
    path = tar_path(dataset)
    if not path.is_file():
        raise UsageError(
            f"The data set `{dataset.name}` is not on this machine.",
            f"It was searched at `{path}`.",
            f"Download it with `robust fetch {dataset.name}` ({dataset.images} images).",
        )
    return path


def data_home() -> Path:
    """Folder for downloads: `ROBUST_HOME`, else the user's cache folder. It need not exist."""
    chosen = os.environ.get("ROBUST_HOME")
    return Path(chosen).expanduser() if chosen else user_cache_path("robust", appauthor=False)


def lock_on_this_machine(target: Path) -> ExitStack:
    """Locks the file `target` against other processes of this machine, in a context.

    The lock prevents two processes from downloading or decompressing the same file. Correctness
    must not depend on it, because locks are unreliable on network folders and some file systems
    have none (then no process waits): the caller checks the file that it creates, and renames it to
    `target` when it is complete.

    Raises:
        OSError: The folder of `target`, which contains the lock file, cannot be created or written.
    """
    from filelock import FileLock  # not needed to list data sets

    target.parent.mkdir(parents=True, exist_ok=True)
    stack = ExitStack()
    if not _knows_locks(f"{target}.lock"):
        return stack
    lock = FileLock(f"{target}.lock")
    try:
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
    stack.callback(lock.release)
    return stack


def _knows_locks(file: str) -> bool:
    """Whether the file system of `file` supports locks; creates the file.

    On a file system without locks, filelock 3.12 waits forever, and filelock 4 leaves a lock file
    that remains if its process is killed.
    """
    try:
        import fcntl
    except ImportError:
        return True  # Windows supports locks
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _NO_LOCKS
    finally:
        os.close(descriptor)
    return True

"""Which image files there are under a folder, each with an id that is the same everywhere."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from robustcli.core.errors import UsageError

# Source: torchvision.datasets.folder.IMG_EXTENSIONS.
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}
)


@dataclass(frozen=True)
class Entry:
    """An image file that was found, not yet with a class.

    Args:
        relative: Its path inside the data set, with `/`.
        path: The file itself, or the tar that holds it.
        member: Its name in that tar; None for a file of its own.
        offset: First byte of the member in the tar.
        size: Length of the member in bytes.
    """

    relative: str
    path: Path
    member: str | None = None
    offset: int = 0
    size: int = 0

    @property
    def folder(self) -> str | None:
        """The first folder of the relative path; None for a file beside the folders."""
        first, slash, _ = self.relative.partition("/")
        return first if slash else None

    @property
    def file_name(self) -> str:
        """The last part of the relative path."""
        return self.relative.rpartition("/")[2]


def is_image(name: str) -> bool:
    """Whether a file of that name counts as an image: by its suffix, and not hidden."""
    file = PurePosixPath(name)
    return file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")


def stable(relative: str) -> str:
    """`relative` in one spelling: composed characters, and no bytes that are not UTF-8.

    File systems differ in how they store accents, and a name need not be valid UTF-8 at all.
    """
    if relative.isascii():
        return relative
    text = relative.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return unicodedata.normalize("NFC", text)


def list_folder(root: Path) -> list[Entry]:
    """Every image file below `root`, in no particular order; hidden files and folders are left out.

    Links to folders are followed, because data sets are often put together from links.

    Raises:
        UsageError: A folder cannot be read.
    """
    try:
        return list(_walk(os.fspath(root), "", frozenset({os.path.realpath(root)})))
    except OSError as error:
        raise UsageError(
            f"Cannot read the folder `{error.filename}`.",
            f"The file system says: {error.strerror or error}.",
            "Check its permissions, or move it out of the data folder.",
        ) from error


def _walk(folder: str, prefix: str, above: frozenset[str]) -> Iterator[Entry]:
    with os.scandir(folder) as found:
        entries = [entry for entry in found if not entry.name.startswith(".")]
    for entry in entries:
        relative = prefix + entry.name
        if not entry.is_dir():
            if is_image(entry.name):
                yield Entry(stable(relative), Path(entry.path))
            continue
        real = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
        # A link to a folder above it would make the walk endless.
        if real not in above:
            yield from _walk(entry.path, relative + "/", above | {real})

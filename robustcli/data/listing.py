"""Which image files there are under a folder, each with an id that is the same everywhere."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

from robustcli.core.errors import UsageError
from robustcli.data.dataset import FileRef

# Source: torchvision.datasets.folder.IMG_EXTENSIONS; and GIF, of which the first frame counts.
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif"}
)
MASK_SUFFIXES = IMAGE_SUFFIXES | {".npy"}
"""Of masks, which may also be arrays of numpy."""
_LEFTOVERS = frozenset(
    {
        *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),  # macOS, Windows
        *("@eadir", "#recycle", "#snapshot", "lost+found", "$recycle.bin"),  # servers, disks
        *("system volume information", "__pycache__"),
    }
)
"""Files and folders that other programs leave in a data set, in lower case. Hidden ones
(`.ipynb_checkpoints`, `._photo.jpg`, `.DS_Store`, `.git`) are known by their first character."""
_UNCOUNTED = frozenset({".git", ".svn", ".hg", ".snapshot", ".zfs", ".venv", "#snapshot"})
"""Folders that may hold a copy of everything: they are not searched even to count what is there."""


@dataclass(frozen=True)
class FileListing:
    """What was found in a folder or a tar.

    Args:
        files: The images, in no particular order.
        leftovers: Relative paths of files that are named like images but were left by other
            programs, or hidden (see `is_leftover`), sorted.
        unreached: Relative paths of links that lead out of the tar or to nothing, and of members
            that are no plain files or would be unpacked outside; named like images, sorted.
    """

    files: list[FileRef]
    leftovers: list[str] = field(default_factory=list)
    unreached: list[str] = field(default_factory=list)

    def notes(self, location: Path) -> Iterator[str]:
        """What was left out, in a line for each kind."""
        for names, what in (
            (self.leftovers, "hidden or leftovers of other programs"),
            (self.unreached, "links that lead out of the archive or to nothing, or no plain files"),
        ):
            if names:
                count = f"{len(names)} files" if len(names) > 1 else "1 file"
                yield (
                    f"Left out of `{location}`: {count} named like images ({what}), such as "
                    f"`{names[0]}`."
                )


def is_leftover(name: str) -> bool:
    """Whether a file or folder of that name never counts: hidden, or left by another program."""
    hidden = name.startswith(".") and name not in (".", "..")
    return hidden or name.lower() in _LEFTOVERS


def is_image(path: str, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> bool:
    """Whether the file at the relative `path` counts: by its suffix, and no part is a leftover."""
    return named_like_image(path, suffixes) and not any(map(is_leftover, path.split("/")))


def named_like_image(name: str, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> bool:
    """Whether a file of that name is an image by its suffix."""
    return PurePosixPath(name).suffix.lower() in suffixes


def normalised_path(relative: str) -> str:
    """`relative` in one spelling: composed characters, and no bytes that are not UTF-8.

    File systems differ in how they store accents, and a name need not be valid UTF-8 at all.
    """
    if relative.isascii():
        return relative
    text = relative.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return unicodedata.normalize("NFC", text)


class Node(Protocol):
    """A file or a folder, on a disk or in a tar, to which `list_tree` walks."""

    @property
    def name(self) -> str:
        """Its name in its folder."""

    @property
    def is_link(self) -> bool:
        """Whether it stands for another place."""

    def identity(self) -> str | None:
        """Of a folder, what is the same for every link to it; of a file, None.

        Raises:
            LookupError: It is neither, or a link to nothing.
        """

    def children(self) -> Iterable[Node]:
        """What is in it, for a folder."""

    def file(self, relative: str) -> FileRef:
        """The file, found at the path `relative`."""


def list_tree(root: Node, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> FileListing:
    """Every image below `root`: the one rule for folders and tars.

    A name that `is_leftover` never counts, nor does what is below it. Links are followed; one that
    leads to a folder above it would make the walk endless, and is not.

    Args:
        root: A folder.
        suffixes: Of the names of files that count, in lower case.
    """
    listing = FileListing([])
    _walk(root, "", frozenset({root.identity()}), suffixes, listing, left=False)
    listing.leftovers.sort()
    listing.unreached.sort()
    return listing


def _walk(
    folder: Node, prefix: str, above: frozenset[str | None], suffixes: frozenset[str],
    listing: FileListing, *, left: bool,
) -> None:  # fmt: skip
    """Adds what is below `folder`; only counts it where the folder itself is `left` out."""
    for node in folder.children():
        relative, out = prefix + node.name, left or is_leftover(node.name)
        try:
            identity = node.identity()
        except LookupError:
            if named_like_image(node.name, suffixes):
                (listing.leftovers if out else listing.unreached).append(normalised_path(relative))
            continue
        if identity is None:
            if not named_like_image(node.name, suffixes):
                continue
            if out:
                listing.leftovers.append(normalised_path(relative))
            else:
                listing.files.append(node.file(relative))
        elif not out and identity not in above:
            _walk(node, relative + "/", above | {identity}, suffixes, listing, left=False)
        elif out and not node.is_link and node.name.lower() not in _UNCOUNTED:
            with suppress(OSError):  # a `lost+found` that only root may read is nothing to report
                _walk(node, relative + "/", above, suffixes, listing, left=True)


@dataclass(frozen=True)
class _OnDisk:
    """A file or folder of the file system; `real` is its path without links, for a folder."""

    path: str
    name: str
    is_link: bool
    real: str | None

    def identity(self) -> str | None:
        return self.real

    def children(self) -> Iterator[_OnDisk]:
        assert self.real is not None
        with os.scandir(self.path) as found:
            entries = list(found)
        for one in entries:
            link, real = one.is_symlink(), None
            if one.is_dir():
                real = os.path.realpath(one.path) if link else f"{self.real}{os.sep}{one.name}"
            yield _OnDisk(one.path, one.name, link, real)

    def file(self, relative: str) -> FileRef:
        return FileRef(normalised_path(relative), Path(self.path))


def list_folder(root: Path, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> FileListing:
    """Every image file below `root`, see `list_tree`.

    Links to folders are followed, because data sets are often put together from links. A link to
    nothing counts as an image, which is then found unreadable and named.

    Raises:
        UsageError: A folder cannot be read.
    """
    try:
        return list_tree(_OnDisk(os.fspath(root), "", True, os.path.realpath(root)), suffixes)
    except OSError as error:
        raise UsageError(
            f"Cannot read the folder `{error.filename}`.",
            f"The file system says: {error.strerror or error}.",
            "Check its permissions, or move it out of the data folder.",
        ) from error

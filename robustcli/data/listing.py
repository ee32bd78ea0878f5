"""Lists the image files below a folder, each with an id that is equal on all machines."""

from __future__ import annotations

import errno
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Protocol

from robustcli.core.errors import UsageError, shortened_text
from robustcli.data.dataset import FileRef

# Source: torchvision.datasets.folder.IMG_EXTENSIONS; also GIF, whose first frame is used.
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif"}
)
UNSUPPORTED_SUFFIXES = frozenset(
    {".avif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jxl", ".cr2", ".dng", ".nef", ".psd"}
)
"""Suffixes of photos that are not read; a message reports them."""
HDF5_SUFFIXES, NIFTI_SUFFIXES = (".h5", ".hdf5"), (".nii", ".nii.gz")
MASK_SUFFIXES = IMAGE_SUFFIXES | {".npy", ".npz"}
_LEFTOVERS = frozenset(
    {
        *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"),  # macOS, Windows
        *("@eadir", "#recycle", "#snapshot", "lost+found", "$recycle.bin"),  # servers, disks
        *("system volume information", "__pycache__"),
    }
)
"""Lower-case names of files and folders that other programs leave in a data set. Hidden ones
(`.ipynb_checkpoints`, `._photo.jpg`, `.DS_Store`, `.git`) start with a dot."""
DEEPEST = 200
"""Largest depth of folders: more than users need, below the recursion limit of Python."""
_MOST_VISITS = 1000  # visits of one folder through different links
_UNCOUNTED = frozenset({".git", ".svn", ".hg", ".snapshot", ".zfs", ".venv", "#snapshot"})
"""Folders that may contain a copy of all data; they are not searched, not even for counts."""


@dataclass(frozen=True)
class FileListing:
    """The images in a folder or an archive, and the excluded files with an image's suffix.

    Args:
        files: The images.
        leftovers: Sorted paths of files that are hidden or were left by other programs (see
            `is_leftover`).
        unreached: Sorted paths of broken links, links out of the archive, members that are not
            plain files, and members whose paths lead out of the archive.
        unsupported: Sorted paths of photos in formats that are not read.
        broken_folders: Sorted paths of broken links without a suffix, which can be folders.
    """

    files: list[FileRef]
    leftovers: list[str] = field(default_factory=list)
    unreached: list[str] = field(default_factory=list)
    unsupported: list[str] = field(default_factory=list)
    broken_folders: list[str] = field(default_factory=list)

    def only(self, suffixes: frozenset[str]) -> FileListing:
        """This listing without leftovers and unreached files that have none of `suffixes`."""
        left, unreached = (
            [name for name in names if named_like_image(name, suffixes)]
            for names in (self.leftovers, self.unreached)
        )
        return replace(self, leftovers=left, unreached=unreached)

    def notes(self, location: Path | str) -> Iterator[str]:
        """A note for the user about each type of excluded files."""
        of_images = "with suffixes of images"
        for names, kind, what in (
            (self.leftovers, of_images, "hidden files or files of other programs"),
            (
                self.unreached, of_images,
                "links with a target outside of the archive or without a target, or special files",
            ),
            (self.unsupported, of_images, "of formats that are not supported"),
            (
                self.broken_folders, "without a suffix",
                "links whose target is missing or not an image, perhaps folders",
            ),
        ):  # fmt: skip
            if names:
                count = f"{len(names)} files" if len(names) > 1 else "1 file"
                yield (
                    f"Skipped in `{location}`: {count} {kind} ({what}), such as "
                    f"`{shortened_text(names[0])}`."
                )


def is_leftover(name: str) -> bool:
    """Whether the name is that of a hidden file or folder, or of one left by other programs."""
    hidden = name.startswith(".") and name not in (".", "..")
    return hidden or name.lower() in _LEFTOVERS


def is_image(path: str, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> bool:
    """Whether `path` has one of `suffixes` and none of its components is a leftover."""
    return named_like_image(path, suffixes) and not any(map(is_leftover, path.split("/")))


def named_like_image(name: str, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> bool:
    """Whether a file name has one of `suffixes`."""
    return PurePosixPath(name).suffix.lower() in suffixes


def normalised_path(relative: str) -> str:
    """The path in Unicode normal form NFC, with bytes that are not UTF-8 escaped.

    File systems store accents in different forms, and file names can be invalid UTF-8.
    """
    if relative.isascii():
        return relative
    text = relative.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return unicodedata.normalize("NFC", text)


class Node(Protocol):
    """A file or folder on a disk, in an archive or in an object store, for `list_tree`."""

    @property
    def name(self) -> str:
        """Name of the file or folder."""

    @property
    def is_link(self) -> bool:
        """Whether this node is a link."""

    def identity(self) -> str | None:
        """For a folder, a key that is equal for all links to the folder; for a file, None.

        Raises:
            LookupError: The node is neither, or is a broken link.
        """

    def children(self) -> Iterable[Node]:
        """The entries of a folder."""

    def file(self, relative: str) -> FileRef:
        """The reference of this file, with the relative path `relative`."""


def list_tree(root: Node, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> FileListing:
    """All files with one of `suffixes` below the folder `root`.

    Leftovers and everything below them are excluded. Links are followed, except links to a parent
    folder, which would cause infinite recursion.

    Raises:
        UsageError: Folders are nested too deeply, too many links lead to one folder, or the names
            of two files differ only in their Unicode form.
    """
    listing = FileListing([])
    visits = Counter[str | None]()
    _walk(root, "", frozenset({root.identity()}), suffixes, listing, visits, left=False)
    _check_ids(listing.files)
    for names in (
        listing.leftovers, listing.unreached, listing.unsupported, listing.broken_folders
    ):  # fmt: skip
        names.sort()
    return listing


def _check_ids(files: Sequence[FileRef]) -> None:
    counts = Counter(file.relative for file in files)
    if len(counts) == len(files):
        return
    repeated = sorted(name for name, count in counts.items() if count > 1)
    first, second = sorted(str(file) for file in files if file.relative == repeated[0])[:2]
    raise UsageError(
        f"{len(repeated)} name{'s' if len(repeated) > 1 else ''} of images occur more than once, "
        f"such as `{shortened_text(repeated[0])}`.",
        f"They are spelled with different characters, {first!a} and {second!a}, but "
        "results name an image by the composed form of its letters (Unicode NFC).",
        "Rename or remove one of the files.",
    )


def _walk(
    folder: Node, prefix: str, above: frozenset[str | None], suffixes: frozenset[str],
    listing: FileListing, visits: Counter[str | None], *, left: bool,
) -> None:  # fmt: skip
    """Adds the files below `folder` to `listing`; with `left`, as leftovers."""
    visits[folder.identity()] += 1
    if len(above) > DEEPEST or visits[folder.identity()] > _MOST_VISITS:
        raise UsageError(
            f"The folder `{shortened_text(prefix)}` is not read.",
            f"It is nested in more than {DEEPEST} folders."
            if len(above) > DEEPEST
            else f"More than {_MOST_VISITS:,} links point to it, so that its images would be read "
            "several times.",
            "Remove it from the data, or pass the folder that contains the images.",
        )
    for node in folder.children():
        relative, out = prefix + node.name, left or is_leftover(node.name)
        try:
            identity = node.identity()
        except LookupError:
            _add_unreached(listing, node, relative, suffixes, left=out)
            continue
        if identity is None:
            _add_file(listing, node, relative, suffixes, left=out)
        elif not out and identity not in above:
            _walk(node, relative + "/", above | {identity}, suffixes, listing, visits, left=False)
        elif out and not node.is_link and node.name.lower() not in _UNCOUNTED:
            with suppress(OSError):  # `lost+found` can be readable only by root
                _walk(node, relative + "/", above, suffixes, listing, visits, left=True)


def _add_unreached(
    listing: FileListing, node: Node, relative: str, suffixes: frozenset[str], *, left: bool
) -> None:
    if named_like_image(node.name, suffixes):
        (listing.leftovers if left else listing.unreached).append(normalised_path(relative))
    elif node.is_link and not left and not PurePosixPath(node.name).suffix:
        listing.broken_folders.append(normalised_path(relative))


def _add_file(
    listing: FileListing, node: Node, relative: str, suffixes: frozenset[str], *, left: bool
) -> None:
    if named_like_image(node.name, suffixes):
        if left:
            listing.leftovers.append(normalised_path(relative))
        else:
            listing.files.append(node.file(relative))
    elif not left and named_like_image(node.name, UNSUPPORTED_SUFFIXES):
        listing.unsupported.append(normalised_path(relative))


@dataclass(frozen=True)
class _OnDisk:
    """A file or folder of the file system; `real` is the resolved path of a folder, else None."""

    path: str
    name: str
    is_link: bool
    real: str | None

    def identity(self) -> str | None:
        # A broken link with a suffix is listed, so that `decode` reports it.
        if self.is_link and self.real is None and not PurePosixPath(self.name).suffix:
            _check_target(self.path)
        return self.real

    def children(self) -> Iterator[_OnDisk]:
        assert self.real is not None
        with os.scandir(self.path) as scan:
            entries = list(scan)
        for entry in entries:
            is_link, real = entry.is_symlink(), None
            if _is_folder(entry):
                inside = f"{self.real}{os.sep}{entry.name}"
                real = os.path.realpath(entry.path) if is_link else inside
            yield _OnDisk(entry.path, entry.name, is_link, real)

    def file(self, relative: str) -> FileRef:
        return FileRef(normalised_path(relative), Path(self.path))


def _check_target(path: str) -> None:
    """Raises LookupError for a link without a target."""
    try:
        Path(path).stat()
    except OSError as error:
        raise LookupError(path) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether the entry is a folder or a link to one; False for a link that leads to itself."""
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return False


def list_folder(root: Path, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> FileListing:
    """All files with one of `suffixes` below `root`, see `list_tree`.

    Links to folders are followed, because data sets are often assembled from links. A broken link
    is listed as an image, which `decode` then reports as unreadable.

    Raises:
        UsageError: A folder cannot be read.
    """
    try:
        return list_tree(_OnDisk(os.fspath(root), "", True, os.path.realpath(root)), suffixes)
    except OSError as error:
        raise UsageError(
            f"Cannot read the folder `{error.filename}`.",
            f"The error of the file system is: {error.strerror or error}.",
            "Check its permissions, or move it out of the data folder.",
        ) from error

"""Images inside a tar or zip: members are listed once, then read by offset.

A plain tar and a zip are read in place. A compressed tar has no random access, so it is
decompressed once into the data home.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import math
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from robustcli.core.errors import RunError, UsageError
from robustcli.core.io import LONGEST_NAME, check_readable, replacing, shortened
from robustcli.data.dataset import FileRef
from robustcli.data.listing import (
    DEEPEST,
    IMAGE_SUFFIXES,
    UNSUPPORTED_SUFFIXES,
    FileListing,
    list_folder,
    list_tree,
    named_like_image,
    normalised_path,
)
from robustcli.data.named_datasets import (
    data_home,
    find_named,
    lock_on_this_machine,
    require_tar,
)


def _zstandard(path: Path) -> BinaryIO:
    import pyarrow as pa  # the standard library supports zstd from Python 3.14 on

    stream: BinaryIO = pa.input_stream(str(path), compression="zstd")
    return stream


_Opener: TypeAlias = Callable[[Path], Any]
_OPENERS: dict[str, _Opener] = {
    ".tar.gz": gzip.open, ".tgz": gzip.open,
    ".tar.bz2": bz2.open, ".tbz2": bz2.open, ".tbz": bz2.open,
    ".tar.xz": lzma.open, ".txz": lzma.open,
    ".tar.zst": _zstandard, ".tzst": _zstandard,
}  # fmt: skip
COMPRESSED_SUFFIXES = tuple(_OPENERS)
TAR_SUFFIXES = (".tar", *COMPRESSED_SUFFIXES)
ZIP_SUFFIX = ".zip"
_MOST_UNPACKED = 2**30  # bytes of one member of a zip; photos are smaller
_MOST_RATIO = 200  # limit for a compressed tar above 1 GiB; photos are already compressed
_ZIP_ERRORS = (
    zipfile.BadZipFile, EOFError, OSError, struct.error, zlib.error, ValueError, OverflowError,
    RuntimeError,  # an encrypted member, or an unknown compression
)  # fmt: skip
_WINDOWS = 0  # `create_system` of a zip
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_END_OF_ZIP = 22  # bytes of the last record of a zip without a comment
_LONGEST_LINK = 4096
_MOST_HOPS = 40  # links to resolve for one file; the limit of Linux


def is_tar(path: Path) -> bool:
    """Whether `path` has the suffix of a supported tar."""
    return path.name.lower().endswith(TAR_SUFFIXES)


def is_zip(path: Path) -> bool:
    """Whether `path` has the suffix of a zip."""
    return path.name.lower().endswith(ZIP_SUFFIX)


def archive_stem(path: Path) -> str:
    """The name of an archive without its suffixes."""
    name, suffixes = path.name, (*COMPRESSED_SUFFIXES, ".tar", ZIP_SUFFIX)
    suffix = next((s for s in suffixes if name.lower().endswith(s)), "")
    return name[: len(name) - len(suffix)]


def list_tar(path: Path, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> FileListing:
    """All images in the tar at `path`, with their offsets in the (uncompressed) archive.

    The result equals that of `listing.list_tree` for the unpacked folder: of two members with the
    same name the last one is used, and hard and symbolic links inside the archive are followed.
    Files outside the archive are never read.

    Raises:
        UsageError: The file is not a tar, or is damaged.
        RunError: The data home is full or cannot be written to.
    """
    try:
        check_readable(path, math.inf)
        plain = _decompressed(path) if path.name.lower().endswith(COMPRESSED_SUFFIXES) else path
        with tarfile.open(plain, mode="r:", tarinfo=_Header) as archive:
            root, outside = _tree(plain, archive)
            _check_complete(plain, archive.offset)
    # A damaged header can contain values that make tarfile raise ValueError or OverflowError.
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError) as error:
        raise UsageError(
            f"`{path}` cannot be read as a tar archive.",
            f"The error is: {error}.",
            "Check that the download is complete (`tar tf FILE` lists the contents), then repeat "
            "the command.",
        ) from error
    return listed_tree(root, outside, suffixes)


def list_zip(path: Path, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> FileListing:
    """All images in the zip at `path`, with their offsets, by the rules of `list_tar`.

    Raises:
        UsageError: The file is not a zip, is damaged or encrypted, or a member has an unsupported
            compression or an unpacked size above the limit.
    """
    try:
        check_readable(path, math.inf)
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            _check_single(archive, file)
            root, outside = _zip_tree(path, archive, file, suffixes)
    except _ZIP_ERRORS as error:
        raise UsageError(
            f"`{path}` cannot be read as a zip archive.",
            f"The error is: {error}.",
            "Check that the download is complete (`unzip -t FILE` tests it), then repeat the "
            "command.",
        ) from error
    return listed_tree(root, outside, suffixes)


def existing_path(place: Path) -> Path:
    """The path of `place`: a folder, an archive, an image, or the name of a data set.

    Raises:
        UsageError: The path does not exist, or the data set is not on this machine.
    """
    named = None if place.exists() else find_named(str(place))
    path = place.expanduser() if named is None else require_tar(named)
    if not path.exists():
        raise UsageError(
            f"`{place}` does not exist.",
            "Expected a folder of images, an archive of them, or an image.",
            "Check the path.",
        )
    return path


def list_place(place: Path) -> tuple[Path, FileListing | None]:
    """The path of `place`, and all images of a folder, an archive or a named data set.

    There is no listing of any other file.

    Raises:
        UsageError: The path does not exist, the data set is not on this machine, or an archive is
            damaged.
    """
    path = existing_path(place)
    if path.is_dir():
        return path, list_folder(path)
    if is_tar(path) and path.is_file():
        return path, list_tar(path)
    return path, list_zip(path) if is_zip(path) and path.is_file() else None


def listed_tree(root: Member, outside: list[str], suffixes: frozenset[str]) -> FileListing:
    """The files with one of `suffixes` below `root`, by the rules of `listing.list_tree`.

    Args:
        root: The folder tree of the archive.
        outside: Names of members whose paths lead out of the archive.
        suffixes: Suffixes of the listed files.
    """
    listing = list_tree(_InArchive(root, "", False, root), suffixes)
    unreached = [normalised_path(name) for name in outside if named_like_image(name, suffixes)]
    return replace(listing, unreached=sorted([*listing.unreached, *unreached]))


def _check_single(archive: zipfile.ZipFile, file: BinaryIO) -> None:
    """Refuses joined archives, of which `zipfile` reads only the last one.

    Other data before an archive, such as the program of one that unpacks itself, are permitted.
    """
    first = min((info.header_offset for info in archive.infolist()), default=0)
    file.seek(max(0, first - _END_OF_ZIP))
    if first and file.read(4) == b"PK\5\6":
        raise zipfile.BadZipFile(
            "it consists of several archives joined into one file (`zip -FF FILE --out NEW.zip` "
            "recovers all members)"
        )


def _zip_tree(
    path: Path, archive: zipfile.ZipFile, file: BinaryIO, suffixes: frozenset[str]
) -> tuple[Member, list[str]]:
    root, outside = Member(path, (), inside={}), []
    for info in archive.infolist():
        # Old programs of Windows write backslashes between folders, against the standard.
        is_windows = info.create_system == _WINDOWS
        parts = _parts(info.filename.replace("\\", "/") if is_windows else info.filename)
        if parts is None:
            outside.append(info.filename)
            continue
        member, mode = Member(path, parts), info.external_attr >> 16
        if info.is_dir():
            member.inside = {}
        elif stat.S_ISLNK(mode):
            linked = archive.read(info).decode("utf-8") if info.file_size < _LONGEST_LINK else "/"
            if not linked.startswith("/"):
                member.target = _parts("/".join((*parts[:-1], linked)))
        elif named_like_image(info.filename, suffixes):
            _check_zipped(path, info)
            member.ref = _zipped(path, info, file)
        elif named_like_image(info.filename, UNSUPPORTED_SUFFIXES):
            member.ref = FileRef("", path, info.filename)  # reported, never read
        else:
            continue
        if parts:
            _put(root, member)
    return root, outside


def _check_zipped(path: Path, info: zipfile.ZipInfo) -> None:
    if info.flag_bits & 1:
        raise UsageError(
            f"`{path}` is encrypted.", f"`{info.filename}` needs a password.", "Unpack it yourself."
        )
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UsageError(
            f"`{path}` uses an unsupported compression method.",
            f"`{info.filename}` has compression type {info.compress_type}; only stored (0) and "
            "deflated (8) are supported.",
            "Unpack it, or pack it again: `zip -r NEW.zip FOLDER`.",
        )
    if info.file_size > _MOST_UNPACKED:
        raise UsageError(
            f"`{path}` is refused: `{info.filename}` would unpack to {info.file_size:,} bytes.",
            "This is larger than any photo and could fill the memory (a zip bomb).",
            "Remove that member, or unpack the archive yourself.",
        )


def _zipped(path: Path, info: zipfile.ZipInfo, file: BinaryIO) -> FileRef:
    """The file of a zip member; its bytes follow a local header of variable length."""
    file.seek(info.header_offset)
    signature, name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    if signature != b"PK\3\4":
        raise zipfile.BadZipFile(
            f"`{info.filename}` is not at the position that the directory of the archive gives"
        )
    start = info.header_offset + _LOCAL_HEADER.size + name + extra
    unpacked = info.file_size if info.compress_type == zipfile.ZIP_DEFLATED else None
    return FileRef("", path, info.filename, start, info.compress_size, unpacked=unpacked)


@dataclass(eq=False)
class Member:
    """A folder, a plain file, or a link in an archive or an object store.

    Args:
        archive: The (uncompressed) archive, or the local folder of the object store.
        parts: Path components of the member.
        inside: Members of a folder by name; None for files and links.
        ref: Location of a plain file's bytes; else None.
        target: Path components of a link's target, from the root of the archive; None for other
            members, and if the target is outside the archive.
    """

    archive: Path
    parts: tuple[str, ...]
    inside: dict[str, Member] | None = None
    ref: FileRef | None = None
    target: tuple[str, ...] | None = None


def _tree(plain: Path, archive: tarfile.TarFile) -> tuple[Member, list[str]]:
    """The folder tree of the archive, and the names of members whose paths lead out of it."""
    root, outside = Member(plain, (), inside={}), []
    for info in archive:
        parts = _parts(info.name)
        if parts is None:
            outside.append(info.name)
            continue
        member = Member(plain, parts)
        if info.isdir():
            member.inside = {}
        elif info.isreg() and not info.issparse():
            member.ref = FileRef("", plain, info.name, info.offset_data, info.size)
        elif info.islnk():
            member.target = _parts(info.linkname)
        elif info.issym() and not info.linkname.startswith("/"):
            member.target = _parts("/".join((*parts[:-1], info.linkname)))
        if parts:
            _put(root, member)
    return root, outside


def _parts(name: str) -> tuple[str, ...] | None:
    """The components of a member's path; a leading slash is dropped, as by `tar`.

    None if the path leads out of the archive, or has more than DEEPEST folders.
    """
    if name.count("/") > DEEPEST:
        return None
    parts: list[str] = []
    for part in name.split("/"):
        if part == ".." and not parts:
            return None
        if part == "..":
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return tuple(parts)


def _put(root: Member, member: Member) -> None:
    """Adds `member` to its folder, which is created if it is missing."""
    folder = root
    for depth, name in enumerate(member.parts[:-1], 1):
        assert folder.inside is not None
        inner = folder.inside.get(name)
        if inner is None or inner.inside is None:
            inner = Member(root.archive, member.parts[:depth], inside={})
            folder.inside[name] = inner
        folder = inner
    assert folder.inside is not None
    before = folder.inside.get(member.parts[-1])
    if member.inside is not None and before is not None and before.inside is not None:
        return  # a folder whose entry follows its members in the archive
    folder.inside[member.parts[-1]] = member


def _resolve(
    root: Member, parts: Iterable[str], hops: Iterator[int] | None = None
) -> Member | None:
    """The member at the path `parts`, with all links resolved; None if it does not exist.

    `hops` counts the resolved links, at most `_MOST_HOPS` in total.
    """
    hops = iter(range(_MOST_HOPS)) if hops is None else hops
    member = root
    for name in parts:
        inner = member.inside.get(name) if member.inside is not None else None
        while inner is not None and inner.inside is None and inner.ref is None:
            if inner.target is None or next(hops, None) is None:
                return None
            inner = _resolve(root, inner.target, hops)
        if inner is None:
            return None
        member = inner
    return member


@dataclass(frozen=True)
class _InArchive:
    """A member of an archive that implements `listing.Node`."""

    member: Member
    name: str
    is_link: bool
    root: Member

    def identity(self) -> str | None:
        if self.member.inside is None and self.member.ref is None:
            raise LookupError(self.name)
        return None if self.member.inside is None else "/".join(self.member.parts)

    def children(self) -> Iterator[_InArchive]:
        for name, member in (self.member.inside or {}).items():
            is_link = member.inside is None and member.ref is None
            target = _resolve(self.root, member.parts) if is_link else member
            yield _InArchive(target or member, name, is_link, self.root)

    def file(self, relative: str) -> FileRef:
        assert self.member.ref is not None
        return replace(self.member.ref, relative=normalised_path(relative))


def decompress(source: Path, target: Path) -> None:
    """Decompresses `source` (format by suffix, default gzip) to `target`, with a durable write.

    Raises:
        RunError: The disk is full, or `target` cannot be written.
        tarfile.ReadError: `source` is damaged.
    """
    name = source.name.lower()
    opener: _Opener = next((o for s, o in _OPENERS.items() if name.endswith(s)), gzip.open)
    with opener(source) as packed, replacing(target) as temporary, temporary.open("wb") as out:
        most, written = max(_MOST_UNPACKED, _MOST_RATIO * source.stat().st_size), 0
        while chunk := _unpacked(packed):
            written += len(chunk)
            if written > most:
                raise tarfile.ReadError(
                    f"it unpacks to more than {most:,} bytes, {_MOST_RATIO} times its size. It "
                    "may be a decompression bomb; if you trust it, unpack it yourself"
                )
            out.write(chunk)


def _unpacked(packed: BinaryIO) -> bytes:
    """The next bytes; read errors become ReadError, to distinguish them from write errors."""
    try:
        return packed.read(1 << 20)
    except (EOFError, zlib.error, lzma.LZMAError, ValueError, OSError) as error:
        raise tarfile.ReadError(str(error)) from error


def _decompressed(path: Path) -> Path:
    """Path of the decompressed copy of `path` in the data home; creates a missing copy."""
    state = path.stat()
    identity = f"{path.resolve()}\0{state.st_size}\0{state.st_mtime_ns}"
    key = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    stem = shortened(path.name.split(".")[0], LONGEST_NAME - 2 * len(key))
    target = data_home() / "unpacked" / f"{stem}-{key}.tar"
    if target.is_file():
        return target
    try:
        lock = lock_on_this_machine(target)
    except OSError as error:
        raise _no_room(path, target, str(error)) from error
    with lock:
        try:
            if not target.is_file():  # another process may have created it in the meantime
                decompress(path, target)
        except RunError as error:
            raise _no_room(path, target, error.why) from error
    return target


def _no_room(path: Path, target: Path, reason: str) -> RunError:
    return RunError(
        f"`{path}` cannot be decompressed into the data home: cannot write `{target}`.",
        reason
        if reason.startswith("The error of the file system is")
        else f"The error of the file system is: {reason}.",
        "Set the environment variable ROBUST_HOME to a folder with enough space for the complete "
        "archive, or decompress it yourself and pass the `.tar`.",
    )


class _Header(tarfile.TarInfo):
    """A member of a tar whose header is valid: `tarfile` takes an invalid one for the end."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _Header:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.InvalidHeaderError as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"the header at byte {tarfile_.offset}: {error}") from error


def _check_complete(plain: Path, end: int) -> None:
    """Checks that the archive has a final zero block at byte `end`, and nothing else after it."""
    with plain.open("rb") as archive:
        archive.seek(end)
        if archive.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(
                f"it is truncated: it ends at byte {end} without the final blocks of a tar"
            )
        while rest := archive.read(1 << 20):
            if rest.strip(b"\0"):
                raise tarfile.ReadError(
                    f"it ends at byte {end}, but other data follow. Either zeros replaced a part "
                    "of the file, or it consists of several archives (`tar --ignore-zeros -xf "
                    "FILE` unpacks both)"
                )

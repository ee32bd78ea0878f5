"""Data sets in object stores: listed once; images are read on demand through a cache.

HOME/objects/HASH/listing.json   the last listing of the objects at the address
HOME/objects/HASH/bytes/XX/...   images, up to the size limit of the cache
HOME/objects/HASH/files/PARENT/NAME/...   archives, tables and volumes, which are read from the disk

Ids, digests and order of the images are equal to those of a local folder with the same files. The
set of cached images depends only on their order and sizes, so that processes need no coordination.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

from robustcli.core.errors import RunError, UsageError
from robustcli.core.io import parse_json, refused, write_text
from robustcli.core.names import file_name
from robustcli.core.objects import ObjectStore, StoredObject, at_once, kind_of_store, names_url
from robustcli.data.advice import not_cached
from robustcli.data.archives import TAR_SUFFIXES, ZIP_SUFFIX, Member, archive_stem, listed_tree
from robustcli.data.dataset import FileRef, Sample
from robustcli.data.listing import IMAGE_SUFFIXES, FileListing, normalised_path
from robustcli.data.named_datasets import data_home
from robustcli.data.published_masks import LABEL_FILES

LIMIT = "ROBUST_OBJECT_CACHE_GB"
_DEFAULT_LIMIT_GB = 20.0
_ARCHIVES = (*TAR_SUFFIXES, ZIP_SUFFIX)
_CHECKSUM_BYTES = 4
_FORMAT = 1
_GROUPS = "groups.csv"


class ObjectImages:
    """Images of an object store, indexed by their position in a listing; a `dataset.Rows`.

    Args:
        store: The object store at the address of the data set.
        names: Names of the objects.
        objects: Sizes and versions of the objects, in the same order.
        cache: Folder for cached bytes.
        limit: Largest size of the cache in bytes.
        offline: Whether to use only the cache.
    """

    def __init__(
        self, store: ObjectStore, names: Sequence[str], objects: Sequence[StoredObject],
        cache: Path, limit: int, *, offline: bool,
    ) -> None:  # fmt: skip
        self.store, self.names, self.objects = store, tuple(names), tuple(objects)
        self.cache, self.offline = cache, offline
        sizes = accumulate(stored.size + _CHECKSUM_BYTES for stored in self.objects)
        self._cached = sum(size <= limit for size in sizes)
        self._ahead: dict[int, bytes] = {}
        self._folders: set[str] = set()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_ahead": {}}

    def pin(self, row: int) -> None:
        """None: without a permanent identifier, digests read the bytes as for local files."""

    def shown(self, row: int) -> str:
        """Address of an image, for messages."""
        return self.store.address(self.names[row])

    def read(self, row: int) -> bytes:
        """The bytes of an image.

        Raises:
            RunError: The transfer failed.
            UsageError: The image is not cached, and `offline` is set.
            OSError: The object was deleted or changed since the listing.
        """
        content = self._ahead.pop(row, None)
        return self._fetched(row) if content is None else content

    def fetch_ahead(self, row: int) -> None:
        """Fetches an image for a later `read`, which repeats the request after an OSError."""
        if row not in self._ahead:
            with suppress(OSError):
                self._ahead[row] = self._fetched(row)

    def _fetched(self, row: int) -> bytes:
        cached = self._cached_bytes(row)
        if cached is not None:
            return cached
        if self.offline:
            raise not_cached(self.store.url, f"`{self.names[row]}` was never read")
        content = self.store.read(self.names[row])
        if len(content) != self.objects[row].size:
            raise OSError(
                f"it has {len(content):,} bytes, {self.objects[row].size:,} when it was listed"
            )
        self._keep(row, content)
        return content

    def _place(self, row: int) -> Path:
        identity = f"{self.names[row]}\0{self.objects[row].version}"
        digest = hashlib.sha256(identity.encode()).hexdigest()[:40]
        return self.cache / digest[:2] / digest[2:]

    def _cached_bytes(self, row: int) -> bytes | None:
        """The cached bytes; None if they are missing or damaged."""
        if row >= self._cached:
            return None
        with suppress(OSError):
            content = self._place(row).read_bytes()
            size = len(content) - _CHECKSUM_BYTES
            if size == self.objects[row].size and _checksum(content[:size]) == content[size:]:
                return content[:size]
        return None

    def _keep(self, row: int, content: bytes) -> None:
        """Caches the bytes within the size limit; without fsync, as they can be fetched again."""
        if row >= self._cached:
            return
        place = self._place(row)
        temporary = place.with_name(f".{place.name}.{os.getpid()}-{threading.get_ident()}.tmp")
        with suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content + _checksum(content))
            temporary.replace(place)
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _checksum(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(_CHECKSUM_BYTES, "big")


def fetch_ahead(samples: Iterable[Sample]) -> None:
    """Fetches the images and masks of `samples` that are in object stores, in parallel.

    A later `FileRef.read` returns them without a request.

    Raises:
        RunError: The transfer failed.
    """
    files = (
        file for sample in samples for file in (sample.image, sample.truth)
        if isinstance(file, FileRef)
    )  # fmt: skip
    stored = [
        (file.rows, file.offset) for file in files if isinstance(file.rows, ObjectImages)
    ]  # fmt: skip
    if len(stored) > 1:
        at_once(stored, lambda image: image[0].fetch_ahead(image[1]))


@dataclass(frozen=True)
class ObjectFolder:
    """A data set in a folder of an object store.

    Args:
        store: The object store at the address of the data set.
        objects: Objects by name relative to the address.
        place: Local folder for files that are read from the disk.
        home: Local folder for the cache of this data set.
        offline: Whether to use only cached files.
    """

    store: ObjectStore
    objects: Mapping[str, StoredObject]
    place: Path
    home: Path
    offline: bool

    def listing(self, suffixes: frozenset[str]) -> FileListing:
        """The files with one of `suffixes`, by the rules of `listing.list_tree`.

        Fetches all listed files that are not images.
        """
        names = [name for name in self.objects if _suffix(name) in IMAGE_SUFFIXES]
        images = ObjectImages(
            self.store, names, [self.objects[name] for name in names], self.home / "bytes",
            _limit(), offline=self.offline,
        )  # fmt: skip
        root, unreached = Member(self.place, (), inside={}), list[str]()
        rows = {name: row for row, name in enumerate(names)}
        for name, stored in self.objects.items():
            parts = tuple(name.split("/"))
            is_path = not any(part in ("", ".", "..") or "\\" in part for part in parts)
            folder = _members_of(root, parts[:-1]) if is_path else None
            if folder is None or parts[-1] in folder:
                unreached.append(name)
                continue
            file = FileRef("", self.place / normalised_path(name))
            if name in rows:
                file = replace(file, offset=rows[name], size=stored.size, rows=images)
            folder[parts[-1]] = Member(self.place, parts, ref=file)
        listing = listed_tree(root, unreached, suffixes)
        other_files = [file for file in listing.files if file.rows is None]
        keys = {normalised_path(name): name for name in self.objects}
        at_once(other_files, lambda file: self.fetch(keys[file.relative], file.path))
        return listing

    def fetch(self, name: str, target: Path) -> None:
        """Downloads the object `name` to the file `target`, unless it is up to date.

        Raises:
            UsageError: The file is missing or outdated, and `offline` is set.
            RunError: The transfer or the write failed.
        """
        stored = self.objects[name]
        marker = self.home / "versions" / hashlib.sha256(name.encode()).hexdigest()[:40]
        version = f"{stored.size} {stored.version}"
        with suppress(OSError):
            is_whole = target.stat().st_size == stored.size
            if is_whole and marker.read_text(encoding="utf-8") == version:
                return
        if self.offline:
            raise not_cached(self.store.url, f"`{self.store.address(name)}` was never downloaded")
        try:
            self.store.fetch(name, target, stored)
        except FileNotFoundError as error:
            raise RunError(
                f"`{self.store.address(name)}` no longer exists.",
                "It existed when the data set was listed.",
                "Repeat the command: the data set is listed again.",
            ) from error
        write_text(marker, version)


def _members_of(root: Member, folder: tuple[str, ...]) -> dict[str, Member] | None:
    """The members of `folder`, which is created if missing; None if an object has its name."""
    members = root.inside
    for depth, part in enumerate(folder, 1):
        assert members is not None
        inner = members.setdefault(part, Member(root.archive, folder[:depth], inside={}))
        members = inner.inside
        if members is None:
            return None
    return members


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122  a million names


# Opening data sets.


_FOLDERS: dict[Path, ObjectFolder] = {}
"""Folders of object stores opened in this process, by their local folder or file."""


def folder_at(place: Path) -> ObjectFolder | None:
    """The folder that `open_address` opened for the local `place`; None for other data."""
    folder = _FOLDERS.get(place)
    return None if folder is None or "" in folder.objects else folder


def address_of(place: Path) -> str | None:
    """The address that `open_address` opened for the local `place`; None for local data."""
    folder = _FOLDERS.get(place)
    return None if folder is None else folder.store.url


def split_address(data: str) -> tuple[str, str | None]:
    """The address in `data`, and the folder after a colon for `ARCHIVE:FOLDER`, else None."""
    address, colon, folder = data.rpartition(":")
    if colon and names_url(address) and address.lower().endswith(_ARCHIVES):
        return address, folder.strip("/")
    return data, None


def open_address(url: str, *, offline: bool) -> Path:
    """Lists the data set at `url`; returns its local folder, or its downloaded archive.

    Raises:
        UsageError: The address is empty, not permitted or of an unsupported type.
        MachineError: A package or credentials are missing.
        RunError: The transfer failed.
    """
    kind_of_store(url)
    store = ObjectStore(url)
    home = data_home() / "objects" / hashlib.sha256(store.url.encode()).hexdigest()[:16]
    objects = _listed(store, home / "listing.json", offline=offline)
    parts = [file_name(part) for part in store.url.partition("://")[2].split("/")]
    place = home / "files" / Path(*parts[-2:])
    folder = ObjectFolder(store, objects, place, home, offline)
    _FOLDERS[place] = folder
    try:
        if "" in objects:
            _open_file(folder)
            return place
        for name in sorted({name.partition("/")[0] for name in objects if "/" in name}):
            if name not in (".", "..", "") and "\\" not in name:
                (place / name).mkdir(parents=True, exist_ok=True)
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refused(place, error) from error
    if _GROUPS in objects:
        folder.fetch(_GROUPS, place / _GROUPS)
    return place


def _open_file(folder: ObjectFolder) -> None:
    """Fetches an archive, and the tables of groups and classes next to it."""
    url = folder.store.url
    if not url.lower().endswith(_ARCHIVES):
        raise UsageError(
            f"`{url}` is not supported.",
            "A data set in an object store must be a folder of images, a tar or a zip; manifests "
            "refer to files on this machine.",
            "Pass the folder or an archive, or copy the file to this machine.",
        )
    folder.fetch("", folder.place)
    parent = ObjectStore(url.rpartition("/")[0])
    for ending in (_GROUPS, LABEL_FILES[0]) if not folder.offline else ():
        name = f"{archive_stem(folder.place)}.{ending}"
        table_path = folder.place.with_name(name)
        try:
            parent.fetch(name, table_path)
        except FileNotFoundError:
            table_path.unlink(missing_ok=True)


def _listed(store: ObjectStore, listing_file: Path, *, offline: bool) -> dict[str, StoredObject]:
    """The current objects of the data set; if `offline`, those of the last listing."""
    if offline:
        try:
            listing = parse_json(listing_file.read_text(encoding="utf-8"))
            if listing["schema_version"] != _FORMAT:
                raise ValueError("it has another version")
            return {name: StoredObject(*facts) for name, *facts in listing["objects"]}
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise not_cached(store.url, "it was never listed") from error
    objects = store.listed()
    if not objects:
        raise UsageError(
            f"No data was found at `{store.url}`.",
            "No object has a name with this prefix.",
            "Check the address: `aws s3 ls`, `gcloud storage ls` and `hf` list what is stored.",
        )
    rows = [[name, stored.size, stored.version] for name, stored in objects.items()]
    content = {"schema_version": _FORMAT, "url": store.url, "objects": rows}
    write_text(listing_file, json.dumps(content) + "\n")
    return objects


def _limit() -> int:
    """Size limit in bytes of the image cache of one data set.

    Raises:
        UsageError: The environment variable is not a number.
    """
    text = os.environ.get(LIMIT, "")
    try:
        size = float(text) if text else _DEFAULT_LIMIT_GB
        return int(max(0.0, size) * 1e9)
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"The environment variable {LIMIT} is `{text}`.",
            "Expected a number of gigabytes, 0 or more.",
            f"Set it to a number such as {_DEFAULT_LIMIT_GB:.0f}, or unset it.",
        ) from error

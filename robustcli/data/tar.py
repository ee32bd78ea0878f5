"""Photos inside a tar: listed once, then read by offset without opening the archive again."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import tarfile
import zlib
from pathlib import Path

from filelock import FileLock

from robustcli.core.atomic import replacing
from robustcli.core.errors import UsageError
from robustcli.data.home import data_home
from robustcli.data.listing import Entry, is_image, stable

COMPRESSED_SUFFIXES = (".tar.gz", ".tgz")
TAR_SUFFIXES = (".tar", *COMPRESSED_SUFFIXES)


def is_tar(path: Path) -> bool:
    """Whether `path` is named like a tar that can be read."""
    return path.name.lower().endswith(TAR_SUFFIXES)


def list_tar(path: Path) -> list[Entry]:
    """Every image in the tar at `path`, with its place in the (uncompressed) archive.

    A compressed tar cannot be read at random: it is first decompressed, once, into the data home.
    Links inside the archive and hidden files are left out.

    Raises:
        UsageError: The file is no tar, or is damaged.
        RunError: There is no room to decompress it.
    """
    try:
        plain = _decompressed(path) if path.name.lower().endswith(COMPRESSED_SUFFIXES) else path
        with tarfile.open(plain, mode="r:") as archive:
            members = [m for m in archive if m.isreg() and not m.issparse() and is_image(m.name)]
            _check_complete(plain, archive.offset)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UsageError(
            f"`{path}` cannot be read as a tar archive.",
            f"Reading it says: {error}.",
            "Check that it was downloaded completely (`tar tf FILE` lists it), then repeat.",
        ) from error
    return [
        Entry(stable(m.name.removeprefix("./")), plain, m.name, m.offset_data, m.size)
        for m in members
    ]


def decompress(source: Path, target: Path) -> None:
    """Writes the gzip file `source`, decompressed, to `target`, durably.

    Raises:
        RunError: The disk is full, or `target` cannot be written.
        tarfile.ReadError: `source` is damaged.
    """
    with gzip.open(source, "rb") as packed, replacing(target) as beside, beside.open("wb") as out:
        try:
            shutil.copyfileobj(packed, out, length=1 << 20)
        # `replacing` would take an OSError for a refusal to write.
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise tarfile.ReadError(str(error)) from error


def _decompressed(path: Path) -> Path:
    """The decompressed twin of `path` in the data home, made when it is not there yet."""
    state = path.stat()
    identity = f"{path.resolve()}\0{state.st_size}\0{state.st_mtime_ns}"
    key = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    target = data_home() / "unpacked" / f"{path.name.split('.')[0]}-{key}.tar"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_file():
            decompress(path, target)
    return target


def _check_complete(plain: Path, end: int) -> None:
    """`tarfile` takes a cut or damaged header for the end; a whole archive ends in empty blocks."""
    with plain.open("rb") as archive:
        archive.seek(end)
        if archive.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"it breaks off at byte {end}")

"""Recognises files that are not weights by their bytes, independent of their suffix.

A failed download is often a web page, a pointer file or an archive. Each kind is a row of
`FILE_KINDS` with its test, its name, and advice on how to get the weights.
"""

from __future__ import annotations

import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from robustcli.core.errors import UsageError

_HEAD = 1024
_WEIGHTS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".th", ".tar", ".pkl")
_LENGTH = struct.Struct("<Q")
_OLDER_EXPORT = "serialized_exported_program.json"  # in archives of torch.export up to torch 2.6


@dataclass(frozen=True)
class Sniffed:
    """The first bytes of a file, and the members of an archive."""

    path: Path
    size: int
    head: bytes = field(repr=False)

    @cached_property
    def text(self) -> str:
        """The first bytes as lower-case text without a byte order mark; "" for binary files."""
        if self.head[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return self.head.decode("utf-16", "ignore").lower()
        try:
            return self.head.decode("utf-8-sig").lower()
        except UnicodeDecodeError as error:
            cut = len(self.head) == _HEAD and error.start > _HEAD - 4  # cut inside a character
            return self.head[: error.start].decode("utf-8-sig").lower() if cut else ""

    @cached_property
    def members(self) -> list[str]:
        """Member names, if the file is an undamaged zip archive."""
        if not self.head.startswith(b"PK"):
            return []
        try:
            with zipfile.ZipFile(self.path) as archive:
                return archive.namelist()
        except (zipfile.BadZipFile, OSError, ValueError):
            return []

    def holds(self, *endings: str) -> bool:
        """Whether a member name ends with one of `endings`."""
        return any(name.endswith(endings) for name in self.members)

    def begins(self, *marks: bytes) -> bool:
        """Whether the file begins with one of `marks`."""
        return self.head.startswith(marks)


@dataclass(frozen=True)
class FileKind:
    """A kind of file without weights, or with weights that need code to be read.

    Args:
        what: Name with an article.
        matches: Tells whether a file is of this kind.
        why: Explanation for the user.
        todo: Advice on how to get the weights.
    """

    what: str
    matches: Callable[[Sniffed], bool]
    why: str
    todo: str


def _is_markup(file: Sniffed) -> bool:
    start = file.text.lstrip()
    return start.startswith(("<!doctype", "<html", "<head", "<body", "<script", "<?xml", "<error"))


def _is_json(file: Sniffed) -> bool:
    return file.text.lstrip().startswith(("{", "["))


def _is_text(file: Sniffed) -> bool:
    printable = sum(character.isprintable() or character.isspace() for character in file.text)
    return len(file.text) > 0 and printable == len(file.text) and file.size > 0


def _is_onnx(file: Sniffed) -> bool:
    """Whether the file starts like ONNX: protobuf field 1 (a small version), then a text field."""
    if file.path.suffix.lower() == ".onnx":
        return True
    return len(file.head) > 3 and file.head[0] == 8 and file.head[1] < 32 and file.head[2] == 0x12


def _is_tar(file: Sniffed) -> bool:
    return file.head[257:262] == b"ustar" or (
        not file.members and file.size >= 512 and _opens_as_tar(file.path)
    )


def _opens_as_tar(path: Path) -> bool:
    try:
        with tarfile.open(path, "r:"):
            return True
    except (tarfile.TarError, OSError, ValueError, EOFError):
        return False


_UNPACK = "Unpack it, and pass the file that contains the weights."

FILE_KINDS: tuple[FileKind, ...] = (
    FileKind(
        "an empty file", lambda file: file.size == 0,
        "It has 0 bytes: the download or the copy failed at the start, or the disk was full.",
        "Download or copy it again.",
    ),
    FileKind(
        "a file of zeros", lambda file: not any(file.head),
        "Its disk space was reserved, but the download was not completed.",
        "Download it again.",
    ),
    FileKind(
        "a Git LFS pointer", lambda file: file.begins(b"version https://git-lfs"),
        "The repository was cloned without its large files: this file is only a pointer to the "
        "actual file.",
        "Run `git lfs pull` in that repository, or download the actual file.",
    ),
    FileKind(
        "a web page, not the file", _is_markup,
        "The server returned a web page: it requires a login or a confirmation, its quota is "
        "exceeded, or the address is that of a page about the file.",
        "Open the address in a browser, and download the actual file.",
    ),
    FileKind(
        "JSON", _is_json,
        "It is a configuration, an index of weights in several files, or the response of a server.",
        "Pass the file with the weights (it ends with .safetensors, .pth, .pt or .bin).",
    ),
    FileKind(
        "an HDF5 file, as written by Keras and TensorFlow",
        lambda file: file.begins(b"\x89HDF\r\n\x1a\n"),
        "This program uses PyTorch networks, whose weights have different names and layouts.",
        "Pass a PyTorch file of the same network (.pth, .pt, .safetensors).",
    ),
    FileKind(
        "a Keras archive", lambda file: file.holds("model.weights.h5"),
        "This program uses PyTorch networks, whose weights have different names and layouts.",
        "Pass a PyTorch file of the same network (.pth, .pt, .safetensors).",
    ),
    FileKind(
        "a TorchScript archive", lambda file: file.holds("/constants.pkl"),
        "It contains a program in addition to the weights, which would have to be run to read "
        "them.",
        "To evaluate this program, pass the file as the model: `--model FILE`. Or, if you trust "
        "it, save only its weights: `torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)`.",
    ),
    FileKind(
        "an archive of torch.export",
        lambda file: file.holds("/archive_format", "archive_format", _OLDER_EXPORT),
        "It contains a program in addition to the weights, which would have to be run to read "
        "them.",
        "If you trust it, save only its weights: "
        "`torch.save(dict(torch.export.load(FILE).state_dict), NEW_FILE)`.",
    ),
    FileKind(
        "an ONNX file", _is_onnx,
        "It contains a graph whose weights no longer have the names of the network.",
        "To evaluate this graph, pass the file as the model (`--model FILE`); otherwise pass the "
        "PyTorch file from which it was exported.",
    ),
    FileKind(
        "a NumPy file", lambda file: file.begins(b"\x93NUMPY") or file.holds(".npy"),
        "It contains arrays in the layout of JAX and Flax projects.",
        "Pass a PyTorch file of the same network; timm has converted most of them.",
    ),
    FileKind(
        "a GGUF file", lambda file: file.begins(b"GGUF"),
        "It contains quantised weights for other programs.",
        "Pass the PyTorch file from which it was made.",
    ),
    FileKind(
        "a TensorFlow Lite file", lambda file: file.head[4:8] == b"TFL3",
        "It holds a program for other devices.",
        "Pass a PyTorch file of the same network (.pth, .pt, .safetensors).",
    ),
    FileKind(
        "a picture or a document",
        lambda file: file.begins(b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"%PDF", b"II*\0", b"MM\0*"),
        "It holds no weights of any network.",
        "Check the path given to `--weights`.",
    ),
    FileKind(
        "a compressed file",
        lambda file: file.begins(
            b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"7z\xbc\xaf", b"Rar!", b"\x28\xb5\x2f\xfd"
        ),
        "Compressed weights files are not supported.", _UNPACK,
    ),
    FileKind(
        "a zip archive of other files",
        lambda file: bool(file.members) and not file.holds("data.pkl"),
        "Files of weights that torch writes are zip archives with a `data.pkl`; it has none.",
        _UNPACK,
    ),
    FileKind(
        "a tar archive", _is_tar,
        "It is an archive of other files. (A checkpoint `.pth.tar` of a training is not an "
        "archive in spite of its name.)",
        _UNPACK,
    ),
    FileKind(
        "a text", _is_text,
        "Weights are never plain text.",
        "Check the path; if it was downloaded, the text may contain the reason.",
    ),
)  # fmt: skip


def sniff(path: Path) -> Sniffed:
    """Reads the first bytes of the file `path`.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        return Sniffed(path, path.stat().st_size, file.read(_HEAD))


def is_torchscript(path: Path) -> bool:
    """Whether `path` was written by `torch.jit.save`.

    Raises:
        OSError: The file cannot be read.
    """
    return sniff(path).holds("/constants.pkl")


def is_safetensors(path: Path) -> bool:
    """Whether `path` starts like a safetensors file: length of a JSON header, then the header.

    Also true for truncated files, for which reading reports the error.
    """
    with path.open("rb") as file:
        start = file.read(_LENGTH.size + 1)
    if len(start) <= _LENGTH.size or start[-1:] != b"{":
        return False
    return bool(_LENGTH.unpack(start[: _LENGTH.size])[0] < 1 << 40)


def not_weights(path: Path) -> UsageError | None:
    """The error that names the kind of `path`; None if it can be a weights file."""
    file = sniff(path)
    kind = next((kind for kind in FILE_KINDS if kind.matches(file)), None)
    if kind is None:
        return None
    weight_members = [name for name in file.members if name.lower().endswith(_WEIGHTS)]
    hint = f" It contains `{weight_members[0]}`." if weight_members and kind.todo == _UNPACK else ""
    shown = f" It starts with: {_beginning(file)}" if kind.what in ("a text", "JSON") else ""
    return UsageError(
        f"`{path}` cannot be used as weights: it is {kind.what}.",
        f"{kind.why}{hint}{shown}",
        kind.todo,
    )


def _beginning(file: Sniffed) -> str:
    text = file.head.decode("utf-8", "replace").strip()
    return repr(text.splitlines()[0][:80]) if text else "''"

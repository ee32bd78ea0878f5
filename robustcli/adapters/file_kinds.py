"""Recognises files that hold no weights, by their bytes and never by their suffix.

A download that went wrong is most often a page, a pointer or a wrapper around the real file. Each
kind is a row of `FILE_KINDS`: how it is known, what it is called, and how to get at the weights.
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
    """The beginning of a file, and what it holds where it is an archive."""

    path: Path
    size: int
    head: bytes = field(repr=False)

    @cached_property
    def text(self) -> str:
        """The beginning as text, in lower case and without a byte order mark; "" for bytes."""
        if self.head[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return self.head.decode("utf-16", "ignore").lower()
        try:
            return self.head.decode("utf-8-sig").lower()
        except UnicodeDecodeError as error:
            cut = len(self.head) == _HEAD and error.start > _HEAD - 4  # inside of a character
            return self.head[: error.start].decode("utf-8-sig").lower() if cut else ""

    @cached_property
    def members(self) -> list[str]:
        """The names of the members of a complete zip archive; empty for other files."""
        if not self.head.startswith(b"PK"):
            return []
        try:
            with zipfile.ZipFile(self.path) as archive:
                return archive.namelist()
        except (zipfile.BadZipFile, OSError, ValueError):
            return []

    def holds(self, *endings: str) -> bool:
        """Whether the name of a member of the zip archive has this ending."""
        return any(name.endswith(endings) for name in self.members)

    def begins(self, *marks: bytes) -> bool:
        """Whether the file begins with one of `marks`."""
        return self.head.startswith(marks)


@dataclass(frozen=True)
class FileKind:
    """One kind of file that holds no weights, or none that can be read without running code.

    Args:
        what: Its name with an article.
        matches: Whether a file is of this kind.
        why: What that means for the user.
        todo: How to come to the weights.
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
    """Protobuf: field 1 (the version of the format, a small number), then a field that is text."""
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


_UNPACK = "Unpack it, and name the file inside that holds the weights."

FILE_KINDS: tuple[FileKind, ...] = (
    FileKind(
        "an empty file", lambda file: file.size == 0,
        "It has 0 bytes: the download or the copy never began, or the disk was full.",
        "Download or copy it again.",
    ),
    FileKind(
        "a file of zeros", lambda file: not any(file.head),
        "Its place on the disk was taken, but the download never filled it.",
        "Download it again.",
    ),
    FileKind(
        "a Git LFS pointer", lambda file: file.begins(b"version https://git-lfs"),
        "The repository was cloned without its large files: these few lines stand for the real "
        "one.",
        "Run `git lfs pull` in that repository, or download the file itself.",
    ),
    FileKind(
        "a web page, not the file", _is_markup,
        "The server answered with a page: it wants a login or a confirmation, its quota is used "
        "up, or the address is that of the page about the file.",
        "Open the address in a browser, and download the file itself.",
    ),
    FileKind(
        "JSON", _is_json,
        "It is a configuration, an index of weights in several files, or a server's answer.",
        "Name the file with the weights themselves (it ends in .safetensors, .pth, .pt or .bin).",
    ),
    FileKind(
        "an HDF5 file, as Keras and TensorFlow write them",
        lambda file: file.begins(b"\x89HDF\r\n\x1a\n"),
        "The networks here are PyTorch's, whose weights have other names and layouts.",
        "Name a PyTorch file of the same network (.pth, .pt, .safetensors).",
    ),
    FileKind(
        "a Keras archive", lambda file: file.holds("model.weights.h5"),
        "The networks here are PyTorch's, whose weights have other names and layouts.",
        "Name a PyTorch file of the same network (.pth, .pt, .safetensors).",
    ),
    FileKind(
        "a TorchScript archive", lambda file: file.holds("/constants.pkl"),
        "It holds a program beside the weights, which would have to be run to read them.",
        "To measure that program, name the file as the model: `--model FILE`. Or, where you trust "
        "it, save its weights alone: `torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)`.",
    ),
    FileKind(
        "an archive of torch.export",
        lambda file: file.holds("/archive_format", "archive_format", _OLDER_EXPORT),
        "It holds a program beside the weights, which would have to be run to read them.",
        "Where you trust it, save its weights alone: "
        "`torch.save(dict(torch.export.load(FILE).state_dict), NEW_FILE)`.",
    ),
    FileKind(
        "an ONNX file", _is_onnx,
        "It holds a graph whose weights have lost the names of the network.",
        "To measure that graph, name the file as the model (`--model FILE`); else name the PyTorch "
        "file that it was exported from.",
    ),
    FileKind(
        "a NumPy file", lambda file: file.begins(b"\x93NUMPY") or file.holds(".npy"),
        "It holds arrays, as JAX and Flax projects publish them, in a layout of their own.",
        "Name a PyTorch file of the same network; timm has converted most of them.",
    ),
    FileKind(
        "a GGUF file", lambda file: file.begins(b"GGUF"),
        "It holds quantised weights for other programs.",
        "Name the PyTorch file that it was made from.",
    ),
    FileKind(
        "a TensorFlow Lite file", lambda file: file.head[4:8] == b"TFL3",
        "It holds a program for other devices.",
        "Name a PyTorch file of the same network (.pth, .pt, .safetensors).",
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
        "Files of weights are read as they are, not compressed.", _UNPACK,
    ),
    FileKind(
        "a zip archive of other files",
        lambda file: bool(file.members) and not file.holds("data.pkl"),
        "Files of weights that torch writes are zip archives with a `data.pkl`; it has none.",
        _UNPACK,
    ),
    FileKind(
        "a tar archive", _is_tar,
        "It packs other files. (A file `.pth.tar` of a training is none, whatever it is called.)",
        _UNPACK,
    ),
    FileKind(
        "a text", _is_text,
        "Weights are never plain text.",
        "Check the path; if it was downloaded, the text says what went wrong.",
    ),
)  # fmt: skip


def sniff(path: Path) -> Sniffed:
    """The beginning of the file `path`.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        return Sniffed(path, path.stat().st_size, file.read(_HEAD))


def is_torchscript(path: Path) -> bool:
    """Whether `path` is an archive that `torch.jit.save` wrote.

    Raises:
        OSError: It cannot be read.
    """
    return sniff(path).holds("/constants.pkl")


def is_safetensors(path: Path) -> bool:
    """Whether `path` is a safetensors file: the length of a JSON header, then that header.

    A file whose end is missing is one too: reading it says so.
    """
    with path.open("rb") as file:
        start = file.read(_LENGTH.size + 1)
    if len(start) <= _LENGTH.size or start[-1:] != b"{":
        return False
    return bool(_LENGTH.unpack(start[: _LENGTH.size])[0] < 1 << 40)


def not_weights(path: Path) -> UsageError | None:
    """The error for a file that holds no weights; it names the kind of the file."""
    file = sniff(path)
    kind = next((kind for kind in FILE_KINDS if kind.matches(file)), None)
    if kind is None:
        return None
    weight_members = [name for name in file.members if name.lower().endswith(_WEIGHTS)]
    hint = f" Inside is `{weight_members[0]}`." if weight_members and kind.todo == _UNPACK else ""
    shown = f" It begins: {_beginning(file)}" if kind.what in ("a text", "JSON") else ""
    return UsageError(
        f"`{path}` cannot be used as weights: it is {kind.what}.",
        f"{kind.why}{hint}{shown}",
        kind.todo,
    )


def _beginning(file: Sniffed) -> str:
    text = file.head.decode("utf-8", "replace").strip()
    return repr(text.splitlines()[0][:80]) if text else "''"

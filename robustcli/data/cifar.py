"""CIFAR-10 and CIFAR-100 in their published formats: Python pickles, or the binary version.

Each image is a range of bytes in a file. Listing the data set reads only the labels; the pixels of
an image are read when it is decoded.

No code in the pickles is executed. `read_pickle` refuses files with instructions other than those
of lists, dicts, tuples, strings, numbers and arrays, and replaces NumPy's three names in the pickle
of an array by objects of this module. No object with another name is imported, created or called.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009, and the layouts
on www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from robustcli.core.errors import UsageError
from robustcli.data.dataset import FileRef, RawPixels
from robustcli.data.layouts import Labelled, Layout

SIDE = 32
IMAGE_BYTES = 3 * SIDE * SIDE
PLANAR = RawPixels(SIDE, SIDE, planar=True)
SUFFIXES = frozenset({"", ".bin", ".meta", ".txt"})
"""Suffixes of the published files; pickles have none."""
_DIGITS = {"train": 5, "test": 4}


@dataclass(frozen=True)
class _Version:
    """A published format of the data.

    Args:
        parts: Names of the files of each split, in order.
        names_file: Name of the file with the class names.
        names_key: Key of the class names in that pickle; None for a text file with one name per
            line.
        labels_key: Key of the labels in the pickles of images; None for the binary version.
        label_bytes: Number of bytes before each image of the binary version; the last one is the
            label.
    """

    parts: Mapping[str, tuple[str, ...]]
    names_file: str
    names_key: str | None = None
    labels_key: str | None = None
    label_bytes: int = 0


_TRAIN = [f"data_batch_{number}" for number in range(1, 6)]
_VERSIONS = (
    _Version({"train": tuple(_TRAIN), "test": ("test_batch",)}, "batches.meta", "label_names",
             "labels"),
    _Version({"train": ("train",), "test": ("test",)}, "meta", "fine_label_names", "fine_labels"),
    _Version({"train": tuple(f"{name}.bin" for name in _TRAIN), "test": ("test_batch.bin",)},
             "batches.meta.txt", label_bytes=1),
    _Version({"train": ("train.bin",), "test": ("test.bin",)}, "fine_label_names.txt",
             label_bytes=2),
)  # fmt: skip


def by_cifar_files(location: Path, files: Sequence[FileRef]) -> Layout[str] | None:
    """The images of CIFAR-10 or CIFAR-100 in published order, ids `train/00000` to `test/9999`.

    Labels of CIFAR-100 are its 100 fine classes.

    Args:
        location: Path of the data set, for messages.
        files: Files of the data set with one of `SUFFIXES`.

    Returns:
        The labelled images; None if the files are not those of CIFAR.

    Raises:
        UsageError: A file is missing or has an unexpected format, or a pickle contains other
            objects.
    """
    by_path = {file.relative.rpartition("/")[::2]: file for file in files}
    for version in _VERSIONS:
        test_file = version.parts["test"][0]
        folders = sorted(
            folder for folder, name in by_path
            if name == test_file and (folder, version.names_file) in by_path
        )  # fmt: skip
        if len(folders) > 1:
            raise UsageError(
                f"`{location}` contains CIFAR's files {len(folders)} times.",
                f"They are in `{folders[0]}` and in `{folders[1]}`.",
                "Pass one of these folders with `--data`.",
            )
        if folders:
            inside = {name: file for (f, name), file in by_path.items() if f == folders[0]}
            return Layout(tuple(_images(location, version, inside)), evaluated="test")
    return None


def _images(
    location: Path, version: _Version, files: Mapping[str, FileRef]
) -> Iterator[Labelled[str]]:
    missing = [name for name in version.parts["train"] if name not in files]
    if missing and len(missing) < len(version.parts["train"]):
        raise UsageError(
            f"`{location}` is incomplete: {len(missing)} of CIFAR's training files are missing.",
            f"Missing: {', '.join(f'`{name}`' for name in missing)}.",
            "Download the archive again, or remove all training files to evaluate on the test "
            "images only.",
        )
    names = _class_names(version, files[version.names_file])
    for split, parts in version.parts.items():
        number = 0
        for file in (files[name] for name in parts if name in files):
            for label, row in _rows(version, file):
                if label >= len(names):
                    _broken(file, f"image {row.relative} has class {label} of {len(names)}")
                image_id = f"{split}/{number:0{_DIGITS[split]}d}"
                image = FileRef(
                    image_id, row.path, f"image {number}", row.offset, row.size, raw=PLANAR
                )
                yield Labelled(image, names[label], split)
                number += 1


def _class_names(version: _Version, file: FileRef) -> list[str]:
    content = file.read()
    if version.names_key is None:
        names: Any = [line.strip() for line in content.decode("latin-1").splitlines()]
        names = [line for line in names if line]
    else:
        names = _dictionary(file, content).get(version.names_key)
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        _broken(file, f"it has no list `{version.names_key or 'of classes'}`")
    return names


def _rows(version: _Version, file: FileRef) -> Iterator[tuple[int, FileRef]]:
    """The class index and the byte range of each image of a file."""
    content = file.read()
    if version.labels_key is None:
        record = version.label_bytes + IMAGE_BYTES
        if not content or len(content) % record:
            _broken(file, f"it has {len(content):,} bytes, which is not a multiple of {record:,}")
        labels: Any = list(content[version.label_bytes - 1 :: record])
        first = version.label_bytes
    else:
        record, content_dict = IMAGE_BYTES, _dictionary(file, content)
        labels, array = content_dict.get(version.labels_key), content_dict.get("data")
        if not isinstance(array, PickledArray) or not array.values:
            _broken(file, "it has no array `data`")
        if not isinstance(labels, list) or not all(type(x) is int and x >= 0 for x in labels):
            _broken(file, f"it has no list `{version.labels_key}` of class numbers")
        if array.shape != (len(labels), IMAGE_BYTES) or array.dtype != "u1" or array.fortran:
            _broken(
                file,
                f"`data` is {array.dtype} of shape {array.shape}; expected u1 of shape "
                f"({len(labels)}, {IMAGE_BYTES}), rows first",
            )
        first = content.index(array.values)
    for number, label in enumerate(labels):
        start = file.offset + first + number * record
        yield label, FileRef(str(number), file.path, file.member, start, IMAGE_BYTES)


def _dictionary(file: FileRef, content: bytes) -> dict[Any, Any]:
    """The dictionary in a pickle; texts that Python 3 saved as bytes become strings."""
    value = read_pickle(content, str(file))
    if not isinstance(value, dict):
        _broken(file, f"it contains a {type(value).__name__}, not a dictionary")
    return {
        _text(key): list(map(_text, item)) if isinstance(item, list) else item
        for key, item in value.items()
    }


def _text(value: Any) -> Any:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _broken(file: FileRef, reason: str) -> NoReturn:
    raise UsageError(
        f"`{file}` is not one of CIFAR's files as published.",
        f"{reason[0].upper()}{reason[1:]}.",
        "Download the archive again from www.cs.toronto.edu/~kriz/cifar.html.",
    )


@dataclass
class PickledArray:
    """A NumPy array of bytes in a pickle; `dtype` is the name of its dtype, such as `u1`."""

    shape: tuple[int, ...] = ()
    dtype: str = ""
    fortran: bool = False
    values: bytes = field(default=b"", repr=False)

    def __setstate__(self, state: Any) -> None:
        """Sets the fields as NumPy's arrays do."""
        _, self.shape, dtype, self.fortran, values = state
        self.dtype = dtype.text if isinstance(dtype, _Dtype) else "unknown"
        values = values.encode("latin-1") if isinstance(values, str) else values
        self.values = values if isinstance(values, bytes) else b""
        if len(self.values) != math.prod(self.shape):
            raise _RefusedError(f"an array of shape {self.shape} has {len(self.values):,} values")


class _Dtype:
    """Replaces NumPy's dtype; its state, such as the order of bytes, is ignored."""

    def __init__(self, text: object, *_: object) -> None:
        if not isinstance(text, str):
            raise _RefusedError("it calls an object that is not an array")
        self.text = text

    def __setstate__(self, _: object) -> None:
        pass


def _array_type(*_: object) -> None:
    """Replaces `numpy.ndarray`, which a pickle of an array passes on and does not call."""
    raise _RefusedError("it calls an object that is not an array")


def _reconstruct(*_: object) -> PickledArray:
    return PickledArray()


class _RefusedError(Exception):
    """A pickle contains something other than values and arrays."""


_NAMES = {
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy.ndarray": _array_type,
    "numpy.dtype": _Dtype,
}
_INSTRUCTIONS = frozenset(
    {
        *("PROTO", "FRAME", "STOP", "MARK", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"),
        *("GET", "BINGET", "LONG_BINGET", "NONE", "NEWTRUE", "NEWFALSE"),
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "LIST", "EMPTY_LIST", "APPEND", "APPENDS"),
        *("DICT", "EMPTY_DICT", "SETITEM", "SETITEMS"),
        *("TUPLE", "EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
        *("GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD"),
    }
)
_MOST_TUPLES = 100  # a batch has eight
_MAYBE_A_TUPLE = ("TUPLE", "APPEND", "SETITEM", "BUILD", "GET", "BINGET", "LONG_BINGET")
"""Beginnings of the names of instructions after which the top of the stack can be a tuple."""


class _Unpickler(pickle.Unpickler):
    """See "Restricting Globals" in the documentation of `pickle`."""

    def find_class(self, module: str, name: str) -> Any:
        """The replacement of a name in the pickle; nothing is imported."""
        if f"{module}.{name}" not in _NAMES:
            raise _RefusedError(f"it names `{module}.{name}`")
        return _NAMES[f"{module}.{name}"]


def read_pickle(content: bytes, name: str) -> Any:
    """The value of a pickle, without execution of any code in it.

    The pickle may contain lists, dicts, tuples, strings, numbers and arrays of bytes
    (`PickledArray`). Strings of Python 2 are decoded as Latin-1.

    Args:
        content: The bytes of the pickle.
        name: Name of the file, for messages.

    Raises:
        UsageError: The pickle contains anything else, or is damaged.
    """
    try:
        _check_instructions(content)
        return _Unpickler(io.BytesIO(content), encoding="latin-1").load()
    except _RefusedError as error:
        raise UsageError(
            f"`{name}` is refused.",
            f"It is a pickle with contents other than numbers, strings and an array: {error}. "
            "Unpickling this file could run any program.",
            "Download the archive again from www.cs.toronto.edu/~kriz/cifar.html, or use the "
            "binary version.",
        ) from error
    except Exception as error:  # a damaged pickle can raise any exception
        raise UsageError(
            f"`{name}` cannot be read as a pickle.",
            f"The error is: {error}.",
            "Check that the download is complete, then repeat the command.",
        ) from error


def _check_instructions(content: bytes) -> None:
    """Raises `_RefusedError` for instructions that lists, dictionaries and arrays do not need.

    A tuple can be a key of a dictionary: Python's hash of it ends the process if it is nested
    deeply, and takes forever if it contains another one twice, which contains another one twice...
    """
    tuples, previous = 0, ""
    can_be_tuple: dict[int, bool] = {}  # by the number of a stored value
    for opcode, argument, _ in pickletools.genops(content):
        name = opcode.name
        if name not in _INSTRUCTIONS:
            raise _RefusedError(f"it has the instruction {name}")
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            number = len(can_be_tuple) if argument is None else int(argument)
            if number > len(content):  # would allocate as much memory
                raise _RefusedError(f"it has the instruction {name}")
            can_be_tuple[number] = previous.startswith(_MAYBE_A_TUPLE)
        elif name not in ("PROTO", "FRAME"):
            tuples += "TUPLE" in name
            repeated = "GET" in name and can_be_tuple.get(int(argument or 0), False)
            if repeated or tuples > _MOST_TUPLES:
                raise _RefusedError("it has tuples in tuples")
            previous = name

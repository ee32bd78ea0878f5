"""CIFAR-10 and CIFAR-100 in their published formats: Python pickles, or the binary version.

Each image is a range of bytes in a file. Listing the data set reads only the labels; the pixels of
an image are read when it is decoded.

The pickles are not unpickled. `read_pickle` interprets their opcodes (`pickletools.genops`, which
executes nothing) and builds lists, dicts and strings. The only accepted names are NumPy's three
names in the pickle of an array of bytes. No object named in a pickle is created, and no function
named in it is called.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009, and the layouts
on www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable, Iterator, Mapping, Sequence
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
        names = _dictionary(file, read_pickle(content, str(file))).get(version.names_key)
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
        record, content_dict = IMAGE_BYTES, _dictionary(file, read_pickle(content, str(file)))
        labels, array = content_dict.get(version.labels_key), content_dict.get("data")
        if not isinstance(array, PickledArray) or array.start is None:
            _broken(file, "it has no array `data`")
        if not isinstance(labels, list) or not all(type(x) is int and x >= 0 for x in labels):
            _broken(file, f"it has no list `{version.labels_key}` of class numbers")
        if array.shape != (len(labels), IMAGE_BYTES) or array.dtype != "u1" or array.fortran:
            _broken(
                file,
                f"`data` is {array.dtype} of shape {array.shape}; expected u1 of shape "
                f"({len(labels)}, {IMAGE_BYTES}), rows first",
            )
        first = array.start
    for number, label in enumerate(labels):
        start = file.offset + first + number * record
        yield label, FileRef(str(number), file.path, file.member, start, IMAGE_BYTES)


def _dictionary(file: FileRef, value: object) -> dict[Any, Any]:
    if not isinstance(value, dict):
        _broken(file, f"it contains a {type(value).__name__}, not a dictionary")
    return value


def _broken(file: FileRef, reason: str) -> NoReturn:
    raise UsageError(
        f"`{file}` is not one of CIFAR's files as published.",
        f"{reason[0].upper()}{reason[1:]}.",
        "Download the archive again from www.cs.toronto.edu/~kriz/cifar.html.",
    )


@dataclass
class PickledArray:
    """A NumPy array of bytes in a pickle.

    Args:
        shape: Shape of the array.
        dtype: Name of its dtype, such as `u1`.
        fortran: Whether the array is column-major.
        start: Offset of its bytes in the pickle; None until it is known.
    """

    shape: tuple[int, ...] = ()
    dtype: str = ""
    fortran: bool = False
    start: int | None = None


@dataclass(frozen=True)
class _Name:
    """The name of a function or class in a pickle, which is never imported."""

    text: str


@dataclass(frozen=True)
class _Dtype:
    text: str


@dataclass(frozen=True)
class _LongText:
    """Offset in the pickle and length in bytes of a long string, such as the data of an array."""

    start: int
    size: int


_RECONSTRUCT = frozenset(
    {"numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct"}
)
_ALLOWED_NAMES = _RECONSTRUCT | {"numpy ndarray", "numpy dtype"}
_LONG = 4096
_HEADS = {"SHORT_BINSTRING": 2, "BINSTRING": 5, "SHORT_BINBYTES": 2, "BINBYTES": 5, "BINBYTES8": 9}
"""Size in bytes of an opcode and its length field, which precede the string."""
_VALUES = frozenset(
    {
        *("STRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE"),
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1"),
    }
)
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple,
}  # fmt: skip
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_STORES = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})


@dataclass
class _Machine:
    """The stack and the memo of the pickle interpreter; `name` is the file, for messages."""

    name: str
    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def step(self, opcode: str, value: Any, position: int) -> None:
        """Executes one opcode; raises UsageError for an opcode that is not allowed."""
        if opcode in _HEADS:
            text = value if isinstance(value, str) else value.decode("latin-1")
            start = position + _HEADS[opcode]
            self.stack.append(_LongText(start, len(text)) if len(text) > _LONG else text)
        elif opcode in _VALUES:
            self.stack.append(value)
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode]())
        elif opcode in _TUPLES:
            count = _TUPLES[opcode]
            self.stack[-count:] = [tuple(self.stack[-count:])]
        elif opcode in _FROM_MARK:
            self.stack.append(_FROM_MARK[opcode](self.marked()))
        elif opcode in _STORES:
            self.memo[len(self.memo) if value is None else int(value)] = self.stack[-1]
        elif opcode in _ACTIONS:
            _ACTIONS[opcode](self, value)
        elif opcode not in _NOTHING:
            raise self.refusal(f"it has the instruction {opcode}")

    def load(self, value: Any) -> None:
        self.stack.append(self.memo[int(value)])

    def append(self, _: Any) -> None:
        value = self.stack.pop()
        self.top(list).append(value)

    def append_all(self, _: Any) -> None:
        values = self.marked()
        self.top(list).extend(values)

    def set_item(self, _: Any) -> None:
        pair = [self.stack.pop(-2), self.stack.pop()]
        self.top(dict).update(_pairs(pair))

    def set_all(self, _: Any) -> None:
        values = self.marked()
        self.top(dict).update(_pairs(values))

    def name_of(self, value: Any) -> None:
        """Pushes a name: the argument of GLOBAL, or for STACK_GLOBAL two values from the stack."""
        text = " ".join((self.stack.pop(-2), self.stack.pop())) if value is None else value
        if text not in _ALLOWED_NAMES:
            raise self.refusal(f"it names `{text.replace(' ', '.')}`")
        self.stack.append(_Name(text))

    def marked(self) -> list[Any]:
        """Pops and returns the values above the last mark."""
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def top(self, kind: type[Any]) -> Any:
        """The top of the stack; raises UsageError if its type is not `kind`."""
        if type(self.stack[-1]) is not kind:
            raise self.refusal(f"it adds to a {type(self.stack[-1]).__name__}")
        return self.stack[-1]

    def call(self, _: Any) -> None:
        """Pushes an empty array or a NumPy dtype; raises UsageError for any other call."""
        function, arguments = self.stack.pop(-2), self.stack.pop()
        if isinstance(function, _Name) and function.text in _RECONSTRUCT:
            self.stack.append(PickledArray())
        elif function == _Name("numpy dtype") and arguments and type(arguments[0]) is str:
            self.stack.append(_Dtype(arguments[0]))
        else:
            raise self.refusal("it calls an object that is not an array")

    def build(self, _: Any) -> None:
        """Sets the state of an array; the state of a dtype is ignored."""
        state, array = self.stack.pop(), self.stack[-1]
        if isinstance(array, _Dtype):
            return
        if not isinstance(array, PickledArray) or type(state) is not tuple or len(state) != 5:
            raise self.refusal("it fills an object that is not an array")
        _, array.shape, dtype, array.fortran, values = state
        array.dtype = dtype.text if isinstance(dtype, _Dtype) else "unknown"
        if isinstance(values, _LongText):
            array.start = values.start
            if values.size != math.prod(array.shape):
                raise self.refusal(f"an array of shape {array.shape} has {values.size:,} values")

    def refusal(self, reason: str) -> UsageError:
        return UsageError(
            f"`{self.name}` is refused.",
            f"It is a pickle with contents other than numbers, strings and an array: {reason}. "
            "Unpickling this file could run any program.",
            "Download the archive again from www.cs.toronto.edu/~kriz/cifar.html, or use the "
            "binary version.",
        )


def _pairs(values: list[Any]) -> dict[str, Any]:
    """A dictionary of alternating keys and values; raises TypeError for keys that are not strings.

    Python's hash of a tuple ends the process if tuples are nested deeply, and takes forever if each
    contains the next one twice.
    """
    keys = values[::2]
    if not all(type(key) is str for key in keys):
        raise TypeError("a key of a dictionary is not a string")
    return dict(zip(keys, values[1::2], strict=True))


_FROM_MARK: dict[str, Callable[[list[Any]], Any]] = {"TUPLE": tuple, "LIST": list, "DICT": _pairs}
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.load),
    "APPEND": _Machine.append, "APPENDS": _Machine.append_all,
    "SETITEM": _Machine.set_item, "SETITEMS": _Machine.set_all,
    "GLOBAL": _Machine.name_of, "STACK_GLOBAL": _Machine.name_of,
    "REDUCE": _Machine.call, "BUILD": _Machine.build,
}  # fmt: skip
_NOTHING = frozenset({"PROTO", "FRAME", "STOP"})


def read_pickle(content: bytes, name: str) -> Any:
    """The value of a pickle, without execution of any code in it.

    The pickle may contain lists, dicts, tuples, strings, numbers and arrays of bytes
    (`PickledArray`). Short byte strings are decoded as Latin-1.

    Args:
        content: The bytes of the pickle.
        name: Name of the file, for messages.

    Raises:
        UsageError: The pickle contains anything else, or is damaged.
    """
    machine = _Machine(name)
    try:
        for opcode, value, position in pickletools.genops(content):
            machine.step(opcode.name, value, position or 0)
        return machine.stack.pop()
    except UsageError:
        raise
    # A damaged pickle can raise any of these, in genops or in operations on the stack.
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, UnicodeError) as error:
        raise UsageError(
            f"`{name}` cannot be read as a pickle.",
            f"The error is: {error}.",
            "Check that the download is complete, then repeat the command.",
        ) from error

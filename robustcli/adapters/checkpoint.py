"""Reads weights from files without running code in them.

`WEIGHTS_KEYS` lists the keys under which programs store weights. All options that take weights
(`--weights`, `--pretrained`, `create_model`) read files with `read_weights` and load them with
`strict_loading.load_strictly`. `FILE_KINDS` lists kinds of files that are not weights, and advice
on how to get the weights: a failed download is often a web page, a pointer file or an archive.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import struct
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from robustcli.core.errors import UsageError, first_line, shortened_text


@dataclass(frozen=True)
class WeightsKey:
    """A key under which programs store weights, as a dictionary key or a prefix of tensor names.

    Args:
        key: The key.
        writers: Programs that write it.
        averaged: Whether the weights are averages over training steps.
    """

    key: str
    writers: str
    averaged: bool = False


WEIGHTS_KEYS: tuple[WeightsKey, ...] = (
    WeightsKey("state_dict_ema", "timm", averaged=True),
    WeightsKey("model_ema", "VMamba, DeiT, ConvNeXt", averaged=True),
    WeightsKey("ema_state_dict", "training scripts", averaged=True),
    WeightsKey("model_ema_state_dict", "training scripts", averaged=True),
    WeightsKey("ema_model", "Lightning modules, ema-pytorch", averaged=True),
    WeightsKey("ema_model_state_dict", "training scripts", averaged=True),
    WeightsKey("params_ema", "BasicSR", averaged=True),
    WeightsKey("ema", "training scripts", averaged=True),
    WeightsKey("averaged_model", "training scripts", averaged=True),
    WeightsKey("swa_model", "training scripts", averaged=True),
    WeightsKey("swa_state_dict", "training scripts", averaged=True),
    WeightsKey("state_dict", "timm, Lightning, OpenMMLab"),
    WeightsKey("model_state_dict", "PyTorch's tutorials"),
    WeightsKey("model", "Swin, DeiT, ConvNeXt, VMamba, Vim; Lightning modules"),
    WeightsKey("network_weights", "nnU-Net"),
    WeightsKey("model_state", "pycls, ClassyVision"),
    WeightsKey("net", "pytorch-cifar"),
    WeightsKey("network", "training scripts, Lightning modules"),
    WeightsKey("net_state_dict", "training scripts"),
    WeightsKey("weights", "training scripts"),
    WeightsKey("params", "BasicSR"),
    WeightsKey("module", "DeepSpeed, DataParallel, AveragedModel"),
    WeightsKey("backbone", "OpenMMLab, self-supervised training"),
    WeightsKey("encoder", "self-supervised training"),
    WeightsKey("student", "DINO, distillation"),
    WeightsKey("teacher", "DINO, distillation"),
)
"""In order of preference for files with several sets: averaged weights first, as in timm."""
_RANKS = {place.key: rank for rank, place in enumerate(WEIGHTS_KEYS)}
_BARE, _UNKNOWN = len(WEIGHTS_KEYS), len(WEIGHTS_KEYS) + 1
# Entries next to the weights that also contain named tensors.
_BESIDE = re.compile(
    r"optim|sched|lr_sched|(grad_)?scaler|amp$|callbacks$|loops$|hyper_parameters$|args$|config$|rng"
)
# Wrappers whose name appears inside tensor names.
_WRAPPERS = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_PARALLEL, _AVERAGES = "module.", "n_averaged"
_DEEPEST = 4
_MOST_EXPANDED = 2**24  # bytes by which a tensor can exceed its storage (`expand`)
_MOST_UNPACKED = 4  # times the size of an archive; torch does not compress
_MOST_NESTED = 500  # containers inside each other; pickle itself cannot write many more
_MOST_REPEATED = 2**20  # values in containers that a pickle contains more than once
_ENDLESS = 2**60


class Weights(dict[str, Tensor]):
    """Tensors by name, with their location in the file.

    Args:
        tensors: The tensors.
        key_path: Keys that lead to the tensors, joined by dots; empty for the top level.
        remarks: Changes to the names, in words.
        other_sets: The other sets of weights in the file, in order of preference.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], key_path: str = "", remarks: Sequence[str] = (),
        other_sets: Sequence[Weights] = (),
    ) -> None:  # fmt: skip
        super().__init__(tensors)
        self.key_path, self.remarks, self.other_sets = key_path, tuple(remarks), tuple(other_sets)


class _ClassPlaceholder:
    """Replaces a class named in a checkpoint; keeps its content, runs none of its code."""

    def __new__(cls, *_: Any) -> OrderedDict[str, Any]:  # type: ignore[misc]
        """Returns an ordered dict, because torch's unpickler only fills its known classes."""
        return OrderedDict()


class _ValuePlaceholder:
    """Replaces a value that the file would construct; constructs and keeps nothing."""

    def __new__(cls, *_: Any) -> _ValuePlaceholder:
        """Returns an empty object and ignores the arguments."""
        return object.__new__(cls)

    def __setstate__(self, _: object) -> None:
        """Ignores the state."""


# Classes in common files next to the weights. None of them is imported or called: they are replaced
# by inert objects under the name in the file.
_DICTIONARIES = (
    "yacs.config.CfgNode",  # VMamba, Swin
    "argparse.Namespace",  # timm, DeiT, Vim, MAE
    "types.SimpleNamespace",
    "collections.defaultdict",
    "easydict.EasyDict",
    "addict.addict.Dict",
    *(f"{package}.config.config.ConfigDict" for package in ("mmengine", "mmcv.utils")),
    *(  # hyper-parameters of Lightning modules
        f"{module}.AttributeDict" for module in (
            "lightning.fabric.utilities.data", "lightning_fabric.utilities.data",
            "lightning.pytorch.utilities.parsing", "pytorch_lightning.utilities.parsing",
        )
    ),
)  # fmt: skip
_VALUES = (
    # NumPy's numbers (NumPy 1 and 2 name them differently): nnU-Net's log, best scores
    "numpy.dtype", "numpy.ndarray", *(
        f"numpy.{core}.multiarray.{maker}"
        for core in ("core", "_core") for maker in ("scalar", "_reconstruct")
    ),
    # the factory of a defaultdict
    *(f"builtins.{name}" for name in ("int", "float", "str", "bool", "list", "dict", "tuple")),
    # settings of Hydra
    "omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig",
    "omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata", "omegaconf.nodes.AnyNode",
    "typing.Any",
    # logs of OpenMMLab
    "mmengine.logging.history_buffer.HistoryBuffer",
    # paths and times of callbacks and scripts
    *(f"pathlib.{name}" for name in ("PosixPath", "WindowsPath", "PurePosixPath")),
    *(f"pathlib._local.{name}" for name in ("PosixPath", "WindowsPath", "PurePosixPath")),
    *(f"datetime.{name}" for name in ("datetime", "timedelta", "date")),
    "torch.torch_version.TorchVersion",
)  # fmt: skip
_KNOWN: list[Any] = [(_ClassPlaceholder, name) for name in _DICTIONARIES]
_KNOWN += [(_ValuePlaceholder, name) for name in _VALUES]


def missing_weights(path: Path) -> UsageError:
    """The error for a weights file that does not exist."""
    return UsageError(f"The weights file `{path}` does not exist.", "", "Check the path.")


def read_weights(path: Path) -> Weights:
    """Reads weights from a safetensors or torch file with any suffix.

    Of several sets of weights, the one with the first key of `WEIGHTS_KEYS` is returned; the others
    are in `other_sets`. Prefixes of DataParallel, AveragedModel and torch.compile are removed from
    the names.

    Raises:
        UsageError: The file is missing, damaged, of another kind, contains code, contains no
            weights, or contains tensors that are not numeric or larger than their storage.
    """
    if not path.is_file():
        raise missing_weights(path)
    remarks, content = _content(path)
    sets = sorted(_sets(content, ()), key=lambda weights_set: weights_set[0])
    # Counters and scores are also named tensors.
    complete_sets = [
        weights_set
        for weights_set in sets
        if any(tensor.ndim for tensor in weights_set[2].values())
    ] or sets
    if not complete_sets:
        raise UsageError(
            f"`{path}` contains no weights.",
            "Expected tensors by name, or one of the keys "
            f"{', '.join(key.key for key in WEIGHTS_KEYS)}; got {_described(content)}.",
        )
    for _, _, tensors in complete_sets:
        _check_plain(path, tensors)
    first, *other_sets = [
        _cleaned(key_path, tensors, remarks) for _, key_path, tensors in complete_sets
    ]
    return Weights(first, first.key_path, first.remarks, other_sets)


def _check_plain(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises UsageError for the first tensor that is larger than its storage in the file.

    A tensor with four bytes of storage can claim a trillion elements. Networks are built by these
    shapes, which would exhaust the memory.
    """
    for name, tensor in tensors.items():
        fault = _fault(tensor)
        if fault:
            raise UsageError(
                f"`{path}` cannot be read as weights.",
                f"Its tensor `{shortened_text(name)}` {fault}.",
                "Save the weights as plain tensors: "
                "torch.save({k: v.to_dense().clone() for k, v in model.state_dict().items()}, "
                "FILE).",
            )


def _fault(tensor: Tensor) -> str | None:
    if tensor.is_meta:
        return "has a shape but no values (device `meta`)"
    if tensor.is_quantized or tensor.is_nested or tensor.layout != torch.strided:
        kind = "quantised" if tensor.is_quantized else "nested" if tensor.is_nested else "sparse"
        return f"is {kind}, expected a dense tensor of floating-point numbers"
    if tensor.is_complex():
        return f"contains complex numbers ({tensor.dtype})"
    claimed, held = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if claimed > max(held, _MOST_EXPANDED):
        return f"has shape {tuple(tensor.shape)}, but only {held:,} bytes in the file"
    return None


def rank_of(keys: Sequence[str]) -> tuple[int, ...]:
    """Sort key of the weights at `keys` by the order of `WEIGHTS_KEYS`; the lowest is preferred."""
    averaged = any(key in _RANKS and WEIGHTS_KEYS[_RANKS[key]].averaged for key in keys)
    return (not averaged, *(_RANKS.get(key, _UNKNOWN) for key in keys), _BARE)


def is_averaged(key_path: str) -> bool:
    """Whether the weights at `key_path` (keys joined by dots) are averages over steps."""
    return rank_of(key_path.strip(".").split("."))[0] == 0


def read_torch(path: Path) -> object:
    """The content of the torch file `path`, with inert objects in place of other classes.

    Raises:
        UsageError: The file is damaged, contains code, or is nested too deeply.
    """
    _check_packed(path)
    check_nesting(path)
    try:
        with (
            warnings.catch_warnings(),
            torch.serialization.safe_globals(_KNOWN),
        ):
            warnings.simplefilter("ignore")  # the messages below report foreign formats
            with path.open("rb") as file:  # opened here, because torch would look at the suffix
                return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Torch adds the advice to load the file unsafely to the message of its unpickler.
        reason = error.__context__ or error
        if any(word in str(reason) for word in ("GLOBAL", "<class", "reduce")):
            raise _refused(path, reason) from error
        if _protocol(path) > torch.serialization.DEFAULT_PROTOCOL:
            raise _other_protocol(path) from error
        raise _damaged(path, reason) from error
    except Exception as error:
        # On damaged bytes the unpickler raises IndexError, TypeError, AssertionError and others.
        raise _damaged(path, error) from error


def _check_packed(path: Path) -> None:
    """Raises UsageError for an archive that unpacks to a much larger size (a zip bomb)."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # not an archive, or a damaged one, which torch reports
    size = path.stat().st_size
    if unpacked > max(_MOST_UNPACKED * size, _MOST_EXPANDED):
        raise UsageError(
            f"`{path}` is refused: its {size:,} bytes would unpack to {unpacked:,}.",
            "torch does not compress weights; this file could fill the memory (a zip bomb).",
            "If you trust it, load it yourself and save it again with `torch.save`.",
        )


def check_nesting(path: Path, other: str = "a safetensors file") -> None:
    """Raises UsageError if values in the torch file `path` are nested or repeated too often.

    `other` is the kind of file that the error recommends.

    Python's hash of a tuple has no limit of its recursion: a key of a million nested tuples ends
    the process. Sixty tuples, each of which contains the one before twice, take forever. This reads
    only the opcodes of the pickles and creates none of their values.
    """
    values: list[Any] = []
    try:
        with path.open("rb") as file:
            for pickle_file in _pickles(file):
                _read_nesting(pickle_file, values)
    except Exception:  # a damaged file raises anything; torch fails at the same place and says why
        pass
    depth, repeated = _nesting(values)
    if depth > _MOST_NESTED:
        reason = f"Its values are nested in more than {_MOST_NESTED:,} levels."
    elif repeated > _MOST_REPEATED:
        reason = "Its values contain each other so often that reading them would take forever."
    else:
        return
    raise UsageError(
        f"`{path}` is refused, because it could crash the program.",
        f"{reason} No program that saves weights writes such files.",
        f"Ask its author for {other}.",
    )


def _pickles(file: BinaryIO) -> Iterator[BinaryIO]:
    """The pickles in a torch file with descriptions of its tensors, but not their values."""
    is_archive = file.read(4) == b"PK\3\4"
    file.seek(0)
    if is_archive:
        reader = torch._C.PyTorchFileReader(file)  # finds the same member as torch.load
        for record in {*reader.get_all_records()}.intersection(_TORCH_PICKLES):
            yield io.BytesIO(reader.get_record(record))
        return
    for _ in range(_LEGACY_PICKLES):
        yield file


_TORCH_PICKLES = ("data.pkl", "constants.pkl")
"""The values of a file, and the constants in the code of a TorchScript archive."""
_LEGACY_PICKLES = 5
"""Format, version, machine, content and names of the storages; the storages follow."""
_MEMO_READS = frozenset({"GET", "BINGET", "LONG_BINGET"})
_MEMO_WRITES = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_ADDITIONS = frozenset({"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"})
_NEW_CONTAINERS = frozenset({"EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"})


def _read_nesting(file: BinaryIO, values: list[Any]) -> None:
    """Adds a list to `values` for each container in the next pickle of `file`, and None for others.

    Args:
        file: A file at the start of a pickle; at the end, the position is behind the pickle.
        values: The stack of the pickle. Everything that the pickle creates remains below it.
    """
    memo: dict[Any, Any] = {}
    marks: list[int] = []
    for opcode, argument, _ in pickletools.genops(file):
        name, before = opcode.name, opcode.stack_before
        if name in _MEMO_READS:
            values.append(memo[argument])
        elif name in _MEMO_WRITES:
            memo[argument] = values[-1]
        elif name == "MARK":
            marks.append(len(values))
        elif name == "STOP":
            return
        elif before:
            added = name in _ADDITIONS  # to the first operand, which stays on the stack
            marked = pickletools.markobject in before
            start = marks.pop() if marked else len(values) - len(before) + added
            operands = values[start:]
            del values[start:]
            if not added:
                values.append(operands)
            elif values[-1] is None:
                values[-1] = operands
            else:
                values[-1].extend(operands)
        elif opcode.stack_after:
            values.append([] if name in _NEW_CONTAINERS else None)


def _nesting(root: list[Any]) -> tuple[int, int]:
    """Levels of the nested lists of `root`, and how many more values it would have as a tree.

    A list inside itself counts as empty there.
    """
    shapes: dict[int, tuple[int, int] | None] = {}  # levels and values; None: of a list around
    waiting, distinct = [root], 0
    while waiting:
        values = waiting[-1]
        if id(values) not in shapes:
            shapes[id(values)] = None
            waiting += [value for value in values if value is not None and id(value) not in shapes]
            continue
        waiting.pop()
        if shapes[id(values)] is None:
            inner = [shapes[id(value)] or (0, 0) for value in values if value is not None]
            size = len(values) + sum(size for _, size in inner)
            shapes[id(values)] = 1 + max((n for n, _ in inner), default=0), min(size, _ENDLESS)
            distinct += len(values)
    depth, size = shapes[id(root)] or (0, 0)
    return depth, size - distinct


def _content(path: Path) -> tuple[list[str], object]:
    """Remarks on the suffix of `path`, and its content."""
    try:
        safe = is_safetensors(path)
        foreign = None if safe else not_weights(path)
    except OSError as error:
        raise _damaged(path, error) from error
    if foreign is not None:
        raise foreign
    safe_suffix = path.suffix == ".safetensors"
    remarks = []
    if safe != safe_suffix:
        kind = "a safetensors" if safe else "a torch"
        remarks.append(f"it is {kind} file, although its suffix differs")
    try:
        return remarks, load_file(path) if safe else read_torch(path)
    except (SafetensorError, OSError, TypeError) as error:  # TypeError: a length of 2**64 - 1
        raise _damaged(path, error) from error


def _refused(path: Path, reason: BaseException) -> UsageError:
    refused_name = first_line(reason).split(" was not an allowed")[0].rstrip(".")
    return UsageError(
        f"`{path}` was refused, and no code in it was run.",
        f"It contains objects other than weights: {refused_name}.",
        "Ask its author for a safetensors file, or convert it yourself if you trust it: "
        "torch.save({k: v for k, v in model.state_dict().items()}, FILE).",
    )


def _protocol(path: Path) -> int:
    """The pickle protocol of `path`; 0 if it has none or is damaged."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                start = archive.open(name).read(2)
        else:
            with path.open("rb") as file:
                start = file.read(2)
    except Exception:  # damaged archives raise any exception
        return 0
    is_protocol = start[:1] == pickle.PROTO and start[1] <= pickle.HIGHEST_PROTOCOL
    return start[1] if is_protocol else 0


def _other_protocol(path: Path) -> UsageError:
    return UsageError(
        f"`{path}` cannot be read as weights.",
        f"It was written with pickle protocol {_protocol(path)}; without running code in a file, "
        f"torch can only read its own protocol {torch.serialization.DEFAULT_PROTOCOL}.",
        "If you trust it, save it again with `torch.save(state_dict, FILE)` without "
        "`pickle_protocol`, or as safetensors.",
    )


def _damaged(path: Path, error: BaseException) -> UsageError:
    return UsageError(
        f"`{path}` cannot be read as weights.",
        f"Expected a safetensors or torch file; reading it failed with: {first_line(error)}",
        "Download it again; a partial download is the usual cause.",
    )


WeightsSet = tuple[tuple[int, ...], str, dict[str, Tensor]]
"""Rank, key path and tensors of a set of weights."""


def _sets(content: object, keys: tuple[str, ...]) -> Iterator[WeightsSet]:
    """All sets of named tensors in `content`, except those of optimisers and similar entries."""
    if not isinstance(content, Mapping) or len(keys) > _DEEPEST:
        return
    entries = {key: value for key, value in content.items() if isinstance(key, str)}
    tensors = {key: value for key, value in entries.items() if isinstance(value, Tensor)}
    if tensors:
        yield rank_of(keys), ".".join(keys), tensors
    for key, value in entries.items():
        if not _BESIDE.match(key):
            yield from _sets(value, (*keys, key))


def _cleaned(key_path: str, tensors: Mapping[str, Tensor], remarks: Sequence[str]) -> Weights:
    """`tensors` with names without wrapper prefixes, and remarks on the removed prefixes."""
    cleaned = {_WRAPPERS.sub("", key): tensor for key, tensor in tensors.items()}
    removed = [f"`{wrapper}`" for key in tensors for wrapper in _WRAPPERS.findall(key)]
    inner = {key: tensor for key, tensor in cleaned.items() if key != _AVERAGES}
    while inner and all(key.startswith(_PARALLEL) for key in inner):
        inner = {key.removeprefix(_PARALLEL): tensor for key, tensor in inner.items()}
        cleaned = inner  # removes AveragedModel's counter together with the prefix
        removed.append(f"the prefix `{_PARALLEL}`")
    if removed:
        removed_names = " and ".join(dict.fromkeys(removed))
        remarks = [*remarks, f"{removed_names} removed from the names of its tensors"]
    return Weights(cleaned, key_path, remarks)


def _described(content: object) -> str:
    if isinstance(content, Mapping):
        keys = (shortened_text(str(key)) for key in list(content)[:5])
        return f"the keys {', '.join(keys) or '(none)'}"
    return f"a {type(content).__name__}"


# Files that are not weights, recognised by their bytes, independent of their suffix.

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
        "JSON", lambda file: file.text.lstrip().startswith(("{", "[")),
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

"""About 100 damaged and hostile weights files, made from the weights of a small network."""

from __future__ import annotations

import io
import json
import os
import pickle
import runpy
import struct
import subprocess
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from tests.hostile.images import zipped

State = dict[str, Tensor]


class Call:
    """An object that calls a function when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.parts = (function, arguments, state) if state is not None else (function, arguments)

    def __reduce__(self) -> Any:
        return self.parts


def attacks(sentinel: Path) -> dict[str, object]:
    """Returns objects that would create the file `sentinel` on unpickling."""
    name, code = str(sentinel), f"open({str(sentinel)!r}, 'w').close()"
    create_file = partial(open, name, "w")
    return {
        "system": Call(os.system, f"touch {name}"),
        "popen": Call(os.popen, f"touch {name}"),
        "eval": Call(eval, code),
        "exec": Call(exec, code),
        "open": Call(open, name, "w"),
        "run": Call(subprocess.run, ["touch", name]),
        "Popen": Call(subprocess.Popen, ["touch", name]),
        "touch": Call(Path.touch, sentinel),
        "makedirs": Call(os.makedirs, name),
        "partial": create_file,
        "map": Call(list, Call(map, Call(eval, f"lambda _: {code}"), [1])),
        "getattr": Call(getattr, Call(__import__, "os"), "system"),
        "nested": Call(dict, [("a", Call(list, [Call(os.system, f"touch {name}")]))]),
        "state": Call(dict, state={"x": Call(os.system, f"touch {name}")}),
        "run_path": Call(runpy.run_path, name),
        "torch.load": Call(torch.load, name),
        "hub": Call(torch.hub.load, "owner/name", "model"),
        "numpy.load": Call(np.load, name, None, True),
        "save": Call(np.save, name, 1),
    }


Rewrite = Callable[[State], bytes]


def contents(state: State, sentinel: Path) -> Iterator[tuple[str, bytes]]:
    """Returns names and bytes of files, none of which contains the undamaged weights."""
    pair = dict(list(state.items())[:2])
    for name, attack in attacks(sentinel).items():
        yield f"{name} in a zip.pth", torch_bytes({"model": pair, "x": attack})
        yield (f"{name} in the legacy form.pth", torch_bytes({"model": pair, "x": attack}, False))
        yield f"{name} in a pickle.pkl", pickle.dumps(attack)
    yield from _other_tensors(state)
    yield from _other_names(state)
    yield from _archives(state)
    yield from _safetensors(state)
    yield from _pickles(state, sentinel)
    yield from _nested(state)


def torch_bytes(content: object, zipped: bool = True) -> bytes:
    """Returns the output of `torch.save`."""
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def _changed(state: State, change: Callable[[Tensor], Tensor], only: str = "") -> State:
    """Returns the weights with one tensor changed: `only`, or the largest."""
    key = only or max(state, key=lambda name: state[name].numel())
    return {**state, key: change(state[key])}


def _other_tensors(state: State) -> Iterator[tuple[str, bytes]]:
    """Returns weights with tensors of other kinds, types and shapes."""
    changes: dict[str, Callable[[Tensor], Tensor]] = {
        "NaN": lambda x: x.clone().fill_(torch.nan),
        "one NaN": lambda x: x.flatten().index_fill(0, torch.tensor([3]), torch.nan).view(x.shape),
        "infinite": lambda x: x.clone().fill_(torch.inf),
        "infinite as float32": lambda x: torch.full_like(x, 1e300, dtype=torch.double),
        "complex": lambda x: x.to(torch.complex64),
        "sparse": lambda x: x.to_sparse(),
        "sparse rows": lambda x: x.flatten(1).to_sparse_csr(),
        "quantised": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
        "meta": lambda x: x.to("meta"),
        "numbers of an index": lambda x: x.to(torch.int64),
        "truth values": lambda x: x > 0,
        "empty": lambda x: x[:0],
        "scalar": lambda x: x.sum(),
        "one more axis": lambda x: x[None],
        "expanded to a trillion": lambda x: torch.zeros(1).expand(10**6, 10**6),
        "expanded classes": lambda x: torch.zeros(1, 1).expand(10**9, x.shape[1]),
        "meta of a trillion": lambda x: torch.empty(10**6, 10**6, device="meta"),
        "sparse of a trillion": lambda x: torch.sparse_coo_tensor(
            torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0), (10**6, 10**6)
        ),
    }  # fmt: skip
    for name, change in changes.items():
        yield f"{name}.pth", torch_bytes(_changed(state, change))
    head = [key for key in state if state[key].ndim == 2][-1]
    yield (
        "head of a billion classes.pth",
        torch_bytes(_changed(state, lambda x: torch.zeros(1, 1).expand(10**9, x.shape[1]), head)),
    )
    yield "NaN.safetensors", save(_changed(state, lambda x: x * torch.nan))
    with suppress(KeyError):  # safetensors before 0.5 cannot write complex numbers
        yield "complex.safetensors", save(_changed(state, lambda x: x.to(torch.complex64)))
    yield "whole numbers.safetensors", save(_changed(state, lambda x: x.to(torch.int32)))


def _other_names(state: State) -> Iterator[tuple[str, bytes]]:
    names = list(state)
    yield "a tensor less.pth", torch_bytes({name: state[name] for name in names[1:]})
    yield "a tensor more.pth", torch_bytes({**state, "more.weight": torch.ones(3)})
    yield "shuffled.pth", torch_bytes(dict(zip(names, reversed(state.values()), strict=True)))
    yield "long name.pth", torch_bytes({**state, "x" * 300_000: torch.ones(3)})
    yield "escape.pth", torch_bytes({**state, "\x1b]0;title\x07\x1b[2Jx": torch.ones(3)})
    yield "many names.pth", torch_bytes({**state, **{f"a.{n}": torch.ones(1) for n in range(3000)}})
    yield "numbers as names.pth", torch_bytes(dict(enumerate(state.values())))
    yield "no tensors.pth", torch_bytes(dict.fromkeys(names, 1.0))
    nested: dict[str, Any] = {"model": state}
    for _ in range(300):
        nested = {"model": nested}
    yield "nested.pth", torch_bytes(nested)
    loop: dict[str, Any] = {"epoch": 1}
    loop["model"] = loop
    yield "holds itself.pth", torch_bytes(loop)


def _archives(state: State) -> Iterator[tuple[str, bytes]]:
    valid = torch_bytes(state)
    for share in (0.01, 0.2, 0.5, 0.8, 0.99):
        yield f"cut at {share}.pth", valid[: int(share * len(valid))]
        yield f"cut legacy at {share}.pth", torch_bytes(state, False)[: int(share * len(valid))]
    yield "less its first bytes.pth", valid[100:]
    members = _members(valid)
    root = next(iter(members)).split("/")[0]
    yield "no data.pth", zipped({k: v for k, v in members.items() if "/data/" not in k})
    yield "outside.pth", zipped({f"../../{k}": v for k, v in members.items()})
    yield "absolute.pth", zipped({f"/tmp/{k}": v for k, v in members.items()})
    yield (
        "short storage.pth",
        zipped({k: v[:4] if "/data/" in k else v for k, v in members.items()}),
    )
    yield "bomb.pth", _bomb(members, root)
    yield "encrypted.pth", _flagged(zipped(members))
    yield "links.pth.tar", _tar_of_links(valid)
    yield "outside.tar", _tar({"../../outside.pth": valid, "/tmp/outside.pth": valid})
    yield "lies about its size.pth", valid.replace(b"PK\1\2", b"PK\1\2", 1)[:-30] + b"\xff" * 30
    legacy = io.BytesIO()
    with tarfile.open(fileobj=legacy, mode="w") as archive:
        for name, content in {"sys_info": b"", "pickle": pickle.dumps(1), "storages": b"",
                              "tensors": b"\1\0\0\0"}.items():  # fmt: skip
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    yield "torch's oldest form.pth", legacy.getvalue()


def _members(valid: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(valid)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _bomb(members: Mapping[str, bytes], root: str) -> bytes:
    """Returns a torch archive with one storage of 200 MB, compressed to 1 MB."""
    million = torch.zeros(1_000_000)
    small_members = _members(torch_bytes({"x": million}))
    top = next(iter(small_members)).split("/")[0]
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in small_members.items():
            if name == f"{top}/data/0":
                with archive.open(name, "w", force_zip64=True) as member:
                    for _ in range(50):
                        member.write(content)
            else:
                number = struct.pack("<I", 1_000_000)
                archive.writestr(name, content.replace(number, struct.pack("<I", 50_000_000)))
    return file.getvalue()


def _flagged(content: bytes) -> bytes:
    """Returns the archive with the encryption flag set on each member."""
    flagged, offset = bytearray(content), 0
    while (offset := content.find(b"PK\1\2", offset)) >= 0:
        flagged[offset + 8] |= 1
        offset += 4
    return bytes(flagged)


def _tar(members: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def _tar_of_links(valid: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, target in {"weights.pth": "/etc/passwd", "up": "../.."}.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
        info = tarfile.TarInfo("up/outside.pth")
        info.size = len(valid)
        archive.addfile(info, io.BytesIO(valid))
    return file.getvalue()


def safe(header: str | bytes, body: bytes = b"", length: int | None = None) -> bytes:
    """Returns a safetensors file with the given header and declared length."""
    raw = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(raw) if length is None else length) + raw + body


def _safetensors(state: State) -> Iterator[tuple[str, bytes]]:
    content = save(state)
    for share in (0.001, 0.1, 0.5, 0.99):
        yield f"cut at {share}.safetensors", content[: max(9, int(share * len(content)))]
    entry = '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
    yield "huge header.safetensors", safe("{", length=2**39)
    yield "largest header.safetensors", safe("{", length=2**64 - 1)
    yield "no header.safetensors", safe("", length=0)
    yield "header of a list.safetensors", safe("[1]")
    yield "deep header.safetensors", safe('{"a":' * 50_000)
    yield "overlapping.safetensors", safe(f'{{"a":{entry},"b":{entry}}}', bytes(8))
    yield (
        "a gap.safetensors",
        safe(
            f'{{"a":{entry},"b":{{"dtype":"F32","shape":[2],"data_offsets":[100,108]}}}}',
            bytes(108),
        ),
    )
    yield "backwards.safetensors", safe('{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}',
                                        bytes(8))  # fmt: skip
    yield ("twice the name.safetensors", safe(f'{{"a":{entry},"a":{entry}}}', bytes(8)))
    yield (
        "shape of a trillion.safetensors",
        safe('{"a":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,8]}}', bytes(8)),
    )
    yield (
        "shape that overflows.safetensors",
        safe('{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}'),
    )
    yield (
        "axis of 2**64 - 1.safetensors",
        safe(f'{{"a":{{"dtype":"F32","shape":[0,{2**64 - 1}],"data_offsets":[0,0]}}}}'),
    )
    yield (
        "negative shape.safetensors",
        safe('{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}', bytes(8)),
    )
    yield (
        "unknown numbers.safetensors",
        safe('{"a":{"dtype":"F4","shape":[16],"data_offsets":[0,8]}}', bytes(8)),
    )
    yield ("broken letters.safetensors", safe(b'{"\xff\xfe":' + entry.encode() + b"}", bytes(8)))
    yield (
        "metadata of numbers.safetensors",
        safe(f'{{"__metadata__":{{"a":1}},"b":{entry}}}', bytes(8)),
    )
    metadata = json.dumps({"robust": '{"schema_version": 1e999, "task": ["cls"]}'})
    yield (
        "our metadata broken.safetensors",
        safe(f'{{"__metadata__":{metadata},"b":{entry}}}', bytes(8)),
    )


def _pickles(state: State, sentinel: Path) -> Iterator[tuple[str, bytes]]:
    """Returns pickles that `pickle.dumps` would not write."""
    command = f"touch {sentinel}".encode()
    yield "opcode i.pkl", b"(S'" + command + b"'\nios\nsystem\n."
    yield "opcode o.pkl", b"(cos\nsystem\nS'" + command + b"'\no."
    yield "opcode obj in dict.pkl", b"}S'x'\n(cos\nsystem\nS'" + command + b"'\nos."
    yield (
        "stack global.pkl",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c" + bytes([len(command)]) + command + b"\x85R.",
    )
    yield "extension.pkl", b"\x80\x02\x82\x01."
    yield "persistent.pkl", b"P0\n."
    yield "many frames.pkl", b"\x80\x04" + (b"\x95" + struct.pack("<Q", 2**62)) + b"N."
    yield "long text.pkl", b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x."
    yield "nested.pkl", b"(" * 100_000 + b"t" * 100_000 + b"."
    yield "billion laughs.pkl", pickle.dumps(_laughs(), 2)
    yield "compressed.pkl", zlib.compress(pickle.dumps(dict(state)))


def _nested(state: State) -> Iterator[tuple[str, bytes]]:
    """Returns torch files whose values are nested or repeated too often for Python."""
    list_twice, dict_twice = b"q\1](h\1h\1e", b"q\1}(K\1h\1K\2h\1u"
    contents = {
        "deep key": b"})" + b"\x85" * 200_000 + b"K\1s.",
        "key of doubled tuples": b"})" + b"q\1h\1\x86" * 60 + b"K\1s.",
        "name of a storage": b"X\7\0\0\0storageN)" + b"q\1h\1\x86" * 60 + b"NNtQ.",
        "function of doubled lists": b"]" + list_twice * 60 + b")R.",
        "doubled dicts": b"}" + dict_twice * 60 + b".",
    }
    members, legacy = _members(torch_bytes(dict(list(state.items())[:1]))), io.BytesIO()
    for fields in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
        pickle.dump(fields, legacy, 2)
    for name, opcodes in contents.items():
        content = b"\x80\2" + opcodes
        yield (
            f"{name} in a zip.pth",
            zipped({k: content if k.endswith("data.pkl") else v for k, v in members.items()}),
        )
        yield f"{name} in the legacy form.pth", legacy.getvalue() + content + pickle.dumps([], 2)


def _laughs() -> object:
    value: Any = ["ha"] * 10
    for _ in range(40):
        value = [value] * 10
    return value


def write_checkpoints(folder: Path, state: State, sentinel: Path) -> list[Path]:
    """Writes the files of `contents`, and a link, a pipe and a folder."""
    paths = []
    with warnings.catch_warnings(action="ignore"):  # of torch, about types of tensors
        for name, content in contents(state, sentinel):
            assert not (folder / name).exists(), name
            (folder / name).write_bytes(content)
            paths.append(folder / name)
    (folder / "endless.pth").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.pth")
    (folder / "folder.pth").mkdir()
    return [*paths, folder / "endless.pth", folder / "pipe.pth", folder / "folder.pth"]

"""Weights files as the field writes them, and files that are no weights."""

from __future__ import annotations

import argparse
import datetime
import gzip
import io
import re
import sys
import tarfile
import types
import zipfile
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.data import AttributeDict
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from robustcli.adapters.checkpoint import WEIGHTS_KEYS, is_safetensors, not_weights, read_weights
from robustcli.core.errors import UsageError
from tests.adapters.files import STATE, saved

OTHER = {key: tensor + 100 for key, tensor in STATE.items()}


def assert_state(predicted: dict[str, Tensor], expected: dict[str, Tensor] = STATE) -> None:
    assert list(predicted) == list(expected)
    for key, tensor in expected.items():
        torch.testing.assert_close(predicted[key], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("key", [place.key for place in WEIGHTS_KEYS])
def test_a_state_dict_wrapped_by_its_trainer(tmp_path: Path, key: str) -> None:
    path = saved({"epoch": 3, key: STATE, "optimizer": {"lr": torch.ones(2)}}, tmp_path / "w.pth")
    assert_state(read_weights(path))


@pytest.mark.parametrize("first", range(len(WEIGHTS_KEYS) - 1))
def test_of_two_places_the_earlier_row_of_the_table_is_taken(tmp_path: Path, first: int) -> None:
    content = {WEIGHTS_KEYS[first + 1].key: OTHER, WEIGHTS_KEYS[first].key: STATE}
    state = read_weights(saved(content, tmp_path / "w.pth"))
    assert_state(state)
    assert state.key_path == WEIGHTS_KEYS[first].key
    assert [weights.key_path for weights in state.other_sets] == [WEIGHTS_KEYS[first + 1].key]
    assert_state(state.other_sets[0], OTHER)


def test_averaged_weights_come_first(tmp_path: Path) -> None:
    averaged = [place.averaged for place in WEIGHTS_KEYS]
    assert averaged == sorted(averaged, reverse=True)
    path = saved({"model": OTHER, "model_ema": STATE, "state_dict": OTHER}, tmp_path / "w.pth")
    assert_state(read_weights(path))


def test_a_key_that_no_row_knows(tmp_path: Path) -> None:
    content = {"my_classifier": STATE, "epoch": torch.tensor(3), "optimizer": {"momentum": OTHER}}
    state = read_weights(saved(content, tmp_path / "w.pth"))
    assert_state(state)
    assert (state.key_path, state.other_sets) == ("my_classifier", ())


@pytest.mark.parametrize("factory", [int, float, list, dict, str, OrderedDict])
def test_a_defaultdict(tmp_path: Path, factory: type) -> None:
    path = saved(defaultdict(factory, {"state_dict": STATE}), tmp_path / "w.pth")
    assert_state(read_weights(path))
    assert_state(read_weights(saved(defaultdict(factory, STATE), path)))


BESIDE = {
    "namespace": argparse.Namespace(lr=0.1, layers=[1, 2], nested=argparse.Namespace(x=1)),
    "simple namespace": types.SimpleNamespace(lr=0.1),
    "path": Path("runs"),
    "time": datetime.datetime(2024, 1, 2, 3, 4),
    "seconds": datetime.timedelta(seconds=3),
    "counter": Counter("ab"),
    "version": torch.__version__,
    "hyper-parameters": AttributeDict(lr=0.1, layers=[1, 2]),
}


@pytest.mark.parametrize("what", BESIDE)
def test_what_training_scripts_keep_beside_the_weights(tmp_path: Path, what: str) -> None:
    path = saved({"state_dict": STATE, "x": BESIDE[what]}, tmp_path / "w.pth")
    assert_state(read_weights(path))


@pytest.mark.parametrize("ending", [".pth", ".bin", ".ckpt", ".pth.tar", ".safetensors"])
@pytest.mark.parametrize("safe", [True, False])
def test_the_bytes_decide_and_not_the_ending(tmp_path: Path, ending: str, safe: bool) -> None:
    path = tmp_path / f"w{ending}"
    if safe:
        save_file(STATE, path)
    else:
        saved(STATE, path)
    state = read_weights(path)
    assert_state({key: state[key] for key in STATE})
    message = f"it is a {'safetensors' if safe else 'torch'} file, although its suffix differs"
    assert state.remarks == (() if safe == (ending == ".safetensors") else (message,))


def test_an_averaged_model_and_its_counter(tmp_path: Path) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(torch.nn.Linear(3, 2))
    state = read_weights(saved(averaged.state_dict(), tmp_path / "w.pth"))
    assert list(state) == ["weight", "bias"]
    assert state.remarks == ("the prefix `module.` removed from the names of its tensors",)


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "_fsdp_wrapped_module."])
def test_wrappers_inside_of_names(tmp_path: Path, wrapper: str) -> None:
    inside = {key.replace(".", f".{wrapper}", 1): tensor for key, tensor in STATE.items()}
    assert_state(read_weights(saved(inside, tmp_path / "w.pth")))


@pytest.mark.parametrize("protocol", [4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_another_pickle_protocol_is_no_damage(tmp_path: Path, protocol: int, zipped: bool) -> None:
    path = saved(STATE, tmp_path / "w.pth", pickle_protocol=protocol,
                 _use_new_zipfile_serialization=zipped)  # fmt: skip
    with pytest.raises(UsageError, match=rf"with pickle protocol {protocol};(.|\n)*save it"):
        read_weights(path)


def test_an_average_that_was_never_made_is_passed_over(tmp_path: Path) -> None:
    assert_state(read_weights(saved({"model": STATE, "model_ema": None}, tmp_path / "w.pth")))


def test_wrapped_twice_and_things_beside_the_weights(tmp_path: Path) -> None:
    path = saved({"model": {"state_dict": STATE, "version": 1}}, tmp_path / "w.pth")
    assert_state(read_weights(path))
    assert_state(read_weights(saved({**STATE, "epoch": 3, "name": "x"}, path)))


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module."]
)
def test_prefixes_of_parallel_and_compiled_models_are_removed(tmp_path: Path, prefix: str) -> None:
    path = saved({prefix + key: tensor for key, tensor in STATE.items()}, tmp_path / "w.pth")
    assert_state(read_weights(path))


def test_a_prefix_inside_a_name_stays(tmp_path: Path) -> None:
    inner = {"head.module.weight": torch.ones(1), "modules.bias": torch.ones(1)}
    assert_state(read_weights(saved(inner, tmp_path / "w.pth")), inner)


@pytest.fixture
def config_class() -> Iterator[type]:
    """A class as `yacs.config.CfgNode` is: a dict with attributes; importable while it is saved."""

    class CfgNode(dict[str, Any]):
        def __init__(self, content: dict[str, Any]) -> None:
            super().__init__(content)
            self.__dict__["__immutable__"] = True
            self.__dict__["__deprecated_keys__"] = set()

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    package, module = types.ModuleType("yacs"), types.ModuleType("yacs.config")
    module.CfgNode = CfgNode  # type: ignore[attr-defined]
    sys.modules |= {"yacs": package, "yacs.config": module}
    yield CfgNode
    del sys.modules["yacs"], sys.modules["yacs.config"]


@pytest.mark.parametrize("zipped", [True, False])
def test_the_config_object_of_vmambas_files_is_never_unpickled(
    tmp_path: Path, config_class: type, zipped: bool
) -> None:
    config = config_class(
        {"TRAIN": config_class({"EPOCHS": 300, "STEPS": [1, (2, 3)]}), "TAG": "x"}
    )
    content = {"model": STATE, "config": config, "max_accuracy": 82.6, "epoch": 264}
    path = saved(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)

    class Trap:
        def __new__(cls) -> Trap:
            raise AssertionError("an object of the file's class was made")

    sys.modules["yacs.config"].CfgNode = Trap  # type: ignore[attr-defined]
    assert_state(read_weights(path))


NUMBERS = (np.float64(0.9), np.int64(3), np.bool_(True), np.arange(3.0), np.str_("x"))


@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: type(n).__name__)
def test_numpy_numbers_in_a_log_are_no_obstacle(tmp_path: Path, number: object) -> None:
    content = {
        "network_weights": STATE,
        "logging": {"mean_fg_dice": [number, number], "epoch_end_timestamps": [1.5]},
        "_best_ema": number,
        "init_args": {"device": torch.device("cuda"), "plans": {"x": [1, (2,)]}, "fold": "all"},
        "grad_scaler_state": None,
    }
    assert_state(read_weights(saved(content, tmp_path / "w.pth")))


@pytest.mark.parametrize("core", ["core", "_core"])
def test_numpys_makers_are_never_called(tmp_path: Path, core: str) -> None:
    """Both of NumPy's spellings: a file of one version is read under the other."""
    path = saved({"model": STATE, "x": np.float64(3)}, tmp_path / "w.pth",
                 _use_new_zipfile_serialization=False)  # fmt: skip
    content = path.read_bytes()
    assert b"numpy._core.multiarray\nscalar" in content or b"numpy.core.multiarray" in content
    renamed = re.sub(rb"cnumpy\._?core\.", f"cnumpy.{core}.".encode(), content)
    path.write_bytes(renamed)
    assert_state(read_weights(path))


# What would run code is refused without running in tests/hostile/test_hostile_checkpoints.py.
REFUSED = {
    "torch.nn.modules.linear.Linear": nn.Linear(2, 2),
    "fractions.Fraction": {"model": STATE, "x": Fraction(1, 2)},
    "slice": {"model": STATE, "x": slice(1, 2)},
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_refusal_says_what_it_found_and_what_to_do(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_weights(saved(REFUSED[name], tmp_path / "w.pth"))
    assert caught.value.what.endswith("was refused, and no code in it was run.")
    assert caught.value.why.endswith(f"{name}.")
    assert "safetensors" in caught.value.todo
    assert "weights_only" not in str(caught.value)


DAMAGED = {
    "zip.pth": b"PK\x03\x04 and nothing more",
    "short.safetensors": (1000).to_bytes(8, "little") + b"{}",
    "noise.pth": bytes(range(255, 127, -1)),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_file_that_is_none(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(DAMAGED[name])
    with pytest.raises(
        UsageError, match=rf"`.*{name}` cannot be read as weights\.\nExpected a safet"
    ):
        read_weights(tmp_path / name)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_download_that_broke_off(tmp_path: Path, kind: str, share: float) -> None:
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        save_file(STATE, path)
    else:
        saved(STATE, path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UsageError, match="a partial download is the usual cause"):
        read_weights(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_whatever_bytes_change_there_is_a_message(tmp_path: Path, zipped: bool) -> None:
    path = saved(STATE, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    content, generator = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        changed = bytearray(content)
        for place in generator.integers(0, min(len(content), 500), 4):
            changed[place] = generator.integers(256)
        path.write_bytes(changed)
        try:
            read_weights(path)
        except UsageError:
            refused += 1
    assert refused > 75


@pytest.mark.parametrize(
    ("content", "got"),
    [
        ({}, r"got the keys \(none\)\."),
        ({"epoch": 3, "lr": 0.1}, r"got the keys epoch, lr\."),
        ({"model": {}}, "got the keys model"),
        ([1, 2], "got a list"),
        (torch.zeros(3), "got a Tensor"),
        ({str(n): n for n in range(9)}, r"got the keys 0, 1, 2, 3, 4\."),
    ],
)
def test_a_file_without_weights(tmp_path: Path, content: object, got: str) -> None:
    path = saved(content, tmp_path / "w.pth")
    with pytest.raises(
        UsageError, match=rf"`.*w\.pth` contains no weights\.\nExpected.*model_ema.*{got}"
    ):
        read_weights(path)


@pytest.mark.parametrize("name", ["none.pth", "none.safetensors", ""])
def test_a_file_that_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"The weights file `.*` does not exist\.\nCheck the path"):
        read_weights(tmp_path / name)


def zipped(**members: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "."), data)
    return content.getvalue()


def tarred(name: str) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    return content.getvalue()


def numpys(write: Callable[..., None]) -> bytes:
    content = io.BytesIO()
    write(content, np.ones(3))
    return content.getvalue()


def picture() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (4, 4)).save(content, "PNG")
    return content.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 14203520\n"
ONNX = b"\x08\x08\x12\x07pytorch\x1a\x052.1.0" + bytes(range(200))
FILE_KINDS = {
    "empty": (b"", "an empty file", "Download or copy it again"),
    "zeros": (bytes(3000), "a file of zeros", "Download it again"),
    "pointer": (POINTER, "a Git LFS pointer", "`git lfs pull`"),
    "page": (b"<!DOCTYPE html><title>Sign in</title>", "a web page", "in a browser"),
    "late page": (b"\r\n  <HTML lang=en>", "a web page", "in a browser"),
    "page in UTF-16": ("<!DOCTYPE html>".encode("utf-16"), "a web page", "in a browser"),
    "page with a mark": (b"\xef\xbb\xbf<html>", "a web page", "in a browser"),
    "bucket": (b"<?xml version='1.0'?><Error><Code>AccessDenied", "a web page", "in a browser"),
    "json": (b'{"error": "Repository not found"}', "JSON", "Pass the file with the weights"),
    "text": (b"Not Found", "a text", "the text may contain the reason"),
    "long text": ("Grüße\n".encode() * 500, "a text", "Check the path"),
    "hdf5": (b"\x89HDF\r\n\x1a\n\0\0\0\0" + bytes(90), "an HDF5 file", "Pass a PyTorch file"),
    "keras": (zipped(model__weights__h5=b"x", config__json=b"{}"), "a Keras", "Pass a PyTorch"),
    "onnx": (ONNX, "an ONNX file", "it was exported"),
    "npy": (numpys(np.save), "a NumPy file", "Pass a PyTorch file"),
    "npz": (numpys(np.savez), "a NumPy file", "Pass a PyTorch file"),
    "gguf": (b"GGUF\x03\0\0\0", "a GGUF file", "it was made"),
    "tflite": (b"\x1c\0\0\0TFL3" + bytes(20), "a TensorFlow Lite file", "Pass a PyTorch"),
    "export of torch 2.6": (
        zipped(serialized_exported_program__json=b"{}", serialized_state_dict__pt=b"x"),
        "an archive of torch.export",
        "`torch.save(dict(torch.export.load(FILE).state_dict)",
    ),
    "picture": (picture(), "a picture", "Check the path"),
    "gzip": (gzip.compress(b"weights"), "a compressed file", "Unpack it"),
    "zip": (zipped(best__pth=b"x"), "a zip archive of other files", "Unpack it"),
    "tar": (tarred("best.pth"), "a tar archive", "Unpack it"),
}


@pytest.mark.parametrize("name", FILE_KINDS)
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_what_it_is_and_what_to_do(tmp_path: Path, name: str, ending: str) -> None:
    content, what, todo = FILE_KINDS[name]
    path = tmp_path / f"w{ending}"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_weights(path)
    assert caught.value.what.startswith(f"`{path}` cannot be used as weights: it is {what}")
    assert todo in caught.value.todo
    assert "partial download" not in str(caught.value)


def test_the_beginning_of_a_text_and_what_is_inside_a_zip_are_shown(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("quota exceeded\nsee below")
    (tmp_path / "b").write_bytes(zipped(best__pth=b"x"))
    for name, shown in (
        ("a", "It starts with: 'quota exceeded'"),
        ("b", "It contains `best.pth`."),
    ):
        error = not_weights(tmp_path / name)
        assert error is not None
        assert error.why.endswith(shown)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_programs_of_torch_are_not_run(tmp_path: Path) -> None:
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(str(tmp_path / "script.pt"))
    exported = torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),))
    torch.export.save(exported, tmp_path / "exported.pt2")
    for name, what in (("script.pt", "a TorchScript"), ("exported.pt2", "an archive of torch.exp")):
        with pytest.raises(UsageError, match=f"it is {what}(.|\n)*state_dict"):
            read_weights(tmp_path / name)


def test_files_of_weights_are_none_of_these(tmp_path: Path) -> None:
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        assert not_weights(saved(STATE, tmp_path / "w.pth.tar", **options)) is None
        assert not is_safetensors(tmp_path / "w.pth.tar")
    save_file(STATE, tmp_path / "w")
    assert is_safetensors(tmp_path / "w")

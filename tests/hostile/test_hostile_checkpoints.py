"""Damaged and hostile weights files: no code runs, nothing is unpacked, and one clear message."""

from __future__ import annotations

import pickle
import resource
import time
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import robustcli
from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.checkpoint import read_weights
from robustcli.adapters.load import load
from robustcli.adapters.strict_loading import load_strictly
from robustcli.cli.main import main
from robustcli.core.errors import RobustError, UsageError
from tests.hostile.checkpoints import attacks, safe, torch_bytes, write_checkpoints

SECONDS = 3
MODEL = "resnet-pico"


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return {
        key: tensor.clone() for key, tensor in robustcli.create_model(MODEL).state_dict().items()
    }


@pytest.fixture(scope="module")
def files(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    home = tmp_path_factory.mktemp("checkpoints")
    (home / "files").mkdir()
    return write_checkpoints(home / "files", state, home / "sentinel")


def _sentinel(files: list[Path]) -> Path:
    return files[0].parents[1] / "sentinel"


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def test_each_is_refused_as_weights_and_nothing_runs(files: list[Path]) -> None:
    assert len(files) > 130
    before = _peak()
    for path in files:
        started_at = time.process_time()
        with pytest.raises(UsageError) as caught:
            robustcli.create_model(MODEL, weights=path)
        error = caught.value
        assert error.exit_code == 2, path.name
        assert path.name in error.what, path.name
        assert error.why or error.todo, path.name
        assert len(str(error)) < 3000, path.name
        assert "weights_only" not in str(error), path.name
        assert not _sentinel(files).exists(), path.name
        assert time.process_time() - started_at < SECONDS, path.name
    assert _peak() - before < 500, "an archive or a shape used too much memory"
    assert {path.name for path in files[0].parents[1].iterdir()} == {"files"}
    assert not Path("/tmp/outside.pth").exists()


def test_the_attacks_would_run_where_pickles_are_loaded(tmp_path: Path) -> None:
    """Proves that the attacks of the corpus work when a file is unpickled."""
    sentinel, executed = tmp_path / "sentinel", 0
    for name in ("system", "eval", "exec", "run", "touch", "makedirs", "nested", "state"):
        with suppress(AttributeError):  # a dict rejects the state after the attack has run
            pickle.loads(pickle.dumps(attacks(sentinel)[name]))
        executed += sentinel.exists()
        if sentinel.is_dir():
            sentinel.rmdir()
        sentinel.unlink(missing_ok=True)
    assert executed == 8


def test_each_is_refused_as_a_model(files: list[Path]) -> None:
    """`--model FILE` accepts TorchScript and ONNX only."""
    for path in files:
        with pytest.raises(RobustError) as caught:
            load(ModelRequest(str(path)), "cls", offline=True)
        assert caught.value.exit_code in (2, 3), path.name
        assert not _sentinel(files).exists(), path.name


@pytest.mark.slow  # 12 commands; create_model above covers the same files
@pytest.mark.parametrize("name", ["system in a zip.pth", "escape.pth", "NaN.pth", "bomb.pth"])
@pytest.mark.parametrize(
    "command",
    [("eval", "--model", MODEL, "--transform", "identity", "--data", "cifar10-mini", "--weights"),
     ("predict", "--model", MODEL, "--data", "cifar10-mini", "--weights"),
     ("finetune", "ulvm_v5", "--data", "nuclei-mini", "--quick", "--pretrained")],
    ids=["eval", "predict", "finetune"],
)  # fmt: skip
def test_commands_end_with_2_and_one_message(
    command: tuple[str, ...], name: str, files: list[Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    path = next(path for path in files if path.name == name)
    with pytest.raises(SystemExit) as exit_info:
        main([*command, str(path)])
    output = capsys.readouterr()
    assert exit_info.value.code == 2, output.err
    assert output.err.count("Error: ") == 1
    assert "Traceback" not in output.err
    assert "\x1b" not in output.err + output.out
    assert not _sentinel(files).exists()


def test_half_precision_and_infinite_masks_are_weights_as_ever(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    network.register_buffer("mask", torch.full((2, 2), -torch.inf))
    for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn):
        state = {key: tensor.to(dtype) if tensor.is_floating_point() and key != "mask" else tensor
                 for key, tensor in network.state_dict().items()}  # fmt: skip
        (tmp_path / "w.pth").write_bytes(torch_bytes(state))
        load_strictly(network, read_weights(tmp_path / "w.pth"), model="m", origin="f", advice=None)
    large = {**network.state_dict(), "0.weight": torch.full((2, 2), 3e38)}  # their sum overflows
    load_strictly(network, large, model="m", origin="f", advice=None)
    for key, number in {"0.weight": torch.nan, "0.bias": torch.inf, "mask": torch.nan}.items():
        bad = {**network.state_dict(), key: torch.full_like(network.state_dict()[key], number)}
        with pytest.raises(
            UsageError, match=f"`{key}` has . of . numbers that are NaN or infinite"
        ):
            load_strictly(network, bad, model="m", origin="f", advice=None)


def test_a_small_expanded_tensor_is_read(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(torch_bytes({"w": torch.ones(1).expand(1000, 3)}))
    assert read_weights(tmp_path / "w.pth")["w"].shape == (1000, 3)


def test_names_in_a_message_are_short(tmp_path: Path) -> None:
    tensor_header = '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
    (tmp_path / "w.safetensors").write_bytes(safe(f'{{"{"x" * 10**6}":{tensor_header}}}', bytes(8)))
    with pytest.raises(UsageError) as caught:
        robustcli.create_model(MODEL, weights=tmp_path / "w.safetensors")
    assert len(str(caught.value)) < 2000


def test_a_torchscript_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "whole.pt"
    with warnings.catch_warnings(action="ignore"):
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(archive))
    content = archive.read_bytes()
    for share in (0.1, 0.5, 0.9, 0.99):
        (tmp_path / "cut.pt").write_bytes(content[: int(share * len(content))])
        with pytest.raises(UsageError):
            load(ModelRequest(str(tmp_path / "cut.pt")), "cls", offline=True)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "link.bin"])
def test_onnx_weights_outside_of_the_folder_are_not_read(tmp_path: Path, location: str) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra `onnx`")
    onnx = pytest.importorskip("onnx", reason="needs the package onnx")
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(3 * 4))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    onnx_helper, tensor = onnx.helper, onnx.TensorProto
    weight = tensor(name="w", data_type=tensor.FLOAT, dims=[3], data_location=tensor.EXTERNAL)
    weight.external_data.add(key="location", value=location)
    images = onnx_helper.make_tensor_value_info("x", tensor.FLOAT, ["n", 3, 8, 8])
    scores = onnx_helper.make_tensor_value_info("y", tensor.FLOAT, ["n", 3])
    nodes = [onnx_helper.make_node("GlobalMaxPool", ["x"], ["p"]),
             onnx_helper.make_node("Flatten", ["p"], ["f"]),
             onnx_helper.make_node("Add", ["f", "w"], ["y"])]  # fmt: skip
    graph = onnx_helper.make_graph(nodes, "g", [images], [scores], [weight])
    model = onnx_helper.make_model(
        graph, opset_imports=[onnx_helper.make_opsetid("", 13)], ir_version=8
    )
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UsageError, match="cannot be read as a network"):
        load(ModelRequest(str(folder / "net.onnx")), "cls", offline=True)

"""Our own networks as TorchScript and ONNX files, read back through `--model FILE`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.load import load
from robustcli.models.conv_segmenters import UNet, UNetConfig
from robustcli.models.vim import Vim, VimConfig
from robustcli.models.vmamba import VMamba, VMambaConfig

SIDE = 32
NETWORKS = {
    "vim": lambda: Vim(VimConfig(dim=16, depth=1, patch_size=16, img_size=SIDE, num_classes=10)),
    "vmamba": lambda: VMamba(VMambaConfig((1, 1), dim=8, num_classes=10)),
    "unet": lambda: UNet(UNetConfig()),
}
TASKS = {"vim": "cls", "vmamba": "cls", "unet": "seg"}


@pytest.fixture(params=sorted(NETWORKS))
def named(request: pytest.FixtureRequest) -> tuple[str, nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        network = NETWORKS[request.param]()
    return request.param, network.eval()


@pytest.fixture
def quiet() -> Iterator[None]:
    """Exporters warn of checks on shapes, which are constants here, and of themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def images() -> Tensor:
    return torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def answers(network: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        y = network(x)
    return y[0] if isinstance(y, tuple | list) else y


def read_back(file: Path, task: str) -> nn.Module:
    return load(ModelRequest(str(file), preprocessing={"crop": SIDE}), task).network


def test_as_torchscript(named: tuple[str, nn.Module], tmp_path: Path, quiet: None) -> None:
    name, network = named
    file = tmp_path / "net.ts"
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(network, images()[:2], check_trace=False), file)
    x = images()
    torch.testing.assert_close(
        answers(read_back(file, TASKS[name]), x), answers(network, x), rtol=0, atol=1e-6
    )


@pytest.mark.slow
def test_as_onnx_by_the_reference_scan(
    named: tuple[str, nn.Module], tmp_path: Path, quiet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra `onnx`")
    pytest.importorskip("onnxscript", reason="torch's exporter needs onnxscript")
    name, network = named
    monkeypatch.setenv("ROBUST_SCAN_BACKEND", "reference")  # kernels are no operators of ONNX
    file = tmp_path / "net.onnx"
    if name == "vmamba":  # the newer exporter takes minutes for the unrolled scan
        torch.onnx.export(network, (images(),), str(file), dynamo=False, opset_version=17)
    else:
        torch.onnx.export(
            network, (images(),), str(file), dynamo=True, external_data=False, verbose=False
        )
    x = images()
    # onnxruntime sums in another order: float32 rounding, of some thousand terms in the U-Net
    torch.testing.assert_close(
        answers(read_back(file, TASKS[name]), x), answers(network, x), rtol=1e-4, atol=1e-5
    )

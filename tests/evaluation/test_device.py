"""Choice of the device and errors for devices that the machine lacks."""

import pytest
import torch

from robustcli.adapters.model import ModelFacts
from robustcli.core.errors import UsageError
from robustcli.core.names import counted
from robustcli.evaluation.device import DeviceMonitor, choose_device, device_name
from robustcli.tasks.base import facts_record


def test_auto_selects_the_available_device():
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.mps.is_available() else "cpu"
    assert choose_device("auto").type == expected


@pytest.mark.parametrize("name", ["auto", "mps"])
def test_an_apple_gpu_is_taken(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device(name) == torch.device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(UsageError, match="`--device mps` is not available"):
        choose_device("mps")


@pytest.mark.parametrize(("scans", "backend"), [(True, "cpu"), (False, None)])
def test_of_a_scanning_model_on_an_apple_gpu_the_record_names_the_cpu_kernel(scans, backend):
    """In one run, a model without a scan uses the same device."""
    facts = ModelFacts(
        "a", "vim", "own", {}, 1, "a.safetensors", "0" * 64, "none", False, "cifar10", scans
    )
    assert facts_record(facts, torch.device("mps"))["scan_backend"] == backend


def test_gpus_that_are_missing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("cuda", "cuda:0"):
        with pytest.raises(UsageError, match=f"`--device {name}` is not available"):
            choose_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(UsageError, match="finds 1 CUDA devices"):
        choose_device("cuda:1")


@pytest.mark.parametrize(
    ("name", "message"), [("gpu", "is not a device"), ("xpu", "not supported")]
)
def test_names_that_are_no_device(name, message):
    with pytest.raises(UsageError, match=f"`--device {name}`.*{message}"):
        choose_device(name)


def test_the_cpu_is_described_with_its_threads_and_not_measured():
    assert counted(torch.get_num_threads(), "thread") in device_name(torch.device("cpu"))
    with DeviceMonitor(torch.device("cpu")) as monitor:
        assert monitor.use() is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_peak_memory_is_measured_on_cuda():
    device = torch.device("cuda")
    with DeviceMonitor(device) as monitor:
        torch.ones(1 << 20, device=device)
        use = monitor.use()
    assert use is not None
    assert use.peak_memory_bytes >= 4 << 20

"""Choice of the device and errors for devices that the machine lacks."""

import os
from contextlib import nullcontext

import numpy as np
import pynvml
import pytest
import torch
from PIL import Image

from robustcli.adapters.model import ModelFacts
from robustcli.cli import main
from robustcli.core.errors import UsageError
from robustcli.core.names import counted
from robustcli.core.ranks import Ranks
from robustcli.evaluation.device import (
    DeviceMonitor,
    as_current,
    choose_device,
    device_name,
    unused_gpu,
)
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


SLURM = {"SLURM_NTASKS": "4", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3"}


@pytest.mark.parametrize(
    ("variables", "visible", "expected"),
    [
        ({}, 4, "cuda:3"),
        ({**SLURM, "SLURM_GPUS_PER_TASK": "1"}, 4, "cuda:3"),  # a SLURM that does not bind
        ({**SLURM, "SLURM_GPUS_PER_TASK": "1"}, 1, "cuda:0"),
        ({**SLURM, "SLURM_TRES_PER_TASK": "cpu=8,gres/gpu=2"}, 2, "cuda:0"),
        ({**SLURM, "SLURM_GPUS_ON_NODE": "4"}, 1, "cuda:0"),  # --gpu-bind=single:1
        ({"CUDA_VISIBLE_DEVICES": "3"}, 1, "cuda:0"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-6b1e"}, 1, "cuda:0"),
        ({**SLURM, "SLURM_GPUS_ON_NODE": "1"}, 1, None),  # four tasks would share one GPU
        ({"CUDA_VISIBLE_DEVICES": "0"}, 1, None),
        ({"CUDA_VISIBLE_DEVICES": "GPU-6b1e,GPU-77aa"}, 2, None),
        ({"CUDA_VISIBLE_DEVICES": "3"}, 0, None),
    ],
)
def test_a_launcher_may_show_each_process_only_its_gpu(variables, visible, expected, monkeypatch):
    for name in [n for n in os.environ if n.startswith(("SLURM_", "CUDA_VISIBLE"))]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    place = Ranks(3, 4, 3, 4)
    if expected is None:
        with pytest.raises(UsageError, match="not available for process 3 of 4"):
            choose_device("cuda", place)
    else:
        assert choose_device("cuda", place) == torch.device(expected)


@pytest.mark.parametrize(
    ("name", "message"), [("gpu", "is not a device"), ("xpu", "not supported")]
)
def test_names_that_are_no_device(name, message):
    with pytest.raises(UsageError, match=f"`--device {name}`.*{message}"):
        choose_device(name)


@pytest.fixture
def gpu_of_driver(monkeypatch):
    """A GPU that the driver lists, for CUDA 12.4 and older."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    answers = {
        "nvmlInit": None, "nvmlDeviceGetCount": 1, "nvmlDeviceGetHandleByIndex": None,
        "nvmlDeviceGetName": "NVIDIA H200", "nvmlSystemGetCudaDriverVersion": 12040,
    }  # fmt: skip
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, lambda *_, answer=answer: answer)


@pytest.mark.usefixtures("gpu_of_driver")
def test_a_gpu_that_torch_cannot_use_is_announced(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    message = unused_gpu("auto", cpu)
    assert "cannot use the GPU of this machine (NVIDIA H200)" in message
    assert "needs CUDA 13.0, and the driver supports CUDA 12.4" in message
    assert "The CPU is used" in message
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "was built without CUDA" in unused_gpu("auto", cpu)
    assert unused_gpu("cpu", cpu) is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hidden on purpose
    assert unused_gpu("auto", cpu) is None


def test_without_an_nvidia_driver_there_is_nothing_to_announce(monkeypatch):
    def missing():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(pynvml, "nvmlInit", missing)
    assert unused_gpu("auto", torch.device("cpu")) is None


@pytest.mark.usefixtures("gpu_of_driver")
@pytest.mark.parametrize("command", ["eval", "train", "explain", "predict"])
def test_every_command_that_computes_announces_it(command, tmp_path, capsys):
    photo = tmp_path / "a.png"
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(photo)
    arguments = {
        "eval": ("eval", "--model", "resnet-pico", "--transform", "fliplr", "--dry-run"),
        "train": ("train", "cls", "--model", "resnet-pico", "--dry-run"),
        "explain": ("explain", "--model", "resnet-pico", "--dry-run"),
        "predict": ("predict", "--model", "resnet-pico", str(photo)),
    }[command]
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 0
    printed = capsys.readouterr()
    assert "cannot use the GPU of this machine" in printed.out + printed.err


def test_threads_without_a_device_use_the_gpu_of_the_process(monkeypatch):
    """The thread that pins batches would otherwise occupy memory of GPU 0 in every process."""
    used = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext(used.append(device)))
    for device in (torch.device("cpu"), torch.device("cuda", 3)):
        with as_current(device):
            pass
    assert used == [torch.device("cuda", 3)]


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

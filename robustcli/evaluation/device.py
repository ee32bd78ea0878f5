"""Selection of the device of a run; measurement of its memory, utilisation and energy."""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from robustcli.core.errors import UsageError
from robustcli.core.names import counted
from robustcli.core.ranks import Ranks, gpu_index
from robustcli.evaluation.record import DeviceUse

SAMPLE_SECONDS = 0.5


def choose_device(name: str, place: Ranks | None = None) -> torch.device:
    """The device with the name `name`; `auto` selects CUDA, else MPS, else the CPU.

    `place` is the rank of this process; each process of a machine gets a separate CUDA device.

    Raises:
        UsageError: `name` is not a device, or the device does not exist on this machine.
    """
    option = name
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(
            f"`--device {name}` is not a device.", "", "Use auto, cpu, cuda, cuda:1 or mps."
        ) from error
    if place is not None and place.local_world > 1:
        device = _device_of_rank(device, place)
    has_cuda = torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    if not {"cuda": has_cuda, "mps": _has_mps()}.get(device.type, True):
        sharing = place is not None and place.local_world > 1
        raise UsageError(
            f"`--device {option}` is not available"
            + (f" for process {place.local_rank} of {place.local_world}." if place and sharing
               else "."),
            f"torch {torch.__version__} finds {torch.cuda.device_count()} CUDA devices"
            + (", and each process needs a separate device." if sharing else "."),
            "Use `--device auto`, which uses the available device; `robust doctor` lists the "
            "devices."
            if not sharing else "Start fewer processes, or use `--device cpu`.",
        )  # fmt: skip
    if device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"`--device {name}` is not supported.", "Use auto, cpu, cuda or mps.")
    return device


def _device_of_rank(device: torch.device, place: Ranks) -> torch.device:
    """The device of one of several processes; raises UsageError if all would share one."""
    if device.type == "cpu":
        return device
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", gpu_index(place, torch.cuda.device_count()))
    raise UsageError(
        f"`--device {device}` selects one device for {place.local_world} processes.",
        "Each process needs a separate device.",
        "Use `--device cuda` or `--device cpu`, or start one process.",
    )


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def unused_gpu(option: str, device: torch.device) -> str | None:
    """A message if `--device auto` selected the CPU of a machine that has an NVIDIA GPU, else None.

    The driver lists GPUs that torch cannot use: for a torch without CUDA, or with a newer CUDA.
    """
    if option != "auto" or device.type != "cpu":
        return None
    found = gpu_without_torch()
    return None if found is None else f"{found} The CPU is used; `--device cpu` omits this message."


def gpu_without_torch() -> str | None:
    """The GPU of this machine that torch cannot use, why, and what to do; None without one."""
    import pynvml

    if torch.cuda.is_available() or os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return None
    try:
        pynvml.nvmlInit()
        if not pynvml.nvmlDeviceGetCount():
            return None
        name = str(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0)))
        newest = pynvml.nvmlSystemGetCudaDriverVersion()  # 12040 for CUDA 12.4
    except pynvml.NVMLError:
        return None
    if torch.version.cuda is None:
        reason = "was built without CUDA: install a build with CUDA (https://pytorch.org)"
    else:
        driver = f"the driver supports CUDA {newest // 1000}.{newest % 1000 // 10}"
        reason = f"needs CUDA {torch.version.cuda}, and {driver}: update the driver, or install a "
        reason += "torch for this CUDA (https://pytorch.org)"
    return f"torch {torch.__version__} cannot use the GPU of this machine ({name}). It {reason}."


def device_name(device: torch.device) -> str:
    """Description of the device for reports."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    machine = platform.processor() or platform.machine()
    return f"{device.type} ({machine}, {counted(torch.get_num_threads(), 'thread')})"


@contextmanager
def as_current(device: torch.device) -> Iterator[None]:
    """Makes a GPU torch's current device for the context; does nothing for other devices.

    The threads and libraries that do not know `device` use the current one. With the default, GPU
    0, each process would occupy several hundred megabytes of its memory.
    """
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        yield


class DeviceMonitor:
    """Context manager that measures peak memory, utilisation and energy of a CUDA device.

    Utilisation and energy are None if NVML does not report them.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._samples: list[int] = []
        self._stop = threading.Event()
        self._handle: object | None = None

    def __enter__(self) -> DeviceMonitor:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._handle = _nvml_handle(self.device)
            self._energy = _energy(self._handle)
            self._thread = threading.Thread(target=self._sample, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()

    def use(self) -> DeviceUse | None:
        """The usage so far; None on devices other than CUDA."""
        if self.device.type != "cuda":
            return None
        energy = _energy(self._handle)
        used = None if energy is None or self._energy is None else (energy - self._energy) / 1000
        mean = sum(self._samples) / len(self._samples) if self._samples else None
        return DeviceUse(
            peak_memory_bytes=torch.cuda.max_memory_allocated(self.device),
            utilisation_percent=mean,
            energy_joules=used,
        )

    def _sample(self) -> None:
        import pynvml

        while self._handle is not None and not self._stop.wait(SAMPLE_SECONDS):
            try:
                self._samples.append(pynvml.nvmlDeviceGetUtilizationRates(self._handle).gpu)
            except pynvml.NVMLError:
                return


def _nvml_handle(device: torch.device) -> object | None:
    """NVML's handle of `device`, found by UUID: NVML and CUDA may count devices differently."""
    import pynvml

    try:
        pynvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        handle: object = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}")
        return handle
    except (pynvml.NVMLError, AttributeError):
        return None


def _energy(handle: object | None) -> int | None:
    """Millijoules since the driver was loaded; None if the device does not count them."""
    import pynvml

    try:
        return None if handle is None else int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
    except pynvml.NVMLError:
        return None

"""Measurements that need a GPU: parity, speed, memory and energy, in at most eight minutes.

    python benchmarks/gpu.py --out gpu-figures            # on a machine with a CUDA device
    python benchmarks/gpu.py --out /tmp/dry --dry-run     # tiny shapes on the CPU, no figures

Requires the checkout, torch >= 2.6 with Triton, and timm; mamba-ssm is measured if it is installed.
Each part runs in a separate process with a time limit, because a process cannot use the device
after a failed kernel. A part that fails or exceeds its limit is reported with the rows that it
finished, and the other parts continue. Writes `gpu.json` and `gpu.md` to the folder `--out`.

The exit code is 0 if every part finished and every comparison succeeded, else 1; it is 3 without a
CUDA device. Missed goals do not change the exit code; goals are printed with the measured values.

A dry run computes the scan with Triton's interpreter, which must be enabled before Triton is
imported. It tests the script except for the device; its times are meaningless.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if "--dry-run" in sys.argv:
        os.environ["TRITON_INTERPRET"] = "1"

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

Entry = dict[str, Any]
"""One line of a part's result: `kind` (row, goal, parity or skipped) and its further fields."""


# --- The device: time, memory, energy -------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """The device and the measurements on it.

    Args:
        dry: Whether to use tiny shapes and the CPU.
    """

    dry: bool

    @property
    def device(self) -> torch.device:
        """The device of all tensors."""
        return torch.device("cpu" if self.dry else "cuda")

    def wait(self) -> None:
        """Synchronises the device."""
        if not self.dry:
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], object], budget: float = 1.0) -> float:
        """Median seconds of `call`, repeated for about `budget` seconds after two warm-up calls."""
        for _ in range(1 if self.dry else 2):
            call()
        self.wait()
        times: list[float] = []
        started = time.perf_counter()
        while not times or (time.perf_counter() - started < budget and len(times) < 50):
            before = time.perf_counter()
            call()
            self.wait()
            times.append(time.perf_counter() - before)
            if self.dry:
                break
        return statistics.median(times)

    def once(self, call: Callable[[], object]) -> float:
        """Seconds of a single call, for calls that are too slow to repeat."""
        self.wait()
        before = time.perf_counter()
        call()
        self.wait()
        return time.perf_counter() - before

    def peak_bytes(self, call: Callable[[], object]) -> int | None:
        """Peak memory of torch on the device during `call`; None in a dry run."""
        if self.dry:
            call()
            return None
        torch.cuda.reset_peak_memory_stats()
        call()
        self.wait()
        return torch.cuda.max_memory_allocated()

    def joules(self, call: Callable[[], object], budget: float = 2.0) -> float | None:
        """Mean energy of one call over `budget` seconds; None if NVML does not measure it."""
        try:
            import pynvml

            pynvml.nvmlInit()
            uuid = str(torch.cuda.get_device_properties(0).uuid).removeprefix("GPU-")
            handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
            before = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except Exception:  # without NVML, its counter, or CUDA
            return None
        calls, started = 0, time.perf_counter()
        while time.perf_counter() - started < budget:
            call()
            self.wait()
            calls += 1
        after = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        return float(after - before) / 1e3 / calls

    def copy_bandwidth(self) -> float:
        """Bytes per second that a copy on the device reads and writes: the bound for the scan."""
        count = 2**10 if self.dry else 2**28
        source = torch.zeros(count, device=self.device)
        target = torch.empty_like(source)
        return 2 * 4 * count / self.seconds(lambda: target.copy_(source))


def row(**cells: object) -> Entry:
    """One row of a table; underscores in column names are printed as spaces."""
    return {"kind": "row", **cells}


def goal(text: str, value: float, limit: float, at_least: bool) -> Entry:
    """A goal with the measured value."""
    reached = value >= limit if at_least else value <= limit
    sign = ">=" if at_least else "<="
    return {"kind": "goal", "text": f"{text} {sign} {limit:g}", "value": value, "reached": reached}


def skipped(why: str) -> Entry:
    """An entry for a measurement that this machine does not support, which is not a failure."""
    return {"kind": "skipped", "why": why}


# --- Arguments of the scan ------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A scan: its shape and layout.

    Args:
        batch: Number of images or sequences.
        channels: Number of channels of the input.
        shape: (L,) for a sequence or (H, W) for an image.
        states: Number of states, N.
        layout: `rows` or `tokens` for a sequence (time or channels contiguous), `channels-first` or
            `channels-last` for an image.
        groups: Number of groups of B and C, for a sequence.
        directions: Scan directions, for an image.
    """

    batch: int
    channels: int
    shape: tuple[int, ...]
    states: int
    layout: str
    groups: int = 1
    directions: tuple[str, ...] = ("row", "column", "row-reversed", "column-reversed")

    @property
    def is_image(self) -> bool:
        """Whether the case is computed by `ss2d_scan`; else by `selective_scan`."""
        return len(self.shape) == 2

    @property
    def text(self) -> str:
        """A description for the report."""
        size = " x ".join(map(str, (self.batch, self.channels, *self.shape)))
        extra = f", {self.groups} groups" if self.groups > 1 else ""
        if self.is_image and len(self.directions) != 4:
            extra = f", {' + '.join(self.directions)}"
        kind = "image" if self.is_image else "sequence"
        return f"{kind} {size}, N {self.states}, {self.layout}{extra}"

    def arguments(self, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        """Random arguments of the scan; the seed depends only on the case."""
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            values = torch.randn(shape, generator=generator).to(device, dtype)
            if self.layout == "tokens":
                values = values.transpose(-1, -2).contiguous().transpose(-1, -2)
            if self.layout == "channels-last":
                values = values.movedim(-3, -1).contiguous().movedim(-1, -3)
            return values

        K = len(self.directions) if self.is_image else 1
        rows, sides = K * self.channels, self.shape
        per_step = (self.batch, K if self.is_image else self.groups, self.states, *sides)
        delta = (self.batch, K, self.channels, *sides) if self.is_image else ()
        made = {
            "x" if self.is_image else "u": normal(self.batch, self.channels, *sides),
            "delta": normal(*(delta or (self.batch, self.channels, *sides))),
            "B": normal(*per_step),
            "C": normal(*per_step),
        }
        parameters = {
            "A": -torch.rand((rows, self.states), generator=generator) - 0.05,
            "D": torch.randn(rows, generator=generator),
            "delta_bias": torch.randn(rows, generator=generator),
        }
        return made | {name: t.to(device) for name, t in parameters.items()}

    def scan(self, arguments: dict[str, Tensor], backend: str) -> Tensor:
        """The output of the scan by `backend`, without the dispatcher's test of the backend."""
        from robustcli.models.scan.base import ScanSettings, of_image, of_sequence, to_image
        from robustcli.models.scan.dispatch import BACKENDS

        names = ("x" if self.is_image else "u", "delta", "A", "B", "C", "D", "delta_bias")
        tensors = [arguments[name] for name in names]
        if self.is_image:
            settings = ScanSettings(True, self.directions, *self.shape)
            y, _ = BACKENDS[backend].scan(of_image(*tensors), settings)
            return to_image(y, *self.shape)
        y, _ = BACKENDS[backend].scan(of_sequence(*tensors), ScanSettings(True))
        return y.transpose(1, 2).to(tensors[0].dtype)


def leaves(arguments: dict[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Copies of `arguments` as leaf tensors that require gradients, in `dtype`."""
    return {k: t.detach().to(dtype or t.dtype).requires_grad_() for k, t in arguments.items()}


# --- Part: parity ---------------------------------------------------------------------------------
#
# The scan and its reference get the same values, already rounded to the dtype of the input. The
# reference is computed in float64: by the loop over time up to LOOP steps, else by `blockwise`,
# which the tests compare with the loop. Errors are relative to the largest value. The gradients of
# D and delta_bias are sums that nearly cancel; their errors are relative to the sum of the
# magnitudes of the terms.
#
# Tolerances. The state is float32: each operation has a relative error of 6e-8, and hundreds of
# them add up over long sequences, to 2e-5 in total (as in tests/models/scan/test_triton.py). A
# result stored in float16 or bfloat16 is rounded again, with a relative error of up to 2^-11 or
# 2^-8. The tolerance is twice that, because a float32 error can change the direction of rounding.

TOLERANCES = {torch.float32: 2e-5, torch.float16: 2e-5 + 2**-10, torch.bfloat16: 2e-5 + 2**-7}
LOOP = 1_024


def parity_cases(dry: bool) -> list[Case]:
    """Cases with every layout, odd and even numbers of channels, and 1 to 65,536 steps."""
    if dry:
        return [Case(1, 2, (3,), 2, "rows"), Case(1, 3, (2, 2), 1, "channels-last")]
    rows = [Case(2, 24, (length,), 16, "rows") for length in (1, 63, 1_000, 4_096, 16_384, 65_536)]
    return [
        *rows,
        Case(2, 33, (1_000,), 3, "tokens"), Case(1, 16, (65_536,), 16, "tokens"),
        Case(2, 24, (777,), 4, "rows", groups=3), Case(64, 96, (196,), 1, "tokens"),
        Case(2, 31, (7, 9), 1, "channels-first"), Case(2, 96, (56, 56), 1, "channels-last"),
        Case(8, 192, (28, 28), 1, "channels-first"), Case(1, 16, (256, 256), 1, "channels-last"),
        Case(1, 8, (128, 128), 16, "channels-first"),
        Case(1, 40, (20, 30), 2, "channels-last", directions=("row",) * 4),
        Case(1, 40, (20, 30), 2, "channels-first", directions=("column-reversed", "row")),
    ]  # fmt: skip


def errors(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    """Relative error of the output and of each gradient."""
    arguments = case.arguments(dtype, device)
    found, exact = leaves(arguments), leaves(arguments, torch.float64)
    steps = 1
    for side in case.shape:
        steps *= side
    y = case.scan(found, "triton")
    expected = case.scan(exact, "reference" if steps <= LOOP else "blockwise")
    slope = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    y.backward(slope)
    expected.backward(slope.double())
    pairs = {"y": (y, expected)} | {n: (t.grad, exact[n].grad) for n, t in found.items()}
    terms = {
        "D": slope.double() * exact["x" if case.is_image else "u"],
        "delta_bias": exact["delta"].grad,
    }
    result = {}
    for name, (ours, right) in pairs.items():
        assert ours is not None
        assert right is not None
        size = right
        if name in terms:
            term = terms[name]
            assert term is not None
            channel_axis = term.ndim - len(case.shape) - 1
            size = term.abs().movedim(channel_axis, 0).flatten(1).sum(1)
        scale = max(float(size.detach().abs().max()), 1e-30)
        result[name] = float((ours.detach().double() - right.detach()).abs().max()) / scale
    return result


def parity(bench: Bench) -> Iterator[Entry]:
    """Compares the Triton scan with the float64 reference, forward and backward."""
    for case in parity_cases(bench.dry):
        for dtype, tolerance in TOLERANCES.items():
            worst_name, worst = max(
                errors(case, dtype, bench.device).items(),
                key=lambda item: item[1] if item[1] == item[1] else float("inf"),
            )
            yield {
                "kind": "parity", "scan": case.text, "dtype": str(dtype).removeprefix("torch."),
                "worst of": worst_name, "error": worst, "tolerance": tolerance,
                "passed": worst < tolerance,
            }  # fmt: skip


# --- Part: speed of the scan ----------------------------------------------------------------------


def passes(case: Case, arguments: dict[str, Tensor], backend: str) -> dict[str, Callable[[], None]]:
    """Functions that run only the forward pass, and forward and backward, by `backend`."""
    needed = leaves(arguments)
    slope = torch.ones_like(case.scan(arguments, backend))

    def forward() -> None:
        with torch.no_grad():
            case.scan(arguments, backend)

    def both() -> None:
        torch.autograd.grad(case.scan(needed, backend), list(needed.values()), slope)

    return {"forward": forward, "forward + backward": both}


def least_bytes(case: Case, arguments: dict[str, Tensor], backward: bool) -> int:
    """Memory traffic in bytes if each pass reads every input once and writes every result once."""
    inputs = sum(t.numel() * t.element_size() for t in arguments.values())
    x = arguments["x" if case.is_image else "u"]
    output = x.numel() * (4 if case.is_image else x.element_size())
    return inputs + output + (2 * inputs + output if backward else 0)


def scan_cases(dry: bool) -> list[Case]:
    """Cases: the first and third stage of VMamba-B, a single image, and a layer of Mamba-130M."""
    if dry:
        return [Case(1, 2, (2, 2), 1, "channels-last")]
    return [
        Case(64, 256, (56, 56), 1, "channels-last"), Case(64, 1_024, (14, 14), 1, "channels-last"),
        Case(1, 256, (56, 56), 1, "channels-last"), Case(8, 1_536, (2_048,), 16, "rows"),
    ]  # fmt: skip


MAMBA_GOALS = {"forward": 1.5, "forward + backward": 1.3}
BANDWIDTH_GOAL = 0.6


def scan_speed(bench: Bench) -> Iterator[Entry]:
    """Compares the Triton scan with the torch loop, the memory bandwidth, and mamba-ssm."""
    from robustcli.models.scan.dispatch import reason_off

    copy = bench.copy_bandwidth()
    yield row(scan="copy on the device", GB_per_s=f"{copy / 1e9:.0f}")
    without_mamba = reason_off("mamba_ssm")
    if without_mamba is not None:
        yield skipped(f"mamba-ssm: {without_mamba}")
    for number, case in enumerate(scan_cases(bench.dry)):
        for dtype in (torch.float32,) if bench.dry else (torch.float32, torch.bfloat16):
            arguments = case.arguments(dtype, bench.device)
            ours = passes(case, arguments, "triton")
            for name, call in ours.items():
                seconds = bench.seconds(call)
                moved = least_bytes(case, arguments, name != "forward")
                share = moved / seconds / copy
                cells: dict[str, object] = {
                    "scan": case.text, "dtype": str(dtype).removeprefix("torch."), "pass": name,
                    "ms": f"{1e3 * seconds:.3f}", "GB_per_s": f"{moved / seconds / 1e9:.0f}",
                    "of_copy": f"{share:.0%}",
                }  # fmt: skip
                if dtype == torch.float32:
                    loop = bench.once(passes(case, arguments, "reference")[name])
                    cells["loop_/_ours"] = f"{loop / seconds:.0f}"
                if without_mamba is None:
                    theirs = bench.seconds(passes(case, arguments, "mamba_ssm")[name])
                    cells["mamba-ssm_/_ours"] = f"{theirs / seconds:.2f}"
                memory = bench.peak_bytes(call)
                if memory is not None:
                    cells["peak_MB"] = f"{memory / 1e6:.0f}"
                yield row(**cells)
                if number == 0 and name == "forward":
                    text = f"{case.text}, {cells['dtype']}: share of the copy's bandwidth"
                    yield goal(text, share, BANDWIDTH_GOAL, at_least=True)
                if without_mamba is None and case.is_image:
                    text = f"{case.text}, {cells['dtype']}, {name}: mamba-ssm / ours"
                    yield goal(text, theirs / seconds, MAMBA_GOALS[name], at_least=True)


# --- Part: networks -------------------------------------------------------------------------------


def build(name: str) -> nn.Module:
    """The network `name` with random weights, of this package or else of timm."""
    import timm

    from robustcli.models.architectures import architecture

    if name.startswith("vmamba"):
        return architecture(name).build()
    network: nn.Module = timm.create_model(name)
    return network


def half(device: torch.device) -> Any:
    """Autocast to bfloat16."""
    return torch.autocast(device.type, torch.bfloat16)


def inference(network: nn.Module, images: Tensor) -> Callable[[], object]:
    """A function that runs `network` once in bfloat16."""
    network.eval()

    def call() -> object:
        with torch.inference_mode(), half(images.device):
            return network(images)

    return call


def training(network: nn.Module, images: Tensor) -> Callable[[], object]:
    """A function that runs one training step with AdamW in bfloat16."""
    network.train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def call() -> object:
        with half(images.device):
            loss = network(images).float().square().mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        return loss

    return call


SIZES = {
    "B": ("vmamba-b", "convnext_base", "swin_base_patch4_window7_224"),
    "T": ("vmamba-t", "convnext_tiny", "swin_tiny_patch4_window7_224"),
}
NETWORK_GOAL = 1.3  # largest time relative to ConvNeXt-B


def networks(bench: Bench) -> Iterator[Entry]:
    """Compares VMamba with ConvNeXt and Swin of equal size: inference and training steps."""
    sizes = {"pico": ("vmamba-pico", "test_resnet.r160_in1k")} if bench.dry else SIZES
    for size, names in sizes.items():
        seconds: dict[tuple[str, str], float] = {}
        for name in names:
            network = build(name).to(bench.device).to(memory_format=torch.channels_last)
            for mode, make, batch in (("inference", inference, 64), ("training", training, 32)):
                side, count = (32, 2) if bench.dry else (224, batch)
                images = torch.randn(count, 3, side, side, device=bench.device)
                call = make(network, images.to(memory_format=torch.channels_last))
                seconds[name, mode] = bench.seconds(call)
                memory, energy = bench.peak_bytes(call), bench.joules(call)
                first = seconds[names[0], mode]
                yield row(
                    network=name, mode=mode, batch=count,
                    images_per_s=f"{count / seconds[name, mode]:.0f}",
                    VMamba_takes=f"{first / seconds[name, mode]:.2f} x",
                    peak_GB="" if memory is None else f"{memory / 1e9:.2f}",
                    J_per_image="" if energy is None else f"{energy / count:.3f}",
                )  # fmt: skip
            del network
        if size == "B":
            value = seconds[names[0], "inference"] / seconds[names[1], "inference"]
            yield goal(
                "VMamba-B / ConvNeXt-B, seconds of inference", value, NETWORK_GOAL, at_least=False
            )


def graphed(call: Callable[[], object]) -> Callable[[], None]:
    """Records the kernel launches of `call` as a CUDA graph; returns a function to replay it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return lambda: graph.replay()


def variants(bench: Bench) -> Iterator[Entry]:
    """Effect of channels-last, CUDA graphs and torch.compile on VMamba-T and ConvNeXt-T."""
    names = ("vmamba-pico",) if bench.dry else SIZES["T"][:2]
    batches, side = ((1,), 32) if bench.dry else ((1, 64), 224)
    if bench.dry:
        yield skipped("CUDA graphs and torch.compile: not in a dry run")
    for name in names:
        for batch in batches:
            network = build(name).to(bench.device)
            images = torch.randn(batch, 3, side, side, device=bench.device)
            plain = bench.seconds(inference(network, images), 0.5)
            network = network.to(memory_format=torch.channels_last)
            images = images.to(memory_format=torch.channels_last)
            call = inference(network, images)
            cells = {"channels-last": f"{plain / bench.seconds(call, 0.5):.2f}"}
            if not bench.dry:
                cells["CUDA_graph"] = f"{plain / bench.seconds(graphed(call), 0.5):.2f}"
                torch.compiler.reset()
                fused: Any = torch.compile(network, fullgraph=True)
                compiled = inference(fused, images)
                cells["first_compiled_call_s"] = f"{bench.once(compiled):.1f}"
                cells["torch.compile"] = f"{plain / bench.seconds(compiled, 0.5):.2f}"
            yield row(network=name, batch=batch, plain_ms=f"{1e3 * plain:.2f}", **cells)


# --- Parts: complete evaluations ------------------------------------------------------------------


def write_photos(folder: Path, count: int) -> Path:
    """Writes `count` JPEG photos of 500 x 375 pixels, of ImageNet's first class, to `folder`."""
    import numpy as np
    from PIL import Image

    classes = folder / "n01440764"
    classes.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for number in range(count):
        grid = Image.fromarray(draw.integers(0, 256, (12, 16, 3), np.uint8))
        grid.resize((500, 375), Image.Resampling.BICUBIC).save(classes / f"{number}.jpg")
    return folder


def evaluated(out: Path, data: str, models: tuple[str, ...], *options: str) -> float:
    """Total seconds of `robust eval` with cheap transforms."""
    named = [part for name in models for part in ("--model", name)]
    command = [
        sys.executable, "-m", "robustcli", "eval", *named, "--data", data, "--out", str(out),
        "--transform", "identity", "--transform", "fliplr", "--quiet", *options,
    ]  # fmt: skip
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    settings = {**os.environ, "PYTHONPATH": path}
    started = time.perf_counter()
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"robust eval ended with {done.returncode}: {done.stderr.strip()[-800:]}"
        )
    return time.perf_counter() - started


def loader(bench: Bench) -> Iterator[Entry]:
    """Compares the images per second of an evaluation with those of only the network."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options: tuple[str, ...] = ("--device", "cpu", "--limit", "4", "--workers", "0")
        if bench.dry:
            model = "resnet-pico"
            data = "cifar10-mini"
        else:
            model, options = "convnext-t", ("--untrained", "--precision", "bf16")
            data = str(write_photos(folder / "photos", 1_024))
        evaluated(folder / "run", data, (model,), *options)
        session = json.loads(next((folder / "run" / "sessions").iterdir()).read_text())
        images = session["models"][model]["images"]
        cells = {"run_images_per_s": f"{images / session['seconds']:.0f}"}
        if not bench.dry:
            network = build("convnext_tiny").to(bench.device).to(memory_format=torch.channels_last)
            batch = torch.randn(256, 3, 224, 224, device=bench.device)
            alone = bench.seconds(inference(network, batch)) / 256
            cells["network_alone_per_s"] = f"{1 / alone:.0f}"
            cells["run_of_network"] = f"{images / session['seconds'] * alone:.0%}"
        waited = session["waiting_seconds"] / session["seconds"]
        yield row(model=model, images=images, **cells, waiting_for_images=f"{waited:.0%}")


def devices(bench: Bench) -> Iterator[Entry]:
    """Evaluates two models on one device and on all: compares rows, and measures the speedup."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if bench.dry:
            models, data = ("vmamba-pico", "resnet-pico"), "cifar10-mini"
            options: tuple[str, ...] = ("--device", "cpu", "--limit", "4", "--workers", "0")
        else:
            models, options = ("vmamba-t", "convnext-t"), ("--untrained",)
            data = str(write_photos(folder / "photos", 512))
        single = evaluated(folder / "single", data, models, *options)
        shared = evaluated(folder / "all", data, models, *options, "--devices", "all")
        count = 1 if bench.dry else torch.cuda.device_count()
        yield row(
            models=" and ".join(models), devices=count, one_device_s=f"{single:.1f}",
            all_devices_s=f"{shared:.1f}", times_faster=f"{single / shared:.2f}",
        )  # fmt: skip
        files = sorted((folder / "single" / "predictions").rglob("*.parquet"))
        for path in files:
            other = folder / "all" / path.relative_to(folder / "single")
            same = other.is_file() and other.read_bytes() == path.read_bytes()
            yield {
                "kind": "parity", "rows": str(path.relative_to(folder / "single" / "predictions")),
                "compared": "bytes of one and all devices", "passed": same,
            }  # fmt: skip
        if not files:
            raise RuntimeError("The run over one device wrote no predictions.")


# --- The run --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A part of the run: its function and its time limit in seconds."""

    run: Callable[[Bench], Iterator[Entry]]
    seconds: int


PARTS = {
    "parity": Part(parity, 110),
    "scan": Part(scan_speed, 80),
    "networks": Part(networks, 100),
    "variants": Part(variants, 80),
    "loader": Part(loader, 50),
    "devices": Part(devices, 60),
}
"""The parts in the order of the report; at most eight minutes in total."""


def perform(name: str, bench: Bench, lines: io.TextIOBase) -> None:
    """Runs a part, and writes each entry immediately as one line of JSON."""
    try:
        for entry in PARTS[name].run(bench):
            lines.write(json.dumps(entry) + "\n")
            lines.flush()
        ended: Entry = {"kind": "end", "status": "complete"}
    except ImportError as error:
        missing = error.name or str(error)
        ended = {"kind": "end", "status": f"not run: `{missing}` is missing ({error})"}
    except Exception as error:  # the other parts continue
        traceback.print_exc()
        ended = {"kind": "end", "status": f"failed: {type(error).__name__}: {error}"}
    lines.write(json.dumps(ended) + "\n")


def shrink_tiles() -> None:
    """Sets small tiles for Triton's interpreter, which processes tiles sequentially."""
    with contextlib.suppress(ImportError):  # the parts report missing packages
        from robustcli.models.scan import triton

        triton.TILE = 32


def in_a_process(name: str) -> list[Entry]:
    """Runs a part in a separate process; returns the entries that it finished in its time limit."""
    limit = PARTS[name].seconds
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "entries.jsonl"
        command = [sys.executable, __file__, "--part", name, "--entries", str(path)]
        status = "failed: its process ended early"
        try:
            done = subprocess.run(command, timeout=limit, check=False)
            status += f" with {done.returncode}"
        except subprocess.TimeoutExpired:
            status = f"failed: not done after its {limit} s"
        text = path.read_text() if path.is_file() else ""
    entries = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
    if not entries or entries[-1]["kind"] != "end":
        entries.append({"kind": "end", "status": status})
    return entries


def machine(bench: Bench) -> dict[str, Any]:
    """Date, hardware and versions."""
    versions = {}
    for package in ("torch", "triton", "timm", "numba", "mamba-ssm", "nvidia-ml-py"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    hardware = f"{platform.machine()} CPU, dry run: the figures mean nothing"
    if not bench.dry:
        properties = torch.cuda.get_device_properties(0)
        size = properties.total_memory / 2**30
        hardware = f"{torch.cuda.device_count()} x {properties.name}, {size:.0f} GiB"
    now = datetime.datetime.now(datetime.UTC)
    return {
        "date": now.strftime("%Y-%m-%d %H:%M UTC"), "hardware": hardware,
        "cuda": torch.version.cuda, "python": platform.python_version(), "versions": versions,
    }  # fmt: skip


def markdown_table(rows: list[Entry]) -> str:
    """The rows as a Markdown table, with all columns of all rows."""
    columns = list(dict.fromkeys(key for cells in rows for key in cells if key != "kind"))
    lines = [[column.replace("_", " ") for column in columns], ["---"] * len(columns)]
    for cells in rows:
        shown = [cells.get(column, "") for column in columns]
        lines.append([f"{v:.1e}" if isinstance(v, float) else str(v) for v in shown])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(about: dict[str, Any], results: dict[str, list[Entry]]) -> str:
    """The report in Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    parts = [f"{about['date']}, {about['hardware']}, CUDA {about['cuda']}, {versions}."]
    for name, entries in results.items():
        parts.append(f"### {name}: {entries[-1]['status']}")
        for kind in ("parity", "row"):
            rows = [entry for entry in entries if entry["kind"] == kind]
            if rows:
                parts.append(markdown_table(rows))
        parts += [f"Not measured: {e['why']}" for e in entries if e["kind"] == "skipped"]
        for entry in (entry for entry in entries if entry["kind"] == "goal"):
            verdict = "reached" if entry["reached"] else "not reached"
            parts.append(f"Goal {entry['text']}: {entry['value']:.2f}, {verdict}")
    return "\n\n".join(parts) + "\n"


def faults(results: dict[str, list[Entry]]) -> list[str]:
    """The failures that set exit code 1."""
    found = []
    for name, entries in results.items():
        if entries[-1]["status"] != "complete":
            found.append(f"{name}: {entries[-1]['status']}")
        wrong = [e for e in entries if e["kind"] == "parity" and not e["passed"]]
        found += [f"{name}: {e.get('scan') or e.get('rows')} differs" for e in wrong]
    return found


def main() -> int:
    """Runs the parts and writes both files; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("gpu-figures"), help="Output folder.")
    parser.add_argument("--parts", default=",".join(PARTS), help="Parts to run: parity,scan,...")
    parser.add_argument("--dry-run", action="store_true", help="Use tiny shapes on the CPU.")
    parser.add_argument("--part", choices=tuple(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--entries", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    bench = Bench(dry=arguments.dry_run)
    if arguments.part:
        with arguments.entries.open("w") as lines:
            perform(arguments.part, bench, lines)
        return 0
    names = arguments.parts.split(",")
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        parser.error(f"no part is called `{unknown[0]}`; there are {', '.join(PARTS)}")
    if not (bench.dry or torch.cuda.is_available()):
        print(f"No CUDA device: torch {torch.__version__} sees none. `--dry-run` needs none.",
              file=sys.stderr)  # fmt: skip
        return 3
    if bench.dry:
        shrink_tiles()
    results: dict[str, list[Entry]] = {}
    for name in names:
        print(f"{name} ...", flush=True)
        if bench.dry:
            lines = io.StringIO()
            perform(name, bench, lines)
            results[name] = [json.loads(line) for line in lines.getvalue().splitlines()]
        else:
            results[name] = in_a_process(name)
    about = machine(bench)
    arguments.out.mkdir(parents=True, exist_ok=True)
    document = {"schema": 1, "machine": about, "parts": results}
    (arguments.out / "gpu.json").write_text(json.dumps(document, indent=2) + "\n")
    text = page(about, results)
    (arguments.out / "gpu.md").write_text(text)
    print(text)
    found = faults(results)
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

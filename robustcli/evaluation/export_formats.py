"""File formats of exported networks: writing, reading and running them.

A network is exported with the scan in torch's own operations (`models.scan.blockwise`), so that the
file needs neither this program nor its kernels.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.adapters.exported import ExportFormat
from robustcli.adapters.foreign_files import OnnxNetwork
from robustcli.adapters.segmenter import first
from robustcli.core.errors import MachineError, RunError, first_line
from robustcli.models.scan.dispatch import scans_for_graphs

INPUT, OUTPUT = "images", "scores"
"""Names of the graph's input and output."""
OPSET = 18
"""Default operator set of ONNX; runtimes since 2023 support it."""
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_MOST_IMAGES = 2**31 - 1
_TWO_GIBIBYTES = 2**31


class ExportedNetwork(nn.Module):
    """The exported module: maps normalised images (B, C, H, W) to the network's scores.

    Args:
        network: Network of a classifier or segmenter. If it returns a list, the first output is
            used, which has the highest resolution.
        resize_maps: Whether several score maps are resized to the size of the input, as in an
            evaluation of several classes. A single map is always resized. Several maps that count
            as one foreground must not be resized here: they are summed before they are resized.
        classes: Number of leading scores that are returned, if the others are no classes
            (`Classifier.classes`); None for all.
    """

    def __init__(
        self, network: nn.Module, *, resize_maps: bool = False, classes: int | None = None
    ) -> None:
        super().__init__()
        self.network, self.resize_maps, self.classes = network, resize_maps, classes

    def forward(self, images: Tensor) -> Tensor:
        """Scores (B, classes) or (B, classes, h, w)."""
        scores = first(self.network(images))
        if scores.ndim == 4 and (self.resize_maps or int(scores.shape[1]) == 1):
            size = [int(side) for side in images.shape[2:]]
            if [int(side) for side in scores.shape[2:]] != size:
                scores = F.interpolate(scores, size, mode="bilinear", align_corners=False)
        return scores if self.classes is None else scores[:, : self.classes]


@dataclass(frozen=True)
class GraphOptions:
    """Settings of a graph.

    Args:
        shape: Channels, height and width of an image.
        dynamic_batch: Whether the batch size is variable.
        opset: Operator set of ONNX.
    """

    shape: tuple[int, int, int]
    dynamic_batch: bool = True
    opset: int = OPSET

    @property
    def example(self) -> Tensor:
        """Images to trace with; two if the batch size is variable: 1 would become a constant."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(2 if self.dynamic_batch else 1, *self.shape, generator=generator)


def _to_torchscript(network: nn.Module, path: Path, options: GraphOptions) -> None:
    traced = torch.jit.trace(network, options.example, check_trace=False)
    torch.jit.save(traced, str(path))


def _from_torchscript(path: Path) -> nn.Module:
    network: nn.Module = torch.jit.load(str(path), map_location="cpu")
    return network.eval()


class RowwiseNorm(nn.Module):
    """Group or instance normalisation of (B, C, H, W) that averages the rows, then their means.

    onnxruntime sums the pixels of a map one after another in float32, in `InstanceNormalization` as
    in `ReduceMean`: for maps of 128 x 128 its mean and variance are wrong by up to 1e-5, which
    several norms in sequence amplify. Sums of one row at a time stay within 1e-6.

    Args:
        norm: The layer that is replaced; its parameters are shared.
    """

    def __init__(self, norm: nn.GroupNorm | nn.InstanceNorm2d) -> None:
        super().__init__()
        channels = norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features
        self.groups = norm.num_groups if isinstance(norm, nn.GroupNorm) else channels
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, maps: Tensor) -> Tensor:
        """Normalised maps (B, C, H, W)."""
        grouped = maps.unflatten(1, (self.groups, -1))  # (B, groups, C / groups, H, W)
        centred = grouped - _mean_by_rows(grouped)
        deviation = torch.sqrt(_mean_by_rows(centred * centred) + self.eps)
        normalised: Tensor = (centred / deviation).flatten(1, 2)
        if self.weight is not None:
            normalised = normalised * self.weight[:, None, None]
        return normalised if self.bias is None else normalised + self.bias[:, None, None]


def _mean_by_rows(maps: Tensor) -> Tensor:
    for dimension in (-1, -2, -3):
        maps = maps.mean(dimension, keepdim=True)
    return maps


def with_rowwise_norms(network: nn.Module) -> nn.Module:
    """A copy of `network` with `RowwiseNorm` for norms of single images; weights are shared."""
    memo: dict[int, object] = {id(t): t for t in (*network.parameters(), *network.buffers())}
    for norm in network.modules():
        running = isinstance(norm, nn.InstanceNorm2d) and norm.track_running_stats
        if isinstance(norm, (nn.GroupNorm, nn.InstanceNorm2d)) and not running:
            memo[id(norm)] = RowwiseNorm(norm)
    exported: nn.Module = copy.deepcopy(network, memo)
    return exported


def any_batch() -> tuple[dict[int, Any]]:
    """`dynamic_shapes` of torch's exporters for a network that takes any number of images."""
    # Without a limit, torch 2.6 refuses every network.
    return ({0: torch.export.Dim("batch", max=_MOST_IMAGES)},)


def _to_onnx(network: nn.Module, path: Path, options: GraphOptions) -> None:
    size = sum(p.numel() * p.element_size() for p in network.parameters())
    if size >= _TWO_GIBIBYTES:
        raise RunError(
            f"The network is too large for an ONNX file: {size / 2**30:.1f} GiB of weights.",
            "A protobuf file can contain at most 2 GiB.",
            "Use `--format torchscript`.",
        )
    dynamic = any_batch() if options.dynamic_batch else None
    program = torch.onnx.export(
        with_rowwise_norms(network), (options.example,), dynamo=True, dynamic_shapes=dynamic,
        input_names=[INPUT], output_names=[OUTPUT], opset_version=options.opset,
        external_data=False, verbose=False,
    )  # fmt: skip
    assert program is not None, "the newer exporter returns one"
    written = program.model.opset_imports[""]
    if written != options.opset:
        raise RunError(
            f"`--opset {options.opset}` cannot be written: the exporter of torch wrote operator "
            f"set {written}.",
            "It can only convert between some operator sets.",
            f"Use `--opset {written}`.",
        )
    program.save(str(path), external_data=False)


def _from_onnx(path: Path) -> nn.Module:
    import onnxruntime

    return OnnxNetwork(path, onnxruntime).eval()


@dataclass(frozen=True)
class FormatRow:
    """A file format of exported networks.

    Args:
        suffix: Suffix of the files.
        engine: Name of the runtime.
        packages: Optional packages that are needed to write and check a file.
        write: Writes a network to a file.
        read: Reads a file as a module.
    """

    suffix: str
    engine: str
    packages: tuple[str, ...]
    write: Callable[[nn.Module, Path, GraphOptions], None]
    read: Callable[[Path], nn.Module]


FORMATS: Mapping[ExportFormat, FormatRow] = {
    "onnx": FormatRow(".onnx", "onnxruntime", _ONNX_PACKAGES, _to_onnx, _from_onnx),
    "torchscript": FormatRow(".pt", "TorchScript", (), _to_torchscript, _from_torchscript),
}


def check_packages(export_format: ExportFormat) -> None:
    """Raises MachineError if packages that `export_format` needs are not installed."""
    missing = [p for p in FORMATS[export_format].packages if importlib.util.find_spec(p) is None]
    if missing:
        raise MachineError(
            f"`--format {export_format}` needs {', '.join(missing)}.",
            "Writing the file needs onnx and onnxscript; checking it needs onnxruntime.",
            "Install them: `pip install 'robustcli[export]'`; `--format torchscript` needs no "
            "additional package.",
        )


def write_graph(
    network: nn.Module, export_format: ExportFormat, path: Path, options: GraphOptions, name: str
) -> None:
    """Writes `network` to `path`.

    Args:
        network: An `ExportedNetwork` on the CPU, in eval mode.
        export_format: Format of the file.
        path: The file, in an existing folder.
        options: Settings of the graph.
        name: Name of the model, for messages.

    Raises:
        RunError: The exporter does not support the network.
    """
    try:
        with _quiet_exporters(), scans_for_graphs(), torch.no_grad():
            FORMATS[export_format].write(network, path, options)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # exporters raise many classes of exceptions
        if isinstance(error, RunError) and error.__cause__ is None:
            raise  # raised by the functions of a format, not while the network is traced
        todo = "Try another `--format`"
        if options.dynamic_batch:
            todo += (
                ", or `--fixed-batch` if the network uses the number of images in its computation"
            )
        raise RunError(
            f"`{name}` cannot be exported to {export_format}.",
            f"The error of torch {torch.__version__} is: {_reason(error)}",
            f"{todo}.",
        ) from error


def read_graph(export_format: ExportFormat, path: Path) -> nn.Module:
    """The network in the file `path`, run by the engine of its format on the CPU."""
    with _quiet_exporters():
        return FORMATS[export_format].read(path)


def _reason(error: BaseException) -> str:
    """Message of the innermost cause, which exporters wrap in other exceptions."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {first_line(error)}"


@contextmanager
def _quiet_exporters() -> Iterator[None]:
    """Suppresses warnings of exporters: shapes are meant to be constant, and parity is checked.

    Newer releases of torch also warn that TorchScript is deprecated in favour of `torch.export`.
    """
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)

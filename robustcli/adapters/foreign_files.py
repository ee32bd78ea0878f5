"""Networks in TorchScript and ONNX files, which contain their computation.

TorchScript runs in torch's interpreter, ONNX in onnxruntime. Neither unpickles Python objects or
runs Python code from the file.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.exported import Sidecar, read_sidecar, sidecar_path
from robustcli.adapters.file_kinds import is_torchscript
from robustcli.adapters.foreign import ForeignNetwork
from robustcli.core.errors import MachineError, UsageError, first_line
from robustcli.data.download import file_sha256

_UNKNOWN = "unknown (weights from a file)"
_TYPES: dict[str, Any] = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64
}  # fmt: skip


def torchscript(request: ModelRequest) -> ForeignNetwork:
    """The network in a file of `torch.jit.save`.

    Raises:
        UsageError: The file does not exist or is of another kind.
    """
    path = _checked(request)
    try:
        scripted = is_torchscript(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    if not scripted:
        raise UsageError(
            f"`{path}` is not a TorchScript archive.",
            "A weights file does not contain its network.",
            f"Pass the network as well: `--model NAME --weights {path}`, or for your own network "
            f"`--model my_package.my_module:build --weights {path}`.",
        )
    try:
        with warnings.catch_warnings():
            # torch recommends torch.export for new files, but still reads TorchScript
            warnings.filterwarnings("ignore", message=".*torch.jit.load.*deprecated")
            network: nn.Module = torch.jit.load(str(path), map_location="cpu")
    except Exception as error:  # damaged archives raise any exception in torch's reader
        raise _unreadable(path, error) from error
    foreign = ForeignNetwork(
        network.float().eval(),
        family="torchscript",
        origin=str(path),
        digest=file_sha256(path),
        pretraining=_UNKNOWN,
        notes=(f"`{path}` is a program: torch's TorchScript interpreter runs it, not Python.",),
    )
    return described(foreign, read_sidecar(path))


def described(foreign: ForeignNetwork, sidecar: Sidecar | None) -> ForeignNetwork:
    """`foreign` with input size and origin from its sidecar."""
    if sidecar is None:
        return foreign
    channels, side = sidecar.input.shape[1], sidecar.input.shape[3]
    return replace(
        foreign,
        family=sidecar.model.family,
        pretraining=sidecar.model.pretraining,
        side=side if isinstance(side, int) else None,
        channels=channels if isinstance(channels, int) else None,
        parameters=sidecar.model.parameters,
        sidecar=sidecar,
    )


def _checked(request: ModelRequest) -> Path:
    path = Path(request.name).expanduser()
    if not path.is_file():
        raise UsageError(
            f"The file `{path}` does not exist.", "", "Check the path given to `--model`."
        )
    if request.arguments:
        raise UsageError(
            f"`{path}` does not support `--model-arg`.",
            "It is a finished network.",
            "Omit it.",
        )
    return path


def _unreadable(path: Path, error: Exception) -> UsageError:
    return UsageError(
        f"`{path}` cannot be read as a network.", f"The error is: {first_line(error)}.",
        "Export it again; a partial copy is the usual cause.",
    )  # fmt: skip


# ONNX.


class OnnxNetwork(nn.Module):
    """An ONNX graph as a module: maps images (B, C, H, W) to its first output.

    Args:
        path: The file.
        runtime: The package onnxruntime.
    """

    def __init__(self, path: Path, runtime: Any) -> None:
        super().__init__()
        self.path, self.runtime = path, runtime
        self.sessions: dict[str, Any] = {}
        session = self._session("cpu")
        inputs = session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in _TYPES:
            described = "; ".join(f"`{node.name}` {node.type} {node.shape}" for node in inputs)
            raise UsageError(
                f"`{path}` does not accept images.",
                f"Its inputs: {described}. Expected one of floats with the shape "
                "(images, channels, height, width).",
                "Export the network with normalised images as input.",
            )
        self.name, shape = inputs[0].name, list(inputs[0].shape)
        self.value_type = _TYPES[inputs[0].type]
        self.last = shape[3] in (1, 3) and shape[1] not in (1, 3)  # channels last
        sides = shape[1:3] if self.last else shape[2:]
        self.channels = _fixed(shape[3 if self.last else 1])
        self.batch, self.sides = _fixed(shape[0]), tuple(map(_fixed, sides))
        self.outputs = [node.name for node in session.get_outputs()]

    def forward(self, images: Tensor) -> Tensor:
        """The first output, on the device of the images.

        Raises:
            UsageError: The requested precision is not that of the graph.
        """
        if torch.is_autocast_enabled(images.device.type):
            raise UsageError(
                f"`{self.path}` uses the precision of its export.",
                "`--precision` has no effect on an ONNX file.",
                "Omit `--precision`, or export the file with the other precision.",
            )
        values = images.permute(0, 2, 3, 1) if self.last else images
        array = np.ascontiguousarray(values.cpu().numpy().astype(self.value_type, copy=False))
        (answer,) = self._session(images.device.type).run(self.outputs[:1], {self.name: array})
        if answer.ndim == 4 and self.last:
            answer = np.moveaxis(answer, 3, 1)
        return torch.from_numpy(np.ascontiguousarray(answer)).float().to(images.device)

    def _session(self, device: str) -> Any:
        """The session for a device type; uses the GPU if onnxruntime supports it."""
        available = self.runtime.get_available_providers()
        gpu = ["CUDAExecutionProvider"] if device == "cuda" else []
        providers = [
            *(provider for provider in gpu if provider in available),
            "CPUExecutionProvider",
        ]
        if providers[0] not in self.sessions:
            options = self.runtime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            options.log_severity_level = 3  # errors only: warnings concern the exporter
            self.sessions[providers[0]] = self.runtime.InferenceSession(
                str(self.path), options, providers=providers
            )
        return self.sessions[providers[0]]


def _fixed(length: object) -> int | None:
    """A fixed length of the graph; None for a dynamic length."""
    return length if isinstance(length, int) and length > 0 else None


def onnx(request: ModelRequest) -> ForeignNetwork:
    """The network in an ONNX file; batch and input size can be fixed.

    Raises:
        MachineError: onnxruntime is not installed.
        UsageError: The file does not exist, is damaged, or does not take square images.
    """
    path = _checked(request)
    try:
        import onnxruntime
    except ImportError as error:
        raise MachineError(
            f"`{path}` needs onnxruntime.", "It is not installed.",
            "Install it: `pip install 'robustcli[onnx]'`.",
        ) from error  # fmt: skip
    try:
        network = OnnxNetwork(path, onnxruntime)
    except UsageError:
        raise
    except Exception as error:  # onnxruntime raises many classes
        raise _unreadable(path, error) from error
    height, width = network.sides
    if height != width:
        raise UsageError(
            f"`{path}` only accepts images of {height} x {width} pixels.",
            "Images are cut to squares here.",
            "Export it for square images, or with variable height and width.",
        )
    notes = []
    if network.batch is not None:
        notes.append(
            f"`{path.name}` needs batches of {network.batch} images: smaller batches are padded."
        )
    if len(network.outputs) > 1:
        shown = ", ".join(f"`{name}`" for name in network.outputs[1:])
        notes.append(
            f"`{path.name}` has several outputs: `{network.outputs[0]}` is used, not {shown}."
        )
    foreign = ForeignNetwork(
        network.eval(),
        family="onnx",
        origin=str(path),
        digest=_digest(path),
        pretraining=_UNKNOWN,
        side=height,
        channels=network.channels,
        batch=network.batch,
        parameters=_parameters(path),
        notes=tuple(notes),
        users_code=False,
    )
    return described(foreign, read_sidecar(path))


def _digest(path: Path) -> str:
    """SHA-256 of the file and of its external weights, if any.

    Exporters name external files `net.onnx.data` or `net.onnx_data`.
    """
    data_files = sorted(
        p for p in path.parent.glob(f"{path.name}?*") if p.is_file() and p != sidecar_path(path)
    )
    if not data_files:
        return file_sha256(path)
    parts = [file_sha256(file) for file in (path, *data_files)]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def _parameters(path: Path) -> int:
    """Number of elements of the graph's initialisers; 0 if the package onnx is not installed."""
    try:
        import onnx as library
    except ImportError:
        return 0
    graph = library.load(str(path), load_external_data=False).graph
    return sum(_count(tensor.dims) for tensor in graph.initializer)


def _count(lengths: Sequence[int]) -> int:
    return int(np.prod(lengths, dtype=np.int64)) if lengths else 1

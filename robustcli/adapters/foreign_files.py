"""Networks of users: in memory, built by imported code, or in TorchScript and ONNX files.

TorchScript and ONNX files contain their computation. TorchScript runs in torch's interpreter, ONNX
in onnxruntime. Neither unpickles Python objects or runs Python code from the file.
"""

from __future__ import annotations

import hashlib
import math
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustcli.adapters import timm_library
from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.checkpoint import check_nesting, is_torchscript, read_weights
from robustcli.adapters.exported import Sidecar, read_sidecar, sidecar_path
from robustcli.adapters.fetching import state_digest
from robustcli.adapters.preprocessing import Preprocessing
from robustcli.adapters.strict_loading import choose, load_strictly, shapes_of
from robustcli.adapters.training_run import refuse_run_after_colon
from robustcli.core.errors import MachineError, RobustError, UsageError, first_line
from robustcli.data.download import file_sha256
from robustcli.data.labels import LabelSpace

_UNKNOWN = "unknown (weights from a file)"
_TYPES: dict[str, Any] = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64
}  # fmt: skip
_SHOWN = 5  # names in a message
_GPU = "CUDAExecutionProvider"
_NO_GPU = (
    "onnxruntime cannot use the GPU, so `{}` runs on the CPU: install `onnxruntime-gpu` instead of "
    "`onnxruntime`, in a version for the installed CUDA and cuDNN."
)


@dataclass(frozen=True)
class ForeignNetwork:
    """A network as read, before its first forward pass.

    Args:
        network: Float32 network on the CPU in eval mode, for normalised images (B, C, H, W).
        family: Family of networks, for the record.
        origin: Origin of its weights, for the record.
        digest: SHA-256 of its file, or of its weights in memory.
        pretraining: Data of its pretraining, in words.
        preprocessing: Preprocessing defined by the network; None without one.
        preprocessing_source: Where the preprocessing is defined, in words.
        classes: Names of its outputs in order, if defined.
        side: The only supported input size in pixels, if fixed.
        channels: The only supported number of channels, if fixed.
        batch: The only supported batch size, if fixed.
        parameters: Number of parameters, if they are not torch parameters.
        space: Classes named by the user, if the network was built for them.
        notes: Announcements.
        arguments: Builder arguments of the user.
        code_sha256: SHA-256 of the Python file that builds it.
        users_code: Whether it is code of the user, whose errors are reported with file and line.
        sidecar: The sidecar of `robust export`, which overrides all fields above.
    """

    network: nn.Module
    family: str
    origin: str
    digest: str
    pretraining: str
    preprocessing: Preprocessing | None = None
    preprocessing_source: str = ""
    classes: tuple[str, ...] | None = None
    side: int | None = None
    channels: int | None = None
    batch: int | None = None
    parameters: int | None = None
    space: LabelSpace | None = None
    notes: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    code_sha256: str | None = None
    users_code: bool = True
    sidecar: Sidecar | None = None


# Networks in memory, or built by imported code.


def users_network(request: ModelRequest) -> ForeignNetwork:
    """The network in memory, or the one that the named code builds.

    Raises:
        UsageError: The code cannot be imported or fails, or is not a network or a function that
            returns one.
    """
    source = request.module if request.module is not None else _imported(request.name)
    arguments = dict(request.arguments)
    if isinstance(source, nn.Module):
        if arguments:
            raise UsageError(
                f"`{request.name}` does not support `--model-arg`.",
                "It is a network, not a function that builds one.",
                "Omit it, or pass the name of the function or the class.",
            )
        network: object = source
    elif callable(source):
        network = _built(request.name, source, arguments)
    else:
        network = source
    if not isinstance(network, nn.Module):
        verb = "returns" if network is not source else "is"
        raise UsageError(
            f"`{request.name}` {verb} a {type(network).__name__}, not a network.",
            "Expected a torch.nn.Module, a class of one, or a function that returns one.",
            "Name such an object after the colon.",
        )
    if any(p.is_meta for p in network.parameters()):
        raise UsageError(
            f"`{request.name}` has parameters on torch's `meta` device.", "They hold no values.",
            "Load its weights first.",
        )  # fmt: skip
    network = network.float().eval()
    origin = "in memory" if request.module is not None else f"made by `{request.name}`"
    if request.weights is not None:
        if source is request.module and isinstance(source, nn.Module):
            raise UsageError(
                "`weights` cannot be used with a network in memory.", "It holds its own weights.",
                "Load them into it with `load_state_dict`, or pass the function that builds it.",
            )  # fmt: skip
        origin = str(request.weights)
        choice = choose(read_weights(request.weights), shapes_of(network.state_dict()))
        load_strictly(network, choice.state, model=request.name, origin=origin, advice=None)
        choice.announce(origin)
    code = None if request.module is not None else code_file(request.name)
    config = getattr(network, "pretrained_cfg", None)
    preprocessing = _timm_preprocessing(network) if config else None
    return ForeignNetwork(
        network,
        family=type(network).__name__.lower(),
        origin=origin,
        digest=state_digest(network.state_dict()),
        pretraining="none (untrained)" if request.untrained else "unknown (the user's own network)",
        preprocessing=preprocessing,
        preprocessing_source="its timm configuration",
        arguments=arguments,
        code_sha256=None if code is None else file_sha256(code),
    )


def code_file(name: str) -> Path | None:
    """The Python file of `module:attribute` or `FILE.py:attribute`; imports nothing.

    None if there is no such file, for example for modules that are compiled into Python.
    """
    module_name = name.rpartition(":")[0]
    if module_name.endswith(".py"):
        path = Path(module_name).expanduser().resolve()
        return path if path.is_file() else None
    folders: Sequence[str] | None = [str(Path.cwd()), *sys.path]
    spec, parts = None, module_name.split(".")
    for number in range(len(parts)):
        spec = PathFinder.find_spec(".".join(parts[: number + 1]), folders)
        folders = None if spec is None else spec.submodule_search_locations
        if folders is None:
            break
    complete = spec is not None and spec.name == module_name and spec.has_location
    return Path(spec.origin) if complete and spec is not None and spec.origin else None


@contextmanager
def borrowed(modules: Iterable[object]) -> Iterator[None]:
    """Restores mode, device, type and values of the networks among `modules` at the end."""
    saved = [
        (
            [(module, module.training) for module in network.modules()],
            [(parameter, parameter.data) for parameter in network.parameters()],
            [(module, dict(module._buffers)) for module in network.modules()],
        )
        for network in modules
        if isinstance(network, nn.Module)
    ]
    try:
        yield
    finally:
        for modes, parameters, buffers in saved:
            for parameter, data in parameters:
                parameter.data = data
            for module, values in buffers:
                module._buffers.update(values)
            for module, training in modes:
                module.training = training


def _timm_preprocessing(network: nn.Module) -> Preprocessing | None:
    try:
        return timm_library.timm_preprocessing(network)
    except (UsageError, KeyError, TypeError, AttributeError):
        return None  # the attribute has another meaning


def _imported(name: str) -> Any:
    """Imports the object `module:attribute`; searches the working folder first."""
    module_name, _, attribute = name.rpartition(":")
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        module = _module(module_name)
    except ModuleNotFoundError as error:
        refuse_run_after_colon(name)
        if error.name is None or not (module_name + ".").startswith(f"{error.name}."):
            raise foreign_code_error(f"`{name}` cannot be imported.", error) from error
        raise UsageError(
            f"The module `{error.name}` of `--model {name}` does not exist.",
            f"It was searched in `{folder}` and in the installed packages.",
            "Run the command in the folder that contains the package, or pass the file: `--model "
            "FILE.py:build`.",
        ) from error
    except RobustError:
        raise
    except Exception as error:
        raise foreign_code_error(f"`{name}` cannot be imported.", error) from error
    except SystemExit as error:
        raise foreign_code_error(
            f"`{name}` ends the program when it is imported.", error
        ) from error
    finally:
        sys.path.remove(folder)
        if folder not in sys.path:  # last, for later imports of the module
            sys.path.append(folder)
    home = module.__name__
    for part in attribute.split("."):
        if not hasattr(module, part):
            refuse_run_after_colon(name)
            public = [
                key
                for key, value in vars(module).items()
                if isinstance(value, nn.Module) or getattr(value, "__module__", "") == home
            ]
            raise UsageError(
                f"`{module_name}` has no `{attribute}`.",
                f"It has {', '.join(f'`{key}`' for key in public[:_SHOWN])}." if public else "",
                "Specify the function, the class or the network after the colon.",
            )
        module = getattr(module, part)
    return module


def _module(name: str) -> Any:
    if not name.endswith(".py"):
        return import_module(name)
    path = Path(name).expanduser()
    if not path.is_file():
        raise UsageError(f"The file `{path}` does not exist.", "", "Check the path.")
    spec = spec_from_file_location(f"robust_users_{path.stem}", path.resolve())
    assert spec is not None, "the name ends in .py"
    assert spec.loader is not None, "the name ends in .py"
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # needed by dataclasses and pickle
    spec.loader.exec_module(module)
    return module


def _built(name: str, build: Any, arguments: Mapping[str, Any]) -> object:
    """The result of `build` with a fixed random seed; restores the state of the generators."""
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build(**arguments)
    except RobustError:
        raise
    except (Exception, SystemExit) as error:
        call_arguments = ", ".join(f"{key}={value}" for key, value in arguments.items())
        raise foreign_code_error(
            f"`{name}` failed, called with ({call_arguments}).", error
        ) from error


_LIBRARIES = tuple(
    str(Path(folder).resolve())
    for folder in {
        *(sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")),
        str(Path(torch.__file__).parents[1]), str(Path(__file__).parents[1]),
    }
)  # fmt: skip


def foreign_code_error(problem: str, error: BaseException) -> UsageError:
    """The error for an exception in a user's code, with file and line."""
    if isinstance(error, SyntaxError) and error.filename:
        position = f"{error.filename}:{error.lineno}"
    else:
        frames = traceback.extract_tb(error.__traceback__)
        user_frames = [f for f in frames if not f.filename.startswith((*_LIBRARIES, "<"))]
        last = (user_frames or list(frames))[-1]
        line = f" (`{last.line}`)" if last.line else ""
        position = f"{last.filename}:{last.lineno}{line}"
    reason = f"{type(error).__name__}: {first_line(error)}".rstrip(".")
    return UsageError(
        problem, f"{reason}, at {position}.", "Correct that line, and repeat the command."
    )


# TorchScript.


_UNSUPPORTED_TORCHSCRIPT = (
    "torch does not support TorchScript with Python 3.14 or newer; check the clean scores, or "
    "export the network to ONNX."
)


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
    check_nesting(path, "an ONNX file")
    try:
        with warnings.catch_warnings():
            # torch recommends torch.export for new files, but still reads TorchScript
            warnings.filterwarnings("ignore", message=".*torch.jit.load.*(deprecated|supported)")
            network: nn.Module = torch.jit.load(str(path), map_location="cpu")
    except Exception as error:  # damaged archives raise any exception in torch's reader
        raise _unreadable(path, error) from error
    foreign = ForeignNetwork(
        network.float().eval(),
        family="torchscript",
        origin=str(path),
        digest=file_sha256(path),
        pretraining=_UNKNOWN,
        notes=(
            f"`{path}` is a program: torch's TorchScript interpreter runs it, not Python.",
            *((_UNSUPPORTED_TORCHSCRIPT,) if sys.version_info >= (3, 14) else ()),
        ),
    )
    return _described(foreign, read_sidecar(path))


def _described(foreign: ForeignNetwork, sidecar: Sidecar | None) -> ForeignNetwork:
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
        session = self._session(torch.device("cpu"))
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
        array = np.ascontiguousarray(
            values.detach().cpu().numpy().astype(self.value_type, copy=False)
        )
        (answer,) = self._session(images.device).run(self.outputs[:1], {self.name: array})
        if answer.ndim == 4 and self.last:
            answer = np.moveaxis(answer, 3, 1)
        return torch.from_numpy(np.ascontiguousarray(answer)).float().to(images.device)

    def _session(self, device: torch.device) -> Any:
        """The session for a device; warns if onnxruntime cannot use that GPU."""
        place = str(device) if device.type == "cuda" else "cpu"
        if place not in self.sessions:
            options = self.runtime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            options.log_severity_level = 3  # errors only: warnings concern the exporter
            on_gpu = device.type == "cuda" and _GPU in self.runtime.get_available_providers()
            gpu = [(_GPU, {"device_id": device.index or 0, "use_tf32": 0})] if on_gpu else []
            session = self.runtime.InferenceSession(
                str(self.path), options, providers=[*gpu, "CPUExecutionProvider"]
            )
            # A provider that cannot be started, for example without its cuDNN, is left out.
            if device.type == "cuda" and _GPU not in session.get_providers():
                warnings.warn(_NO_GPU.format(self.path), RuntimeWarning, stacklevel=2)
            self.sessions[place] = session
        return self.sessions[place]


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
    runtime = optional_library("onnxruntime", str(path), extra="onnx")
    try:
        network = OnnxNetwork(path, runtime)
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
    return _described(foreign, read_sidecar(path))


def optional_library(name: str, needed_by: str, *, extra: str) -> Any:
    """Imports the library `name`, which the extra `extra` of this package installs.

    Raises:
        MachineError: It is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise MachineError(
            f"`{needed_by}` needs {name}.", "It is not installed.",
            f"Install it: `pip install 'robustcli[{extra}]'`.",
        ) from error  # fmt: skip


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
    return sum(math.prod(tensor.dims) for tensor in graph.initializer)

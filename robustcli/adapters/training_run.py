"""The folder of a training run as a model: its weights, and what their header says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from robustcli.adapters.checkpoint import read_weights
from robustcli.adapters.entry import ModelEntry
from robustcli.adapters.weights_header import Header, read_header
from robustcli.core.errors import UsageError
from robustcli.core.names import canonical

WEIGHTS = "weights.safetensors"
_RECORD, _CHECKPOINTS = "run.json", "checkpoints"
_SUFFIXES, _SHOWN = (".safetensors", ".pth", ".pt", ".ckpt", ".bin"), 5


@dataclass(frozen=True)
class Trained:
    """Weights with their file and, where they have one, their header."""

    path: Path
    state: dict[str, Tensor]
    header: Header | None


def is_run(path: Path) -> bool:
    """Whether `path` is the folder of a run, finished or not."""
    return (path / WEIGHTS).is_file() or (path / _RECORD).is_file()


def weights_in(path: Path) -> Path:
    """The weights file `path`, or the one in the training run `path`.

    Raises:
        UsageError: The folder holds none.
    """
    if not path.is_dir():
        return path
    inside = sorted(file.name for file in path.iterdir() if file.suffix in _SUFFIXES)
    if inside and not is_run(path):
        raise UsageError(
            f"`{path}` is a folder, and no training run of this program.",
            f"It holds {', '.join(f'`{name}`' for name in inside[:_SHOWN])}.",
            f"Name the file: `{path / inside[0]}`.",
        )
    if not (path / WEIGHTS).is_file():
        raise UsageError(
            f"`{path}` is no finished training run.",
            f"It holds no `{WEIGHTS}`.",
            "Repeat the command that trains it: it goes on where it stopped.",
        )
    return path / WEIGHTS


def header_beside(file: Path) -> Header | None:
    """What the weights `file` say of themselves; None where nothing says it.

    A checkpoint of a training here (`RUN/checkpoints/FILE`) has no header of its own: those of the
    finished run's weights say it.

    Raises:
        UsageError: The header is not one that this version writes.
    """
    run = file.parent.parent
    if file.parent.name == _CHECKPOINTS and (run / WEIGHTS).is_file() and is_run(run):
        return read_header(run / WEIGHTS)
    return read_header(file)


def read_trained(path: Path, entry: ModelEntry) -> Trained:
    """The weights in `path`, a file or the folder of a training run, for the model `entry`.

    Raises:
        UsageError: The file is missing or damaged, or says that it is of another model.
    """
    file = weights_in(path)
    header = header_beside(file)
    if header is not None and canonical(header.model) != canonical(entry.network):
        raise UsageError(
            f"`{file}` does not hold the weights of `{entry.network}`.",
            f"Its header says that it is of `{header.model}`.",
            f"Name the model `{header.model}` with these weights.",
        )
    return Trained(file, read_weights(file), header)


def header_of(run: Path) -> Header:
    """What the weights in the training run `run` say of themselves.

    Raises:
        UsageError: There are none, or they say nothing.
    """
    file = weights_in(run)
    header = read_header(file)
    if header is None:
        raise UsageError(
            f"`{file}` does not say which network it is of.",
            "It has no header of this program.",
            f"Name the network as well: `--model NAME --weights {file}`.",
        )
    return header


def entry_of_run(run: Path, network: ModelEntry) -> ModelEntry:
    """The entry of what the training run `run` made of `network`: its name is the folder's."""
    return replace(network, name=run.resolve().name)

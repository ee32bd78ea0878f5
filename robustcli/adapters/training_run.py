"""Training runs as models: the weights in the run folder and their header."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from robustcli.adapters.catalogue import ModelEntry
from robustcli.adapters.checkpoint import is_safetensors, read_weights
from robustcli.core.errors import UsageError
from robustcli.core.io import parse_json, replacing
from robustcli.core.names import canonical
from robustcli.core.rundir import FINETUNE_KIND, SEEDS_KIND, refuse_other_kind
from robustcli.data.labels import BUNDLED_SPACES, LabelSpace, read_label_space
from robustcli.nnunet.files import find_checkpoint, is_results_folder
from robustcli.nnunet.normalisation import NnUNetInference

KEY = "robust"
"""Key in the safetensors metadata, which maps strings to strings."""


class EarlierTraining(BaseModel):
    """A training of the initial weights, as far as it identifies its data.

    Args:
        trained_on: Digest of the training data set; None if the weights do not record it.
        seen: Ids and file hashes (SHA-256) of some training images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    trained_on: str | None = None
    seen: dict[str, str] = {}


class Header(BaseModel):
    """Header of weights that this program trained; common fields of both tasks.

    Args:
        schema_version: Version of the header.
        model: Name of the network.
        arguments: Builder arguments.
        window: Side of the training input in pixels.
        trained_on: Digest of the training data set (`Dataset.digest`).
        images_sha256: SHA-256 over the ids of the training images.
        seen: Ids and file hashes (SHA-256) of some training images, to recognise the data set even
            if another one has equal file names.
        earlier: The trainings of the initial weights, the last one first; empty for random ones.
            Their splits are in `earlier_splits.csv` of the run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    model: str
    arguments: dict[str, Any] = {}
    window: int
    trained_on: str
    images_sha256: str
    seen: dict[str, str] = {}
    earlier: tuple[EarlierTraining, ...] = ()

    @property
    def pretraining(self) -> str:
        """The training data in words."""
        return "trained here"


class WeightsHeader(Header):
    """Header of a segmenter's weights.

    Args:
        channels: Order of the input channels.
        threshold: Probability from which a pixel is foreground.
        protocol: Training protocol.
        overlap: Overlap of neighbouring windows as a share of their side; None for one half.
        nnunet: Settings of nnU-Net's inference, if trained by nnU-Net's procedure.
        mask_classes: Names of the mask classes 1 to K in the order of the outputs after
            background; empty for foreground and background.
    """

    channels: Literal["rgb", "bgr", "grey"]
    threshold: float
    protocol: Literal["patient", "paper"]
    overlap: float | None = None
    nnunet: NnUNetInference | None = None
    mask_classes: tuple[str, ...] = ()

    @property
    def pretraining(self) -> str:
        """The training data in words."""
        return f"trained here (protocol {self.protocol})"


class ClassifierHeader(Header):
    """Header of a classifier's weights.

    Args:
        label_space: Name of a bundled label space, or of the data set.
        classes: Class ids in the order of the outputs.
        class_names: Readable names of the classes.
        preprocessing: Fields of `Preprocessing`.
    """

    label_space: str
    classes: tuple[str, ...]
    class_names: tuple[str, ...]
    preprocessing: dict[str, Any]

    @property
    def answers_in(self) -> LabelSpace:
        """The label space of the training."""
        if (
            self.label_space in BUNDLED_SPACES
            and read_label_space(self.label_space).ids == self.classes
        ):
            return read_label_space(self.label_space)
        return LabelSpace(self.label_space, self.classes, self.class_names)


def write_weights(path: Path, state: Mapping[str, Tensor], header: Header) -> None:
    """Writes `state` with `header` durably to `path`.

    Raises:
        RunError: The file system refused.
    """
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={KEY: header.model_dump_json()})
        except SafetensorError as error:
            raise OSError(str(error)) from error  # safetensors reports a full disk this way


def read_header(path: Path) -> Header | None:
    """The header of the weights file `path`; None without one.

    Raises:
        UsageError: The header is invalid or from a newer version.
    """
    try:
        if not is_safetensors(path):
            return None
        with safe_open(path, framework="pt") as file:
            metadata = (file.metadata() or {}).get(KEY)
    except (SafetensorError, OSError):
        return None  # damaged: reading the weights reports it
    if metadata is None:
        return None
    try:
        content = parse_json(metadata)
        header_type = ClassifierHeader if "classes" in content else WeightsHeader
        return header_type.model_validate(content)
    except (ValidationError, ValueError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        reason = f"{first['msg']} at {'.'.join(map(str, first['loc']))}" if first else str(error)
        raise UsageError(
            f"The header of `{path}` cannot be read.",
            f"The error is: {reason}.",
            "Use the version of this program that wrote it, or train again.",
        ) from error


WEIGHTS = "weights.safetensors"
_RECORD, _CHECKPOINTS = "run.json", "checkpoints"
_SUFFIXES, _SHOWN = (".safetensors", ".pth", ".pt", ".ckpt", ".bin"), 5


@dataclass(frozen=True)
class Trained:
    """Weights with their file and, if present, their header."""

    path: Path
    state: dict[str, Tensor]
    header: Header | None


def is_run(path: Path) -> bool:
    """Whether `path` is a run folder, finished or not."""
    return (path / WEIGHTS).is_file() or (path / _RECORD).is_file()


def refuse_run_after_colon(name: str) -> None:
    """Raises UsageError if `name` is `FOLDER:MEMBER`, and `FOLDER/MEMBER` is a run folder.

    `robust compare` takes members of a run with a colon; models are named by their path.
    """
    folder, _, member = name.rpartition(":")
    path = Path(folder) / member
    if folder and is_run(path):
        raise UsageError(
            f"`{name}` is not the name of a model.",
            f"The folder `{path}` is a training run.",
            f"Pass the folder: `--model {path}`.",
        )


def weights_in(path: Path) -> Path:
    """The weights file `path`, or that in the training run or results folder of nnU-Net `path`.

    Raises:
        UsageError: The folder has no weights, or those of several trainings.
    """
    if not path.is_dir():
        return path
    if is_results_folder(path):
        return find_checkpoint(path)
    if not is_run(path):
        names = sorted(f.name for f in path.iterdir() if f.suffix in _SUFFIXES)
        raise UsageError(
            f"`{path}` is a folder, but not a training run of this program.",
            f"It contains {', '.join(f'`{name}`' for name in names[:_SHOWN]) or 'no weights'}.",
            f"Pass the file: `{path / names[0]}`."
            if names
            else "Pass the folder of a training, a results folder of nnU-Net, or a weights file.",
        )
    if not (path / WEIGHTS).is_file():
        for kind, each in ((SEEDS_KIND, "seed"), (FINETUNE_KIND, "mode")):
            if trainings := _trainings_in(path, kind):
                count = f"{len(trainings)} training{'s' * (len(trainings) != 1)}"
                raise UsageError(
                    f"`{path}` contains {count}, one for each {each}.",
                    "A single training is needed here.",
                    f"Pass its folder, such as `{path / trainings[0]}`.",
                )
    if not (path / WEIGHTS).is_file():
        refuse_other_kind(path, "train", "a training")
        raise UsageError(
            f"`{path}` is not a finished training run.",
            f"It contains no `{WEIGHTS}`.",
            "Repeat the training command, which continues the training.",
        )
    return path / WEIGHTS


def _trainings_in(run: Path, kind: str) -> list[str]:
    """The folders of the finished trainings in `run`; empty if it is not of this `kind`."""
    try:
        record = parse_json((run / _RECORD).read_text(encoding="utf-8"))
        if record.get("kind") != kind:
            return []
    except (OSError, ValueError, AttributeError):
        return []
    trained = [path for path in run.rglob(WEIGHTS) if "sweep" not in path.relative_to(run).parts]
    return sorted(path.parent.relative_to(run).as_posix() for path in trained)


def header_beside(file: Path) -> Header | None:
    """The header of the weights `file`; None without one.

    For a checkpoint (`RUN/checkpoints/FILE`), the header of the weights of its finished run.

    Raises:
        UsageError: The header is invalid or from a newer version.
    """
    run = file.parent.parent
    if file.parent.name == _CHECKPOINTS and (run / WEIGHTS).is_file() and is_run(run):
        return read_header(run / WEIGHTS)
    return read_header(file)


def read_trained(path: Path, entry: ModelEntry) -> Trained:
    """Reads the weights in `path`, a file or the folder of a training run, for `entry`.

    Raises:
        UsageError: The file is missing, damaged, or of another model by its header.
    """
    file = weights_in(path)
    header = header_beside(file)
    if header is not None and canonical(header.model) != canonical(entry.network):
        raise UsageError(
            f"`{file}` does not contain the weights of `{entry.network}`.",
            f"According to its header it contains weights of `{header.model}`.",
            f"Use these weights with the model `{header.model}`.",
        )
    return Trained(file, read_weights(file), header)


def header_of(run: Path) -> Header:
    """The header of the weights in the training run `run`.

    Raises:
        UsageError: There are no weights, or they have no header.
    """
    file = weights_in(run)
    header = read_header(file)
    if header is None:
        raise UsageError(
            f"`{file}` does not contain the name of its network.",
            "It has no header of this program.",
            f"Pass the network as well: `--model NAME --weights {file}`.",
        )
    return header

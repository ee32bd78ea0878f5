"""The JSON description beside an exported ONNX or TorchScript file.

`NET.onnx.json` holds preprocessing, classes, threshold and origin of `NET.onnx`. `robust export`
writes it; `robust eval --model NET.onnx` reads it, so that nothing has to be typed again.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from robustcli.adapters.preprocessing import Preprocessing
from robustcli.adapters.segmenter import MaskPreprocessing
from robustcli.adapters.training_run import ClassifierHeader, Header, WeightsHeader
from robustcli.core.errors import UsageError, first_line
from robustcli.core.io import parse_json, write_text
from robustcli.core.names import TaskName
from robustcli.data.download import file_sha256
from robustcli.data.labels import LabelSpace
from robustcli.data.mask_classes import ClassTable

ExportFormat = Literal["onnx", "torchscript"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ExportedModel(_Part):
    """The exported network, as records of evaluations describe it."""

    name: str
    family: str
    builder: str
    arguments: dict[str, Any]
    parameters: int
    weights: str
    weights_sha256: str
    pretraining: str
    untrained: bool
    label_space: str
    source: str


class ExportedInput(_Part):
    """The input of the file: float32, (images, channels, height, width).

    Args:
        name: Of the graph's input.
        shape: A name for a length that is free.
        channels: Order of the channels; `grey` is the luma of ITU-R BT.601.
        scale: What pixels of 0 to 255 are multiplied by before anything else.
        mean: Subtracted from scaled values, per channel.
        std: Their divisor after that, per channel.
        preprocessing: All of it, in the fields of `Preprocessing`, or for a segmenter of
            `MaskPreprocessing`.
    """

    name: str
    shape: tuple[int | str, ...]
    channels: Literal["rgb", "bgr", "grey"]
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    preprocessing: dict[str, Any]


class ExportedOutput(_Part):
    """The output of the file: (images, classes) or (images, classes, height, width).

    Args:
        name: Of the graph's output.
        scores: `logits` (softmax, or of one class sigmoid, makes probabilities) or `probabilities`.
        classes: Ids, in the order of the outputs.
        class_names: A readable name of each.
        threshold: A segmenter's: the probability from which a pixel is foreground; None where it
            tells classes apart, of which a pixel gets the most probable.
    """

    name: str
    scores: Literal["logits", "probabilities"]
    classes: tuple[str, ...]
    class_names: tuple[str, ...]
    threshold: float | None = None


class ParityRow(_Part):
    """How far the file's answers are from torch's on some inputs.

    Args:
        inputs: Which.
        images: How many.
        difference: The largest, of any output.
        allowed: The largest that would have been let through.
        largest: The largest magnitude of torch's answers.
        decided: Images or pixels of which a decision was compared.
        agreeing: Of these, decided alike.
    """

    inputs: str
    images: int
    difference: float
    allowed: float
    largest: float
    decided: int
    agreeing: int


class SpeedRow(_Part):
    """Median time of a forward pass; all rows of a table were measured in turn.

    Args:
        engine: What computed.
        batch: Images of a pass.
        milliseconds: The median.
        passes: How many were timed.
    """

    engine: str
    batch: int
    milliseconds: float
    passes: int


class Sidecar(_Part):
    """The description of one exported file.

    Args:
        training: The header of the weights, where they were trained here.
        splits: The part of each image of that training, by id.
        mask_values: `--foreground`, `--ignore` and the classes of that training.
        threads: Of torch and of onnxruntime, for `speed`.
    """

    schema_version: Literal[1] = 1
    written_by: Literal["robust export"] = "robust export"
    file: str
    sha256: str
    format: ExportFormat
    opset: int | None = None
    task: TaskName
    model: ExportedModel
    input: ExportedInput
    output: ExportedOutput
    training: dict[str, Any] | None = None
    splits: dict[str, str] = {}
    mask_values: tuple[str | None, str | None, ClassTable | None] | None = None
    parity: tuple[ParityRow, ...]
    speed: tuple[SpeedRow, ...]
    threads: int
    versions: dict[str, str]
    command: str
    created: datetime

    @property
    def preprocessing(self) -> Preprocessing | MaskPreprocessing:
        """How images become the input."""
        kind: type[Any] = Preprocessing if self.task == "cls" else MaskPreprocessing
        read: Preprocessing | MaskPreprocessing = TypeAdapter(kind).validate_python(
            self.input.preprocessing
        )
        return read

    @property
    def space(self) -> LabelSpace:
        """The classes of a classifier's outputs."""
        return LabelSpace(self.model.label_space, self.output.classes, self.output.class_names)

    @property
    def header(self) -> Header | None:
        """The training header of the weights; None if they were not trained by this program."""
        if self.training is None:
            return None
        kind = ClassifierHeader if self.task == "cls" else WeightsHeader
        return kind.model_validate(self.training)


def sidecar_path(file: Path) -> Path:
    """The path of the description of `file`."""
    return file.with_name(f"{file.name}.json")


def write_sidecar(file: Path, sidecar: Sidecar) -> None:
    """Writes the description of `file`, durably."""
    write_text(sidecar_path(file), sidecar.model_dump_json(indent=1) + "\n")


def read_sidecar(file: Path) -> Sidecar | None:
    """The description of `file`; None if this program wrote none.

    Raises:
        UsageError: It is damaged, of a newer version, or of another file.
    """
    path = sidecar_path(file)
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return None  # none, or of another program
    if not isinstance(content, dict) or content.get("written_by") != "robust export":
        return None
    try:
        sidecar = Sidecar.model_validate(content)
        _ = sidecar.preprocessing, sidecar.header
    except (ValidationError, UsageError) as error:
        raise UsageError(
            f"`{path}` cannot be read.",
            f"It describes `{file.name}`, but: {first_line(error)}.",
            "Export the network again, or remove that file and say with options what it said.",
        ) from error
    if sidecar.sha256 != file_sha256(file):
        raise UsageError(
            f"`{path}` describes another file than `{file.name}`.",
            "The SHA-256 in it is not that of the file, so its preprocessing may be wrong for it.",
            "Export the network again, or remove the description and say with options what it "
            "said (`--mean`, `--label-space`, ...).",
        )
    return sidecar

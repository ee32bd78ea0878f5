"""The sidecar of an exported network: metadata that ONNX and TorchScript files lack.

`NET.onnx.json` contains preprocessing, classes, threshold and origin of `NET.onnx`. `robust export`
writes it, and `robust eval --model NET.onnx` reads it.
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
    """The exported network, with the fields of evaluation records."""

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
    """Input of the exported network: float32 (images, channels, height, width).

    Args:
        name: Name of the graph's input.
        shape: Lengths; dynamic lengths have a name.
        channels: Order of the channels; `grey` is the luma of ITU-R BT.601.
        scale: Factor for pixel values in 0 to 255.
        mean: Subtracted from the scaled values, per channel.
        std: Divisor after the subtraction, per channel.
        preprocessing: All fields of `Preprocessing` or, for a segmenter, `MaskPreprocessing`.
    """

    name: str
    shape: tuple[int | str, ...]
    channels: Literal["rgb", "bgr", "grey"]
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    preprocessing: dict[str, Any]


class ExportedOutput(_Part):
    """Output of the exported network: (images, classes) or (images, classes, height, width).

    Args:
        name: Name of the graph's output.
        scores: `logits` (for softmax; sigmoid for one class) or `probabilities`.
        classes: Class ids in the order of the outputs.
        class_names: Readable names of the classes.
        threshold: Probability from which a pixel is foreground, for segmenters; None for several
            classes, of which the most probable is predicted.
    """

    name: str
    scores: Literal["logits", "probabilities"]
    classes: tuple[str, ...]
    class_names: tuple[str, ...]
    threshold: float | None = None


class ParityRow(_Part):
    """Difference between the outputs of the file and of torch on some inputs.

    Args:
        inputs: Description of the inputs.
        images: Number of images.
        difference: Largest absolute difference of the outputs.
        allowed: Largest allowed difference.
        largest: Largest magnitude of torch's outputs.
        decided: Number of images or pixels whose prediction was compared.
        agreeing: Number of equal predictions among them.
    """

    inputs: str
    images: int
    difference: float
    allowed: float
    largest: float
    decided: int
    agreeing: int


class SpeedRow(_Part):
    """Median time of a forward pass; the rows of a table are measured alternately.

    Args:
        engine: The software that ran the network.
        batch: Batch size.
        milliseconds: Median time.
        passes: Number of timed passes.
    """

    engine: str
    batch: int
    milliseconds: float
    passes: int


class Sidecar(_Part):
    """The content of a sidecar.

    Args:
        training: Header of the weights, if they were trained by this program.
        splits: Split of each image of that training, by id.
        earlier_splits: The same for each training of its initial weights, the last one first.
        mask_values: `--foreground`, `--ignore` and classes of that training.
        threads: Number of threads of torch and onnxruntime for `speed`.
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
    earlier_splits: tuple[dict[str, str], ...] = ()
    mask_values: tuple[str | None, str | None, ClassTable | None] | None = None
    parity: tuple[ParityRow, ...]
    speed: tuple[SpeedRow, ...]
    threads: int
    versions: dict[str, str]
    command: str
    created: datetime

    @property
    def preprocessing(self) -> Preprocessing | MaskPreprocessing:
        """Preprocessing of the input."""
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
        """Header of the weights; None if they were not trained by this program."""
        if self.training is None:
            return None
        kind = ClassifierHeader if self.task == "cls" else WeightsHeader
        return kind.model_validate(self.training)


def sidecar_path(file: Path) -> Path:
    """Path of the sidecar of `file`."""
    return file.with_name(f"{file.name}.json")


def write_sidecar(file: Path, sidecar: Sidecar) -> None:
    """Writes the sidecar of `file` durably."""
    write_text(sidecar_path(file), sidecar.model_dump_json(indent=1) + "\n")


def read_sidecar(file: Path) -> Sidecar | None:
    """The sidecar of `file`; None if there is none from this program.

    Raises:
        UsageError: The sidecar is damaged, from a newer version, or of another file.
    """
    path = sidecar_path(file)
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return None  # missing, or from another program
    if not isinstance(content, dict) or content.get("written_by") != "robust export":
        return None
    try:
        sidecar = Sidecar.model_validate(content)
        _ = sidecar.preprocessing, sidecar.header
    except (ValidationError, UsageError) as error:
        raise UsageError(
            f"`{path}` cannot be read.",
            f"It describes `{file.name}`, but: {first_line(error)}.",
            "Export the network again, or remove that file and pass its settings as options.",
        ) from error
    if sidecar.sha256 != file_sha256(file):
        raise UsageError(
            f"`{path}` describes another file than `{file.name}`.",
            "The SHA-256 in it differs from that of the file, so that its preprocessing may be "
            "wrong.",
            "Export the network again, or remove the description and pass its settings as options "
            "(`--mean`, `--label-space`, ...).",
        )
    return sidecar

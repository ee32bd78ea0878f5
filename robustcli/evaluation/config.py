"""Settings of `robust eval` as given by the user, before names are resolved."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Literal

from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.model import Precision
from robustcli.core.arguments import NotNegative, Positive, Share
from robustcli.core.names import file_name
from robustcli.data.mask_classes import classes_settings
from robustcli.data.mask_values import mask_settings
from robustcli.tasks.base import TaskConfig

EngineName = Literal["ray", "slurm"]
BLOCK_SIZE = 128  # images per row file: fewer lose less work at a crash, more need fewer fsyncs


@dataclass(frozen=True)
class EvalConfig(TaskConfig):
    """All settings of an evaluation; `robust eval --help` describes them."""

    out: Path | None = None
    _: KW_ONLY
    severities: tuple[int, ...] | None = None
    plugins: tuple[Path, ...] = ()
    published: tuple[Path, ...] = ()
    precision: Precision = "fp32"
    device: str = "auto"
    devices: Positive | Literal["all"] | None = None
    engine: EngineName | None = None
    slurm: Mapping[str, str] = field(default_factory=dict)
    address: str | None = None
    batch_size: Positive | None = None
    workers: NotNegative | None = None
    allow_unreadable: Share = 0.01
    fresh: bool = False
    fail_under: tuple[str, ...] = ()
    fail_drop: tuple[str, ...] = ()
    command: str = "robustcli.evaluate(...)"

    @property
    def inputs(self) -> Iterator[tuple[str, str | Path | None]]:
        """Options that name files, with their values."""
        for request in self.models:
            yield "--model", request.name
            yield "--weights", request.weights
        yield "--data", self.data
        yield "--labels", self.labels
        yield "--label-space", self.label_space
        yield from (("--plugin", path) for path in self.plugins)

    def most_unreadable(self, images: int) -> int:
        """The largest number of unreadable images, of `images`, with which a run continues."""
        return int(round(self.allow_unreadable * images, 6))  # 0.29 * 100 is 28.999999999999996

    def directory(self, digest: str) -> Path:
        """The run's folder: `out`, or one named after the first model and a hash of the settings.

        `digest` is the hash of the image list. The hash contains settings that change existing
        rows, but not models and transforms, so that an added model or transform continues the run.
        """
        if self.out is not None:
            return self.out
        changes = [change for change in map(_changes, self.models) if change is not None]
        masks = mask_settings(self.foreground, self.ignore) + classes_settings(self.mask_classes)
        masks += [] if self.answers == "auto" else [self.answers]
        settings = [digest, self.seed, self.apply_at, self.precision, *changes, *masks]
        short = hashlib.sha256(json.dumps(settings, default=str).encode()).hexdigest()[:8]
        first = file_name(self.models[0].name)
        return Path("runs") / f"eval-{first}-{short}"


def _changes(request: ModelRequest) -> object:
    options: list[object] = [request.weights, dict(request.arguments)]
    options += [dict(request.preprocessing), request.untrained]
    options += [] if request.classes is None else [request.classes]
    return [request.name, *options] if any(options) else None

"""Fine-tuning of classifiers: the weights that `robust eval` takes, for the classes of new data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from robustcli.adapters import timm_library
from robustcli.adapters.body import fill_body
from robustcli.adapters.checkpoint import read_weights
from robustcli.adapters.entry import ModelEntry
from robustcli.adapters.load import resolve
from robustcli.adapters.loading import heads_in
from robustcli.adapters.training_run import read_trained
from robustcli.adapters.weights import official_weights
from robustcli.core.errors import UsageError
from robustcli.finetuning.config import FinetuneConfig
from robustcli.finetuning.kind import Kind
from robustcli.finetuning.pretrained import Pretrained
from robustcli.finetuning.rules import SHARES, FreezeRule
from robustcli.training.classification.task import no_data


class Classifiers(Kind):
    """Which class an image shows; a sweep also trains the last layer alone."""

    rules: ClassVar[Sequence[FreezeRule]] = (*SHARES, FreezeRule(pattern="*"))

    def with_defaults(self, config: FinetuneConfig, say: Callable[[str], None]) -> FinetuneConfig:
        """See `Kind.with_defaults`: there is no target to take."""
        if config.training.data is None:
            raise no_data(resolve(config.training.model))
        return config

    def pretrained(self, config: FinetuneConfig, entry: ModelEntry) -> Pretrained | None:
        """See `Kind.pretrained`: a file or run, else the weights that `robust eval` takes."""
        if config.pretrained is not None:
            return _named(config.pretrained, entry, config.training.model_args)
        if config.modes == ("scratch",) and entry.asset is None:
            return None
        return _published(config, entry)

    def heads(self, entry: ModelEntry, network: Callable[[], nn.Module]) -> tuple[str, ...]:
        """See `Kind.heads`: what timm's contract calls the classifier."""
        return heads_in(network())

    def fill(
        self, network: nn.Module, given: Pretrained, entry: ModelEntry, heads: tuple[str, ...]
    ) -> None:
        """See `Kind.fill`."""
        fill_body(network, given.state, entry, heads, given.origin)


def _named(path: Path, entry: ModelEntry, arguments: Mapping[str, Any]) -> Pretrained:
    if not path.exists():
        raise UsageError(
            f"`--pretrained {path}` does not exist.",
            "Expected a file of weights, or a training run.",
            "Check the path; `--mode scratch` needs no weights.",
        )
    trained = read_trained(path, entry)
    said = trained.header.arguments if trained.header else {}
    return Pretrained(str(trained.path), {**said, **arguments}, trained.state)


def _published(config: FinetuneConfig, entry: ModelEntry) -> Pretrained:
    training = config.training
    try:
        state, origin = _state(entry, training.model_args, offline=training.offline)
    except UsageError as error:
        raise UsageError(
            f"`{entry.name}` has no weights here to fine-tune.",
            f"{error.what} {error.why} (A dry run downloads nothing either.)"
            if training.offline
            else f"{error.what} {error.why}",
            "Name a file or a training run with `--pretrained`, or train from random weights with "
            "`--mode scratch`.",
        ) from error
    return Pretrained(origin, dict(training.model_args), state)


def _state(
    entry: ModelEntry, arguments: Mapping[str, Any], *, offline: bool
) -> tuple[Mapping[str, Tensor], str]:
    if entry.builder == "timm":
        network = timm_library.create(
            entry.variant, pretrained=True, arguments=arguments, offline=offline
        )
        return network.state_dict(), entry.source
    state = read_weights(official_weights(entry, offline=offline))
    bundled = "the bundled " if entry.asset is not None else ""
    return state, f"{bundled}`{entry.name}`, trained on {entry.pretraining}"

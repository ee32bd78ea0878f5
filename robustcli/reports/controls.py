"""Mamba networks against controls: the contribution of the scan, or of the Mamba layer.

A control is a training of the same network without its scan (`--ablate scan`), or of the
counterpart of a network without Mamba (`adapters.catalogue.CONTROLS`). It is paired with a training
on the same images, split, protocol and seed; both are compared on the held-out images of both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from robustcli.adapters.catalogue import CONTROLS
from robustcli.core.names import ABLATE, counted
from robustcli.core.rundir import has_record
from robustcli.metrics.paired import PairedDifference
from robustcli.metrics.verdicts import ALPHA, holm
from robustcli.reports.numbers import p_value
from robustcli.reports.scoring import Scoring
from robustcli.reports.training_findings import HeldOutResults, TrainingFindings
from robustcli.training.record import TrainRecord

_WORDS = ("name", "source", "expected_dice")
"""Fields of a recipe that do not affect how the network is trained."""


@dataclass(frozen=True)
class ControlPair:
    """A training and its control.

    Args:
        network: The training of the network with its scan or Mamba layers.
        control: The training of the network without them.
        adjusted_p: p-value, adjusted after Holm over all pairs of a report; None without a test.
    """

    network: TrainingFindings
    control: TrainingFindings
    adjusted_p: float | None = None

    @property
    def names(self) -> tuple[str, str]:
        """The names of the network and of its control."""
        return self.network.record.network, self.control.record.network

    @property
    def scoring(self) -> Scoring:
        """The scores of the task of both."""
        return self.network.scoring

    @cached_property
    def difference(self) -> PairedDifference | None:
        """The network's score minus the control's; None until both are evaluated."""
        tests = self.network.test, self.control.test
        if tests[0] is None or tests[1] is None:
            return None
        return self.scoring.difference(tests[1].rows, tests[0].rows, self.network.record.seed)

    @property
    def parameters_apart(self) -> int:
        """Number of parameters of the network minus that of the control."""
        return self.network.record.parameters - self.control.record.parameters

    @property
    def time_ratio(self) -> float | None:
        """Step time of the network divided by the control's, with their shares of validation."""
        seconds = [median_step_seconds(training) for training in (self.network, self.control)]
        return seconds[0] / seconds[1] if seconds[0] and seconds[1] else None

    @property
    def unlike(self) -> list[str]:
        """Settings other than the network in which the trainings differ, with both values."""
        recipes = [t.record.recipe.model_dump() for t in (self.network, self.control)]
        values = {
            name: (recipes[0][name], recipes[1][name]) for name in recipes[0] if name not in _WORDS
        }
        values["device"] = (self.network.machine, self.control.machine)
        return [
            f"`{name}` {first} and {second}"
            for name, (first, second) in values.items()
            if first != second
        ]

    @property
    def verdict(self) -> str:
        """The name of the one that is ahead, if the adjusted p-value shows a difference."""
        if self.difference is None or self.adjusted_p is None or self.adjusted_p > ALPHA:
            return "no difference shown"
        return f"{self.names[0 if self.difference.value > 0 else 1]} ahead"

    @property
    def sentence(self) -> str:
        """The comparison as a sentence."""
        network, control = self.names
        difference, scoring, measure = self.difference, self.scoring, self.scoring.measure
        if self.network.test is None or self.control.test is None or difference is None:
            return f"`{network}` and `{control}`: not evaluated on the same images yet."
        tests = self.network.test, self.control.test
        scores = [f"{measure.value(test.numbers)}{measure.suffix}" for test in tests]
        difference_text = measure.signed(difference.value, difference.n)
        if difference.low is not None:
            ends = measure.show_range(difference.low, difference.high, difference.n, " to ")
            difference_text += f" ({ends})"
        p = "no test" if self.adjusted_p is None else f"p {p_value(self.adjusted_p)}"
        return (
            f"`{network}` has {measure.name} {scores[0]}, `{control}` {scores[1]}: "
            f"difference {difference_text}{scoring.unit}, {p}, "
            f"{counted(difference.groups, self.unit)}: {self.verdict}."
        )

    @property
    def unit(self) -> str:
        """Name of an independent unit of the held-out images, in the singular."""
        return self.network.record.grouping if self.scoring.per_group else "image"


def median_step_seconds(training: TrainingFindings) -> float | None:
    """Seconds per optimizer step, with its share of validation: the median over epochs.

    None before the first epoch has ended.
    """
    if not training.epochs:
        return None
    return training.median_seconds / (training.steps / training.epochs)


def control_pairs(trainings: Sequence[TrainingFindings]) -> list[ControlPair]:
    """Pairs each training with each of its controls among `trainings`, in their order.

    p-values are adjusted after Holm over all pairs.
    """
    pairs = [
        ControlPair(network, control)
        for network in trainings
        for control in trainings
        if is_control(control.record, network.record)
        and _same_images(network, control)
        and _mode(network) == _mode(control)
    ]
    p_values = [None if pair.difference is None else pair.difference.p for pair in pairs]
    adjusted = iter(holm([p for p in p_values if p is not None]))
    return [
        pair if p is None else replace(pair, adjusted_p=next(adjusted))
        for pair, p in zip(pairs, p_values, strict=True)
    ]


def is_control(control: TrainRecord, network: TrainRecord) -> bool:
    """Whether `control` is the same training as `network`, but without the Mamba layers."""
    if network.arguments.get(ABLATE) is not None or _experiment(control) != _experiment(network):
        return False
    if control.model == network.model:
        ablated = {name: value for name, value in control.arguments.items() if name != ABLATE}
        return ABLATE in control.arguments and ablated == network.arguments
    return control.model in CONTROLS.get(network.model, ())


def _experiment(record: TrainRecord) -> tuple[object, ...]:
    """The properties that both must share: images, meaning of masks, split, protocol and seed."""
    dataset = record.dataset
    masks = None if dataset.masks is None else dataset.masks.words
    return record.task, dataset.digest, dataset.contents, masks, record.protocol, record.seed


def _mode(training: TrainingFindings) -> str:
    """The fine-tuning mode of a training, from its folder name; empty for other trainings."""
    folder = training.run.resolve()
    return folder.name if has_record(folder.parent) else ""


def _same_images(network: TrainingFindings, control: TrainingFindings) -> bool:
    """Whether both were evaluated on the same images; True until both are evaluated."""
    tests: Iterable[HeldOutResults | None] = (network.test, control.test)
    ids = [sorted(test.rows["image_id"]) for test in tests if test is not None]
    return len(ids) < 2 or ids[0] == ids[1]

"""What trainings of one kind of model are scored by; sections and figures ask for no more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import pandas as pd

from robustcli.reports.measure import Measure
from robustcli.training.record import Validation


class Difference(Protocol):
    """A mode against full fine-tuning on the same images; see `MaskDifference`."""

    @property
    def n(self) -> int:
        """Images that both have."""

    @property
    def groups(self) -> int:
        """Independent units among them."""

    @property
    def value(self) -> float:
        """The difference."""

    @property
    def low(self) -> float | None:
        """Lower end of its paired 95 % interval."""

    @property
    def high(self) -> float | None:
        """Its upper end."""

    @property
    def p(self) -> float | None:
        """Of the paired test, two-sided."""

    @property
    def smallest_p(self) -> float:
        """The smallest p that so many units can give."""


class Scoring(ABC):
    """One way of scoring.

    `measure` is the score, `second` the name of what stands beside it, `validation` what is logged
    of the validation images. `equal` is the difference below which two scores are called equal, in
    words in `equal_words` and `equal_size`; `columns` are those of an evaluation's table that
    results keep. `baseline` names what needs no training, `unit` follows a
    difference in a sentence, `score_note` says how intervals and p are made, `edge_words` why an
    interval and a p of one difference can disagree.
    """

    measure: ClassVar[Measure]
    second: ClassVar[str]
    validation: ClassVar[Validation]
    axis: ClassVar[str]
    equal: ClassVar[float] = 0.01
    equal_words: ClassVar[str]
    equal_size: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    counts: ClassVar[tuple[str, ...]]
    baseline_columns: ClassVar[tuple[str, ...]]
    baseline: ClassVar[str]
    floor_words: ClassVar[str]
    per_group: ClassVar[bool]
    unit: ClassVar[str]
    few_words: ClassVar[str]
    edge_words: ClassVar[str]
    score_note: ClassVar[str]

    @abstractmethod
    def shown(self, numbers: Mapping[str, Any] | pd.Series) -> str:
        """The score with its interval."""

    def shown_in(self, row: pd.Series, n: int) -> str:
        """The score of a line of a sweep, of `n` held-out images."""
        return self.shown({"n": n, **{str(name): value for name, value in row.items()}})

    @abstractmethod
    def second_shown(self, numbers: Mapping[str, Any] | pd.Series) -> str:
        """What stands beside the score."""

    @abstractmethod
    def apart(self, value: float | None) -> str:
        """A difference of scores, with its sign."""

    @abstractmethod
    def width(self, value: float) -> str:
        """A width of an interval."""

    @abstractmethod
    def difference(
        self, reference: pd.DataFrame, rows: pd.DataFrame, seed: int
    ) -> Difference | None:
        """What the rows of one model gain over those of another; None without common images."""

    @abstractmethod
    def tested(self, group: str) -> tuple[str, str]:
        """What the paired interval and the test are called, where a group is `group`."""

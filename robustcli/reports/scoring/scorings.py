"""Which scoring a task has."""

from __future__ import annotations

from typing import Literal

from robustcli.reports.scoring.dice import DiceScoring
from robustcli.reports.scoring.scoring import Scoring
from robustcli.reports.scoring.top1 import Top1Scoring

SCORINGS: dict[Literal["cls", "seg"], Scoring] = {"cls": Top1Scoring(), "seg": DiceScoring()}

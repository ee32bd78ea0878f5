"""The arguments of the Python API have the types and ranges of the options of the commands."""

from __future__ import annotations

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustcli.core.arguments import checked_arguments
from robustcli.core.errors import UsageError
from robustcli.evaluation.config import EvalConfig
from robustcli.evaluation.exporting import ExportConfig
from robustcli.explanation.config import ExplainConfig
from robustcli.finetuning.config import FinetuneConfig
from robustcli.reports.run_export import PublishConfig
from robustcli.training.config import TrainConfig
from robustcli.verification.recorded_run import VerifyConfig

SETTINGS = (
    *(EvalConfig, ExplainConfig, TrainConfig, FinetuneConfig),
    *(VerifyConfig, ExportConfig, PublishConfig),
)


@pytest.mark.parametrize("settings", SETTINGS)
def test_every_default_is_accepted_unchanged(settings: type[Any]) -> None:
    defaults = {f.name: f.default for f in fields(settings) if f.default is not MISSING}
    assert checked_arguments(settings, "evaluate", defaults) == defaults


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"severities": [1, 3]}, {"severities": (1, 3)}),
        ({"plugins": "mine.py"}, {"plugins": (Path("mine.py"),)}),
        ({"severities": 2, "fail_drop": 50}, {"severities": (2,), "fail_drop": ("50",)}),
        ({"fail_under": "clean=70"}, {"fail_under": ("clean=70",)}),
        ({"label_space": Path("classes.txt")}, {"label_space": "classes.txt"}),
        ({"seed": np.int64(3), "workers": 2.0}, {"seed": 3, "workers": 2}),
        ({"slurm": {"time": 60}}, {"slurm": {"time": "60"}}),
        ({"foreground": [1, 2], "mask_classes": {1: "a"}},) * 2,
        ({"devices": "all"},) * 2,
    ],
)
def test_values_get_the_type_of_their_field(
    given: dict[str, Any], expected: dict[str, Any]
) -> None:
    checked = checked_arguments(EvalConfig, "evaluate", given)
    assert checked == expected
    assert list(map(type, checked.values())) == list(map(type, expected.values()))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"precision": "fp64"}, "`precision='fp64'` should be 'fp32', 'bf16' or 'fp16'"),
        ({"seed": "a"}, "`seed='a'` should be a valid integer"),
        ({"batch_size": 0}, "`batch_size=0` should be greater than or equal to 1"),
        ({"workers": -1}, "`workers=-1` should be greater than or equal to 0"),
        ({"devices": 0}, "should be greater than or equal to 1 or 'all'"),
        ({"allow_unreadable": 2}, "should be less than or equal to 1"),
        ({"sede": 1}, r"There is no argument `sede`\. Did you mean `seed`\?"),
        ({"models": ()}, "There is no argument `models`"),
    ],
)
def test_other_values_and_names_are_errors(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as raised:
        checked_arguments(EvalConfig, "evaluate", given, taken=("models",))
    assert raised.value.what == "One argument of `robustcli.evaluate` cannot be used."
    assert "`robust eval --help`" in raised.value.todo


def test_one_message_lists_all_errors() -> None:
    with pytest.raises(UsageError, match="2 arguments of `robustcli") as raised:
        checked_arguments(TrainConfig, "train", {"lr": 0, "epochs": "many"})
    assert "`lr=0` should be greater than 0.\n`epochs='many'`" in raised.value.why

from pathlib import Path

import pandas as pd
import pytest

from robustcli.reports.document import Figure
from robustcli.reports.finetuning import Finetuning, read_finetuning
from robustcli.reports.sections.finetune_gradients import (
    HEADER,
    chosen_from,
    every_tensor,
    gradients,
    statistic,
)
from tests.reports.finetune_runs import FinetunePlan, build_finetuning
from tests.reports.sections.told import line_of, told

FIGURES = [Figure("figures/gradients.png", "Gradients.")]


def found(run: Path, **plan: object) -> Finetuning:
    return read_finetuning(build_finetuning(run, FinetunePlan(modes=(), **plan)))  # type: ignore[arg-type]


def test_the_tensors_in_reach_are_listed_with_their_reason(tmp_path: Path) -> None:
    page = told(gradients(found(tmp_path), FIGURES))
    assert line_of(page, "parameter") == list(HEADER)
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert [line.split("`")[1].split(".")[-1] for line in rows] == [
        "A_log",
        "D",
        "weight",
        "weight",
    ]
    assert line_of(page, "`mamba_layer.mamba.A_log`")[1:] == [
        *("64 x 16", "1,024", "1.3e-08", "**frozen**", "below 1e-06"),
    ]
    assert "3 more tensors, out of the rule's reach, under “Every tensor”." in page
    assert "![Gradients.](figures/gradients.png)" in page


def test_the_whole_table_holds_every_tensor_the_smallest_first(tmp_path: Path) -> None:
    run = found(tmp_path)
    rows = [line for line in told(every_tensor(run)).splitlines() if line.startswith("| `")]
    assert len(rows) == 7
    assert rows[0].split("`")[1] == "encoder.stem.conv1.bias"
    assert "not in a state-space block" in rows[-1]


def test_one_table_is_enough_where_the_rule_is_about_all(tmp_path: Path) -> None:
    run = found(tmp_path, rule={"scope": "all"})
    assert every_tensor(run) == []
    assert "more tensor" not in told(gradients(run, FIGURES))
    assert len(chosen_from(run)) == 7


def test_a_tensor_without_a_gradient_comes_last(tmp_path: Path) -> None:
    build_finetuning(tmp_path, FinetunePlan(modes=()))
    table = pd.read_csv(tmp_path / "frozen.csv")
    table.loc[2, "statistic"] = None
    table.to_csv(tmp_path / "frozen.csv", index=False)
    last = chosen_from(read_finetuning(tmp_path)).iloc[-1]
    assert last["name"] == "mamba_layer.mamba.A_log"


def test_before_the_profile_is_complete_nothing_is_decided(tmp_path: Path) -> None:
    run = found(tmp_path, decided=False)
    page = told(gradients(run, FIGURES))
    assert "nothing is decided" in page
    assert "|" not in page
    assert every_tensor(run) == []


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1.26e-8, "1.3e-08"), (0.0, "0"), (None, "\N{EN DASH}"), (float("nan"), "\N{EN DASH}")],
)
def test_a_statistic_has_two_digits(value: float | None, shown: str) -> None:
    assert statistic(value) == shown

"""The folder of a fine-tuning: what may go on in it, and what is discarded."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from robustcli.core.errors import UsageError
from robustcli.finetuning.finetune_plan import (
    FinetunePlan,
    finetune_record,
    mode_differences,
    plan_finetuning,
)
from robustcli.finetuning.record import FINETUNING, read_finetune_record
from robustcli.finetuning.rules import FreezeRule
from tests.finetuning.tunings import tuning, write_pretrained
from tests.training.pairs import write_pairs
from tests.training.runs import Heard


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("given")
    return write_pairs(folder / "data", 14), write_pretrained(folder / "weights.safetensors")


def opened(given: tuple[Path, Path], out: Path, **said: Any) -> FinetunePlan:
    weights = said.pop("pretrained", given[1])
    plan = plan_finetuning(tuning(given[0], out, weights, **said), Heard())
    out.mkdir(exist_ok=True)
    new = finetune_record(plan, plan.network("full")[0])
    fresh = plan.training.config.fresh
    FINETUNING.open(out, new, fresh=fresh, more=partial(mode_differences, plan))
    return plan


def test_what_the_record_says_at_first(given: tuple[Path, Path], tmp_path: Path) -> None:
    opened(given, tmp_path / "run", mode="freeze")
    record = read_finetune_record(tmp_path / "run")
    assert (record.status, record.modes, record.saving) == ("running", ["freeze"], None)
    assert (record.rule.threshold, record.rule.scope) == (1e-6, "mamba")
    assert record.parameters > 1000
    assert len(str(record.pretrained_sha256)) == 64


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"seed": 1}, "`--seed` was 0, now it is 1|images are others"),
        ({"limit": 12}, "images are others: 14 of `data`, now 12"),
        ({"epochs": 4}, r"epochs .*`--iterations`.* was 3, now it is 4"),
        ({"rule": FreezeRule(1e-3)}, r"The threshold .* was 1e-06, now it is 0.001"),
        ({"rule": FreezeRule(1e-6, scope="all")}, "`--freeze-scope` was mamba, now it is all"),
        ({"rule": FreezeRule(1e-6, kind="rms")}, "`--statistic` was mean_abs, now it is rms"),
        ({"rule": FreezeRule(pattern="encoder")}, "`--freeze` was None, now it is encoder"),
        ({"profile_iterations": 3}, "`--profile-iterations` was 2, now it is 3"),
    ],
)
def test_other_settings_are_refused_by_name(
    given: tuple[Path, Path], tmp_path: Path, said: dict[str, Any], named: str
) -> None:
    opened(given, tmp_path / "run")
    with pytest.raises(UsageError, match="holds a fine-tuning with other settings") as caught:
        opened(given, tmp_path / "run", **said)
    assert re.search(named, caught.value.why)
    assert "`--fresh`" in caught.value.todo


def test_other_weights_are_refused(given: tuple[Path, Path], tmp_path: Path) -> None:
    opened(given, tmp_path / "run")
    other = write_pretrained(tmp_path / "other.safetensors", seed=8)
    with pytest.raises(UsageError, match=r"\(`--pretrained`\) was"):
        opened(given, tmp_path / "run", pretrained=other)


def test_modes_add_up_and_commands_are_kept(given: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    opened(given, out, mode="full", rule=FreezeRule(1e-3))
    created = read_finetune_record(out).created
    opened(given, out, mode="freeze")  # nothing was frozen yet, so the rule may be another
    opened(given, out, mode="scratch")
    record = read_finetune_record(out)
    assert record.modes == ["scratch", "full", "freeze"]
    assert record.created == created
    assert record.rule.threshold == 1e-6


def test_fresh_discards_what_is_the_runs(given: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    opened(given, out)
    (out / "freeze" / "checkpoints").mkdir(parents=True)
    (out / "sweep" / "encoder").mkdir(parents=True)
    error = "error-20260102-030405-17.txt"
    ours = (
        error,
        f"freeze/{error}",
        "freeze/costs.json",
        "gradients.parquet",
        "frozen.csv",
        "sweep.csv",
    )
    for name in (*ours, "sweep/encoder/run.json", "mine.txt"):
        (out / name).write_text("x")
    opened(given, out, fresh=True, epochs=4)
    assert {p.name for p in out.rglob("*") if p.is_file()} == {"run.json", "mine.txt"}
    FINETUNING.discard(out)
    assert not (out / "run.json").exists()


def test_another_kind_of_run_is_not_taken_over(given: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"kind": "train"}')
    with pytest.raises(UsageError, match="is not the record of a fine-tuning"):
        opened(given, tmp_path / "run")

"""The settings, the record and the folder of a fine-tuning."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from robustcli.core.errors import UsageError
from robustcli.finetuning.config import FinetuneConfig
from robustcli.finetuning.finetune_plan import (
    FinetunePlan,
    finetune_record,
    mode_differences,
    plan_finetuning,
)
from robustcli.finetuning.record import DECISIONS, FINETUNING, read_finetune_record
from robustcli.finetuning.selection import FreezeRule
from robustcli.training.config import TrainConfig
from tests.finetuning.tunings import MakeConfig, network, write_pretrained
from tests.training.runs import Recorder

CONFIG = FinetuneConfig(TrainConfig("smp:Unet/resnet18"))
TRAINING = Path("runs/train-x-0a1b2c3d")


def test_the_defaults_are_those_of_the_documented_command() -> None:
    assert CONFIG.rule == FreezeRule(threshold=1e-6, scope="mamba", kind="mean_abs")
    assert CONFIG.modes == ("scratch", "full", "freeze")
    assert replace(CONFIG, mode="lora").modes == ("lora",)
    assert replace(CONFIG, profile_only=True).modes == ()


def test_the_name_of_the_folder_does_not_depend_on_the_modes() -> None:
    base_folder = CONFIG.directory(TRAINING)
    assert base_folder.parent == Path("runs")
    assert base_folder.name.startswith("finetune-smp-Unet-resnet18-")
    assert replace(CONFIG, mode="full", profile_only=True).directory(TRAINING) == base_folder


@pytest.mark.parametrize(
    "changes",
    [
        {"pretrained": Path("w")},
        {"rule": FreezeRule(quantile=0.3)},
        {"profile_iterations": 3},
        {"profile": Path("p")},
        {"iterations": 7},
    ],
)
def test_other_settings_have_another_folder(changes: dict[str, object]) -> None:
    changed = replace(CONFIG, **changes)  # type: ignore[arg-type]
    assert changed.directory(TRAINING) != CONFIG.directory(TRAINING)
    assert CONFIG.directory(Path("runs/train-y")) != CONFIG.directory(TRAINING)
    named_folder = replace(changed, training=replace(CONFIG.training, out=Path("mine")))
    assert named_folder.directory(TRAINING) == Path("mine")


def open_run(make_config: MakeConfig, out: Path, **overrides: Any) -> FinetunePlan:
    plan = plan_finetuning(make_config(out, **overrides), Recorder())
    out.mkdir(exist_ok=True)
    record = finetune_record(plan, plan.network("full")[0])
    is_fresh = plan.training.config.fresh
    FINETUNING.open(
        out, record, fresh=is_fresh, further_differences=partial(mode_differences, plan)
    )
    return plan


def test_a_new_record_has_no_results(make_config: MakeConfig, tmp_path: Path) -> None:
    open_run(make_config, tmp_path / "run", mode="freeze")
    record = read_finetune_record(tmp_path / "run")
    assert (record.status, record.modes, record.saving) == ("running", ["freeze"], None)
    assert (record.rule.threshold, record.rule.scope) == (1e-6, "mamba")
    assert record.parameters > 1000
    assert len(str(record.pretrained_sha256)) == 64


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"seed": 1}, "`--seed` was 0, now it is 1|images differ"),
        ({"limit": 12}, "images differ: 14 of `data`, now 12"),
        ({"epochs": 4}, r"epochs .*`--iterations`.* was 3, now it is 4"),
        ({"rule": FreezeRule(1e-3)}, r"The threshold .* was 1e-06, now it is 0.001"),
        ({"rule": FreezeRule(1e-6, scope="all")}, "`--freeze-scope` was mamba, now it is all"),
        ({"rule": FreezeRule(1e-6, kind="rms")}, "`--statistic` was mean_abs, now it is rms"),
        ({"rule": FreezeRule(pattern="encoder")}, "`--freeze` was None, now it is encoder"),
        ({"profile_iterations": 3}, "`--profile-iterations` was 2, now it is 3"),
    ],
)
def test_other_settings_are_refused_by_name(
    make_config: MakeConfig, tmp_path: Path, overrides: dict[str, Any], message: str
) -> None:
    open_run(make_config, tmp_path / "run")
    (tmp_path / "run" / DECISIONS).touch()
    with pytest.raises(UsageError, match="contains a fine-tuning with other settings") as caught:
        open_run(make_config, tmp_path / "run", **overrides)
    assert re.search(message, caught.value.why)
    assert "`--fresh`" in caught.value.todo


def test_other_weights_are_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    open_run(make_config, tmp_path / "run")
    (tmp_path / "run" / DECISIONS).touch()
    other_weights = write_pretrained(tmp_path / "other.safetensors", seed=8)
    with pytest.raises(UsageError, match=r"\(`--pretrained`\) was"):
        open_run(make_config, tmp_path / "run", pretrained=other_weights)


def test_modes_add_up_and_commands_are_kept(make_config: MakeConfig, tmp_path: Path) -> None:
    out = tmp_path / "run"
    open_run(make_config, out, mode="full", rule=FreezeRule(1e-3))
    created = read_finetune_record(out).created
    open_run(make_config, out, mode="freeze")  # the rule may change until parameters are frozen
    open_run(make_config, out, mode="scratch")
    record = read_finetune_record(out)
    assert record.modes == ["scratch", "full", "freeze"]
    assert record.created == created
    assert record.rule.threshold == 1e-6


def test_fresh_discards_files_of_the_run_only(make_config: MakeConfig, tmp_path: Path) -> None:
    out = tmp_path / "run"
    open_run(make_config, out)
    (out / "freeze" / "checkpoints").mkdir(parents=True)
    (out / "sweep" / "encoder").mkdir(parents=True)
    error = "error-20260102-030405-17.txt"
    own_files = (error, f"freeze/{error}", "freeze/costs.json", "gradients.parquet", "frozen.csv",
            "sweep.csv")  # fmt: skip
    for name in (*own_files, "sweep/encoder/run.json", "mine.txt"):
        (out / name).write_text("x")
    open_run(make_config, out, fresh=True, epochs=4)
    assert {p.name for p in out.rglob("*") if p.is_file()} == {"run.json", "mine.txt"}
    FINETUNING.discard(out)
    assert not (out / "run.json").exists()


def test_another_kind_of_run_is_not_taken_over(make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"kind": "train"}')
    with pytest.raises(UsageError, match="is not the record of a fine-tuning"):
        open_run(make_config, tmp_path / "run")


def test_a_written_record_is_read_unchanged(make_config: MakeConfig, tmp_path: Path) -> None:
    rule = FreezeRule(quantile=0.3, kind="rms", scope="all")
    record = finetune_record(plan_finetuning(make_config(rule=rule), Recorder()), network())
    FINETUNING.write(tmp_path / "run", record)
    assert read_finetune_record(tmp_path / "run") == record
    assert (record.rule.quantile, record.rule.kind, record.rule.scope) == (0.3, "rms", "all")

"""`run.json` of a fine-tuning."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustcli.core.errors import UsageError
from robustcli.finetuning.finetune_plan import finetune_record, plan_finetuning
from robustcli.finetuning.record import FINETUNING, read_finetune_record
from robustcli.finetuning.rules import FreezeRule
from tests.finetuning.tunings import network, tuning, write_pretrained
from tests.training.pairs import write_pairs
from tests.training.runs import Heard


def test_what_is_written_is_read(tmp_path: Path) -> None:
    weights = write_pretrained(tmp_path / "weights.safetensors")
    rule = FreezeRule(quantile=0.3, kind="rms", scope="all")
    config = tuning(write_pairs(tmp_path / "data", 14), tmp_path / "run", weights, rule=rule)
    record = finetune_record(plan_finetuning(config, Heard()), network())
    FINETUNING.write(tmp_path / "run", record)
    assert read_finetune_record(tmp_path / "run") == record
    assert (record.rule.quantile, record.rule.kind, record.rule.scope) == (0.3, "rms", "all")


def test_a_folder_without_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not a run\."):
        read_finetune_record(tmp_path)


def test_another_kind_of_record(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"kind": "train", "status": "complete"}')
    with pytest.raises(UsageError, match="is not the record of a fine-tuning") as caught:
        read_finetune_record(tmp_path)
    assert "`robust finetune`" in caught.value.todo

"""`run.json`: what it says of either task, and that older programs can still read theirs."""

import json
from datetime import UTC, datetime

import pytest

from robustcli.core.errors import UsageError
from robustcli.evaluation.record import FILE_NAME, RunRecord, read_record, write_record
from robustcli.tasks.record import MaskPreprocessingRecord, PreprocessingRecord
from tests.builders import RunPlan, build_run, model

WHEN = datetime(2026, 1, 2, tzinfo=UTC)
MASKS = MaskPreprocessingRecord(window=256, channels="bgr", threshold=0.62, overlap=0.5)


def test_a_classifiers_record_has_no_key_that_older_programs_refuse(tmp_path):
    run = build_run(tmp_path, RunPlan())
    keys = json.loads((run / FILE_NAME).read_text()).keys()
    assert not keys & {"task", "grouping", "split"}
    record = read_record(run)
    assert (record.task, record.grouping, record.split) == ("cls", None, None)
    assert isinstance(record.models[0].preprocessing, PreprocessingRecord)


def test_a_segmenters_record_comes_back_as_it_was(tmp_path):
    record = read_record(build_run(tmp_path, RunPlan()))
    segmenter = model("unet", preprocessing=MASKS, label_space="foreground")
    told = record.model_copy(
        update={"task": "seg", "grouping": "patient", "split": "test", "models": [segmenter]}
    )
    write_record(tmp_path, told)
    assert read_record(tmp_path) == told
    assert isinstance(read_record(tmp_path).models[0].preprocessing, MaskPreprocessingRecord)


def test_a_key_of_a_newer_program_is_named(tmp_path):
    run = build_run(tmp_path, RunPlan())
    content = json.loads((run / FILE_NAME).read_text())
    (run / FILE_NAME).write_text(json.dumps(content | {"colour": "blue"}))
    with pytest.raises(UsageError, match="Extra inputs are not permitted at colour"):
        read_record(run)


def test_the_schema_version_stays():
    assert RunRecord.model_fields["schema_version"].default == 1


@pytest.mark.parametrize("tolerance", [None, 3])
def test_a_tolerance_is_written_only_where_the_data_have_one(tmp_path, tolerance):
    record = read_record(build_run(tmp_path, RunPlan()))
    dataset = record.dataset.model_copy(update={"tolerance": tolerance})
    write_record(tmp_path, record.model_copy(update={"dataset": dataset}))
    written = json.loads((tmp_path / FILE_NAME).read_text())["dataset"]
    assert ("tolerance" in written) == (tolerance is not None)
    assert read_record(tmp_path).dataset.tolerance == tolerance

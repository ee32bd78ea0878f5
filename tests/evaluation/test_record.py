"""`run.json`: its content for both tasks, and files of older versions."""

import json
from datetime import UTC, datetime

import pytest

from robustcli.core.errors import UsageError
from robustcli.core.rundir import RECORD_FILE
from robustcli.evaluation.record import EVALUATION, RunRecord, read_record
from robustcli.tasks.record import MaskPreprocessingRecord, PreprocessingRecord
from tests.builders import RunPlan, build_run, model

WHEN = datetime(2026, 1, 2, tzinfo=UTC)
MASKS = MaskPreprocessingRecord(window=256, channels="bgr", threshold=0.62, overlap=0.5)


def test_a_record_without_keys_of_today_is_read_with_their_defaults(tmp_path):
    run = build_run(tmp_path, RunPlan())
    content = json.loads((run / RECORD_FILE).read_text())
    for key in ("task", "grouping", "split"):
        content.pop(key)
    for key in ("tolerance", "masks"):
        content["dataset"].pop(key)
    (run / RECORD_FILE).write_text(json.dumps(content))
    record = read_record(run)
    assert (record.task, record.grouping, record.split) == ("cls", None, None)
    assert (record.dataset.tolerance, record.dataset.masks) == (None, None)
    assert isinstance(record.models[0].preprocessing, PreprocessingRecord)


def test_a_segmenters_record_comes_back_as_it_was(tmp_path):
    record = read_record(build_run(tmp_path, RunPlan()))
    segmenter = model("unet", preprocessing=MASKS, label_space="foreground")
    changes = {"task": "seg", "grouping": "patient", "split": "test", "models": [segmenter]}
    record = record.model_copy(update=changes)
    EVALUATION.write(tmp_path, record)
    assert read_record(tmp_path) == record
    assert isinstance(read_record(tmp_path).models[0].preprocessing, MaskPreprocessingRecord)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "blue"}, r"\n.*has no setting `colour`"),
        ({"schema_version": 2}, "2; the newest supported version is 1"),
    ],
)
def test_keys_and_formats_of_a_newer_program_are_refused(tmp_path, change, message):
    run = build_run(tmp_path, RunPlan())
    content = json.loads((run / RECORD_FILE).read_text())
    (run / RECORD_FILE).write_text(json.dumps(content | change))
    with pytest.raises(UsageError, match=rf"(?s)newer version of `robust`.*{message}"):
        read_record(run)
    assert RunRecord.model_fields["schema_version"].default == 1

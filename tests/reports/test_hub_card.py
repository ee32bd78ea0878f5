"""Model cards and `.eval_results`, read with the Hub's library."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from huggingface_hub import ModelCard

from robustcli.core.errors import UsageError
from robustcli.core.io import write_text
from robustcli.reports.hub_card import BEGIN, END, YAML_BEGIN, YAML_END, card_files
from robustcli.reports.run_export import PublishConfig, RunExport, read_run_export
from tests.builders import IDENTITY, RunPlan, build_run, imagenet_c, model
from tests.reports.finetune_runs import FinetunePlan, build_finetuning
from tests.reports.train_runs import build_training

pytestmark = pytest.mark.usefixtures("blank_figures")
PLAN = RunPlan(transforms=(IDENTITY, *imagenet_c(severities=(1, 3))[:2]), images=40)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory, blank_figures: None) -> RunExport:
    return read_run_export(build_run(tmp_path_factory.mktemp("hub") / "run", PLAN))


def write_card(export: RunExport, out: Path, **options: Any) -> list[Path]:
    files = card_files(export, PublishConfig(export.run, "hub-card", out=out, **options))
    for path, text in files.items():
        write_text(path, text)
    return list(files)


def test_a_new_card_holds_every_number_with_its_interval(export: RunExport, tmp_path: Path) -> None:
    (path,) = write_card(export, tmp_path / "card")
    card = ModelCard.load(path)
    results = card.data.eval_results
    assert card.data.model_name == "vmamba-b"
    table = export.table.set_index(["transform", "severity"])
    assert len(results) == 2 * len(table)  # top-1 and top-5
    noisy = next(
        result
        for result in results
        if result.dataset_config == "c_gaussian_noise, severity 3" and result.metric_name == "top-1"
    )
    row = table.loc[("c_gaussian_noise", 3)]
    assert noisy.metric_value == pytest.approx(row["top1"], abs=1e-6)
    assert noisy.metric_args["low"] == pytest.approx(row["top1_low"], abs=1e-6)
    assert noisy.metric_args["high"] == pytest.approx(row["top1_high"], abs=1e-6)
    assert noisy.metric_args["run"] == export.digest
    assert (noisy.task_type, noisy.metric_type) == ("image-classification", "accuracy")
    assert f"`{export.digest}`" in card.text
    assert f"{100 * row['top1']:.1f}" in card.text


def test_a_card_says_what_counts_as_a_correct_prediction(tmp_path: Path) -> None:
    plan = replace(PLAN, dataset={"answers": [0, 3], "several_labels": True})
    export = read_run_export(build_run(tmp_path / "run", plan))
    for path in write_card(export, tmp_path / "card", dataset_id="o/d"):
        text = " ".join(path.read_text().split())  # YAML breaks long lines
        assert "Models predict only the 2 classes of the data" in text, path
        assert "A prediction of any true class of an image is correct" in text, path


def test_eval_results_are_as_the_hub_specifies(export: RunExport, tmp_path: Path) -> None:
    written = write_card(
        export, tmp_path, dataset_id="org/bench", task_id="robust", dataset_revision="abc",
        source_url="https://example.org/report",
    )  # fmt: skip
    paths = [path for path in written if path.suffix == ".yaml"]
    assert {path.parent for path in paths} == {tmp_path / ".eval_results"}
    assert len(paths) == len(export.table)
    parse = getattr(huggingface_hub, "parse_eval_result_entries", None)
    for path, (_, row) in zip(paths, export.table.iterrows(), strict=True):
        (entry,) = yaml.safe_load(path.read_text())
        assert set(entry) == {"dataset", "value", "date", "source", "notes"}
        assert entry["dataset"] == {"id": "org/bench", "task_id": "robust", "revision": "abc"}
        assert entry["value"] == pytest.approx(row["top1"], abs=1e-6)
        assert entry["date"] == "2025-01-02"
        for text in (f"{row['top1_low']:.4f}", f"{row['top1_high']:.4f}", export.digest):
            assert text in entry["notes"]
        if parse is not None:  # huggingface-hub from 1.3 on
            assert parse([entry])[0].source_url == "https://example.org/report"


def test_an_existing_card_changes_between_its_marks_alone(
    export: RunExport, tmp_path: Path
) -> None:
    before = (
        f"---\nlicense: mit  # mine\n{YAML_BEGIN}\nold: true\n{YAML_END}\ntags: [a]\n---\n"
        f"# My model\n\nWords.\n{BEGIN}\nold\n{END}\n\nMore words, no newline"
    )
    path = tmp_path / "README.md"
    path.write_text(before)
    write_card(export, tmp_path)
    text = path.read_text()
    assert text.startswith(f"---\nlicense: mit  # mine\n{YAML_BEGIN}\nmodel-index:\n")
    assert f"{YAML_END}\ntags: [a]\n---\n# My model\n\nWords.\n{BEGIN}\n" in text
    assert text.endswith(f"{END}\n\nMore words, no newline")
    assert "old" not in text
    data = ModelCard.load(path).data
    assert (data.license, data.tags, data.model_name) == ("mit", ["a"], "vmamba-b")
    write_card(export, tmp_path)
    assert path.read_text() == text


def test_metadata_without_marks_stays_as_it_is(export: RunExport, tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"---\nlicense: mit\n---\n{BEGIN}\n{END}\n")
    write_card(export, tmp_path)
    assert path.read_text().startswith(f"---\nlicense: mit\n---\n{BEGIN}\n## Robustness of")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# Mine\n", "without markers for the results"),
        (f"{END}\n{BEGIN}\n", "without markers for the results"),
        (f"---\n{YAML_END}\n{YAML_BEGIN}\n---\n{BEGIN}\n{END}\n", "are not in order"),
        (
            f"---\nmodel-index: []\n{YAML_BEGIN}\n{YAML_END}\n---\n{BEGIN}\n{END}\n",
            "a `model-index` outside",
        ),
        (f"---\na: [\n---\n{BEGIN}\n{END}\n", "front matter of .* cannot be read"),
    ],
)
def test_cards_that_are_not_touched(
    export: RunExport, tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(UsageError, match=message):
        write_card(export, tmp_path)
    assert (tmp_path / "README.md").read_text() == text


def test_files_of_others_are_not_overwritten(export: RunExport, tmp_path: Path) -> None:
    foreign_file = tmp_path / ".eval_results" / "robust-vmamba-b-identity.yaml"
    foreign_file.parent.mkdir()
    foreign_file.write_text("- mine\n")
    with pytest.raises(UsageError, match="was not written by"):
        write_card(export, tmp_path, dataset_id="org/bench")
    assert not (tmp_path / "README.md").exists()
    assert foreign_file.read_text() == "- mine\n"


def test_a_card_is_of_one_model(tmp_path: Path) -> None:
    plan = replace(PLAN, models=(model("vmamba-b"), model("swin-b")))
    export = read_run_export(build_run(tmp_path / "two", plan))
    with pytest.raises(UsageError, match="`vmamba-b`, `swin-b`"):
        write_card(export, tmp_path)
    write_card(export, tmp_path, model="swin-b")
    assert ModelCard.load(tmp_path / "README.md").data.model_name == "swin-b"


def test_trainings_and_modes_of_finetunings(tmp_path: Path) -> None:
    training = read_run_export(build_training(tmp_path / "train"))
    write_card(training, tmp_path / "a")
    with pytest.raises(UsageError, match="not `other`"):
        write_card(training, tmp_path / "a", model="other")
    results = ModelCard.load(tmp_path / "a" / "README.md").data.eval_results
    dice = next(result for result in results if result.metric_type == "dice")
    assert dice.metric_value == pytest.approx(training.table["dice"][0], abs=1e-6)
    assert dice.task_type == "image-segmentation"
    plan = FinetunePlan(modes=("full", "freeze"))
    finetuning = read_run_export(build_finetuning(tmp_path / "ft", plan))
    with pytest.raises(UsageError, match="has the modes"):
        write_card(finetuning, tmp_path / "b")
    write_card(finetuning, tmp_path / "b", model="full")
    results = ModelCard.load(tmp_path / "b" / "README.md").data.eval_results
    full = finetuning.table.set_index("mode").loc["full"]
    assert results[0].metric_value == pytest.approx(full["dice"], abs=1e-6)

from pathlib import Path

import pytest

from robustcli.reports.finetuning import read_finetuning
from robustcli.reports.sections.finetune_settings import finetune_settings
from tests.reports.finetune_runs import ROADS, FinetunePlan, build_finetuning
from tests.reports.sections.told import line_of, told


def settings(run: Path, plan: FinetunePlan) -> str:
    return told(finetune_settings(read_finetuning(build_finetuning(run, plan))))


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a run in which everything is there."""
    return settings(tmp_path_factory.mktemp("run"), FinetunePlan())


@pytest.mark.parametrize(
    "words",
    [
        "- Network: `umamba-pico, num_classes=1`, 200,000 parameters.",
        "fluorescence, SHA-256 `abab",
        "- Heads that are new in this task and never frozen: `decoder.seg_layers.`.",
        "- Frozen by: tensors of state-space blocks whose mean of",
        "- Profile: measured in this run, 10 iterations.",
        "robust finetune umamba-pico --freeze-threshold 1e-6",
        "Versions: robust 0.1.0, torch 2.6.0.",
    ],
)
def test_what_it_was_made_of_is_listed(complete: str, words: str) -> None:
    assert words in complete


def test_data_and_recipe_are_those_of_the_modes(complete: str) -> None:
    assert line_of(complete, "held out")[1] == "8"
    assert line_of(complete, "loss") == ["loss", "bce-dice"]
    assert "Empty masks: an image without foreground" in complete


def test_a_run_that_only_profiles_has_no_recipe_but_a_command(tmp_path: Path) -> None:
    page = settings(tmp_path, FinetunePlan(modes=()))
    assert "robust finetune" in page
    assert "Device: cpu (2 threads)." in page
    assert "|" not in page.replace("\\|", "")


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"profile": "old.parquet"}, "- Profile: `old.parquet`, 10 iterations."),
        ({"profile": "none"}, "- Profile: none; what is frozen was named."),
        ({"heads": []}, "never frozen: none."),
        ({"pretrained_sha256": None}, "fluorescence.\n"),
    ],
)
def test_what_is_not_there_is_said(tmp_path: Path, record: dict[str, object], words: str) -> None:
    assert words in settings(tmp_path, FinetunePlan(modes=(), record=record))


def test_the_source_of_the_relaxed_numbers_is_told_of_roads_only(
    tmp_path: Path, complete: str
) -> None:
    found = read_finetuning(build_finetuning(tmp_path, ROADS))
    assert "Relaxed precision and recall: 3 pixels, as V. Mnih" in told(finetune_settings(found))
    assert "Relaxed" not in complete

from dataclasses import replace
from pathlib import Path

import pytest

from robustcli.reports.document import Document, Paragraph
from robustcli.reports.finetuning import Finetuning, read_finetuning
from robustcli.reports.markdown_page import to_markdown
from robustcli.reports.sections.finetune_opening import finetune_opening, finetune_title
from tests.reports.finetune_runs import IMAGES, MAMBA, FinetunePlan, build_finetuning
from tests.reports.sections.told import told


def opening(run: Path, plan: FinetunePlan) -> str:
    return told(finetune_opening(read_finetuning(build_finetuning(run, plan))))


def title(found: Finetuning) -> str:
    return to_markdown(Document("", (Paragraph(finetune_title(found)),))).strip()


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a run in which everything is there."""
    return opening(tmp_path_factory.mktemp("run"), FinetunePlan())


@pytest.mark.parametrize(
    "words",
    [
        "# Fine-tuning of `umamba-pico` on `kaggle_3m`: dice scratch 0.730 (",
        "`umamba-pico` (200,000 parameters) was fine-tuned on `kaggle_3m`, starting from the "
        "bundled weights, pretrained on `nuclei-mini`, fluorescence.",
        "60 iterations in 6 epochs each, from the same seed and with the same order of images.",
        "froze 2 of 7 tensors: 1,088 of 5,904 parameters, 18.43 %.",
        "The gradients are those of 10 iterations.",
        "**Few held-out images.** With 8 held-out images, the 95 % interval of a dice is up to 0.1",
        "Dice of freeze minus that of full:",
    ],
)
def test_what_was_done_and_what_limits_it_is_said(complete: str, words: str) -> None:
    assert words in complete
    assert "Partial run" not in complete


def test_a_run_that_only_profiles_says_what_would_be_frozen(tmp_path: Path) -> None:
    page = opening(tmp_path, FinetunePlan(modes=()))
    assert "# Fine-tuning of `umamba-pico` on `kaggle_3m`: profile of the gradients" in page
    assert "was only profiled on `kaggle_3m`" in page
    assert "would freeze 2 of 7 tensors" in page
    assert "Modes:" not in page


def test_an_unfinished_run_says_how_far_it_is(tmp_path: Path) -> None:
    page = opening(tmp_path, FinetunePlan(unmeasured=("full",), waiting=("freeze",)))
    assert "**Partial run.** 1 of 3 modes finished. Status: running." in page
    assert "is being fine-tuned" in page


def test_nothing_measured_and_nothing_decided_is_told(tmp_path: Path) -> None:
    plan = FinetunePlan(modes=("full",), waiting=("full",), profiled=0, decided=False)
    found = read_finetuning(build_finetuning(tmp_path, plan))
    assert title(found).endswith(": not measured yet")
    page = told(finetune_opening(found))
    assert "The rule" not in page
    assert "from the same seed" not in page, "there is one mode only"


def test_a_rule_that_freezes_nothing_says_from_where_on_it_would(tmp_path: Path) -> None:
    large = ((f"{MAMBA}D", (64,), True, 2e-5), (f"{MAMBA}A_log", (64, 16), True, 4e-5))
    page = opening(tmp_path, FinetunePlan(tensors=large))
    assert "froze 0 of 2 tensors" in page
    assert "So the mode freeze is full fine-tuning." in page
    assert "The smallest statistic that it looked at is 2.1e-05." in page


def test_many_held_out_groups_need_no_warning(tmp_path: Path) -> None:
    many = replace(IMAGES, groups=30, images=30)
    page = opening(tmp_path, FinetunePlan(modes=("full",), training=many))
    assert "Few held-out" not in page


def test_one_group_gives_no_interval(tmp_path: Path) -> None:
    one = replace(IMAGES, grouping="patient", groups=1)
    page = opening(tmp_path, FinetunePlan(modes=("full",), training=one))
    assert "From 1 held-out patient nothing can be said about others" in page


@pytest.mark.parametrize(
    ("rule", "record", "words"),
    [
        ({}, {"profile": "old/gradients.parquet"}, "iterations in `old/gradients.parquet`."),
        (
            {"threshold": None, "pattern": "encoder.*"},
            {"profile": "none"},
            "The rule (tensors called `encoder.*`) froze",
        ),
    ],
)
def test_where_the_gradients_are_from_is_said(
    tmp_path: Path, rule: dict[str, object], record: dict[str, object], words: str
) -> None:
    page = opening(tmp_path, FinetunePlan(modes=("freeze",), rule=rule, record=record))
    assert words in page
    assert "in `none`" not in page

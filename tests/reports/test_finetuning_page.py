"""The page of a fine-tuning: results, pictures, text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from robustcli.finetuning.record import RuleRecord
from robustcli.reports import finetuning_page
from robustcli.reports.figures.freezing_figures import GradientCurve, Limit, ModeCourse, Rule
from robustcli.reports.finetuning_findings import FinetuningFindings, read_finetuning
from robustcli.reports.finetuning_page import (
    FinetuningGallery,
    curves,
    draw_finetuning_gallery,
    finetuning_report,
    finetuning_text,
    kind_of_tensor,
    rule_limit,
    short_names,
)
from robustcli.reports.finetuning_words import chosen_from, saved
from robustcli.reports.measure import RELAXED
from robustcli.reports.numbers import statistic
from robustcli.tasks.record import MasksRecord
from tests.reports.finetune_runs import (
    IMAGES,
    MAMBA,
    ROADS,
    FinetunePlan,
    build_finetuning,
    sweep_rows,
)
from tests.reports.page_parts import assert_golden, line_of, section

COSTS = [
    *("mode", "iterations/s", "s per iteration (middle half)", "trained parameters", "frozen"),
    *("optimizer", "peak memory", "training time", "epochs"),
]
RELAXED_NAMES = ["relaxed precision", "relaxed recall"]


def page(run: Path, plan: FinetunePlan) -> str:
    return finetuning_text(read_finetuning(build_finetuning(run, plan)))


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a run in which everything is there, without its pictures."""
    return page(tmp_path_factory.mktemp("run"), FinetunePlan())


def opening(page: str) -> str:
    """What stands before the first section."""
    return page.split("\n## ")[0]


@pytest.mark.parametrize(
    ("name", "plan"),
    [
        ("finetuning", FinetunePlan(sweep=True)),
        ("finetuning-partial", FinetunePlan(unmeasured=("full",), waiting=("freeze",))),
        ("finetuning-profile", FinetunePlan(modes=())),
    ],
)
def test_the_page_of_a_fine_tuning(tmp_path: Path, name: str, plan: FinetunePlan) -> None:
    page = finetuning_report(build_finetuning(tmp_path, plan))
    assert_golden(page.markdown, name)
    begun = [mode for mode in plan.modes if mode not in plan.waiting]
    assert list(page.results["mode"]) == begun


def found(run: Path, **plan: object) -> FinetuningFindings:
    return read_finetuning(build_finetuning(run, FinetunePlan(modes=(), **plan)))  # type: ignore[arg-type]


def test_the_tensors_in_reach_are_listed_with_their_reason(tmp_path: Path) -> None:
    page = section(finetuning_text(found(tmp_path)), "Gradients and")
    header = ["parameter", "shape", "count", "statistic", "frozen", "why"]
    assert line_of(page, "parameter") == header
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


def test_the_whole_table_holds_every_tensor_the_smallest_first(tmp_path: Path) -> None:
    run = found(tmp_path)
    rows = [
        line
        for line in section(finetuning_text(run), "Every tensor").splitlines()
        if line.startswith("| `")
    ]
    assert len(rows) == 7
    assert rows[0].split("`")[1] == "encoder.stem.conv1.bias"
    assert "not in a state-space block" in rows[-1]


def test_one_table_is_enough_where_the_rule_is_about_all(tmp_path: Path) -> None:
    run = found(tmp_path, rule={"scope": "all"})
    assert "Every tensor" not in finetuning_text(run)
    assert "more tensor" not in finetuning_text(run)
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
    page = finetuning_text(run)
    assert "nothing is decided" in page
    assert "| parameter" not in page
    assert "Every tensor" not in page


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1.26e-8, "1.3e-08"), (0.0, "0"), (None, "\N{EN DASH}"), (float("nan"), "\N{EN DASH}")],
)
def test_a_statistic_has_two_digits(value: float | None, shown: str) -> None:
    assert statistic(value) == shown


def test_modes_stand_beside_otsu(complete: str) -> None:
    assert line_of(complete, "mode ") == ["mode", "dice", "IoU", "dice minus full", "p"]
    assert "elaxed" not in complete
    full, freeze, otsu = (line_of(complete, f"`{name}`") for name in ("full", "freeze", "otsu"))
    assert full[3:] == ["\N{EN DASH}", "\N{EN DASH}"]
    assert freeze[3].startswith("-0.004 (-0.0")
    assert freeze[4] == "0.016"
    assert otsu[1].startswith("0.643 (")


def test_what_each_mode_cost_is_in_a_table(complete: str) -> None:
    page = section(complete, "What each mode cost")
    assert line_of(page, "mode ") == COSTS
    assert line_of(page, "`freeze`") == [
        *("`freeze`", "4.17", "0.240 s (0.237 s\N{EN DASH}0.243 s)", "198,912", "1,088"),
        *("0.796 MB", "699 MiB", "23.0 s", "6"),
    ]


def test_what_is_not_known_yet_is_a_dash(tmp_path: Path) -> None:
    plan = FinetunePlan(modes=("full", "freeze"), unmeasured=("freeze",))
    modes = section(page(tmp_path, plan), "## Modes")
    assert line_of(modes, "`freeze`")[1:] == ["\N{EN DASH}"] * 4
    costs = line_of(section(modes, "What each mode cost"), "`freeze`")
    assert costs[1:7] == ["\N{EN DASH}"] * 6
    assert costs[-1] == "2"


def test_without_a_mode_there_is_no_table(tmp_path: Path) -> None:
    waiting = page(tmp_path / "a", FinetunePlan(modes=("full",), waiting=("full",)))
    assert section(waiting, "## Modes").strip() == "None has begun yet."
    assert "## Modes" not in page(tmp_path / "b", FinetunePlan(modes=()))


def test_memory_that_nobody_measured_is_a_dash(tmp_path: Path) -> None:
    run = build_finetuning(tmp_path, FinetunePlan(modes=("full",)))
    costs = run / "full" / "costs.json"
    costs.write_text('{"trainable": 5, "optimizer_bytes": 20, "peak_memory_bytes": null}')
    text = finetuning_text(read_finetuning(run))
    assert line_of(section(text, "What each mode cost"), "`full`")[6] == "\N{EN DASH}"


def test_of_roads_the_relaxed_numbers_stand_beside_dice_and_iou(tmp_path: Path) -> None:
    found = read_finetuning(build_finetuning(tmp_path, replace(ROADS, unmeasured=("scratch",))))
    page = finetuning_text(found)
    assert line_of(page, "mode ") == [
        *("mode", "dice", "IoU", *RELAXED_NAMES, "dice minus full", "p")
    ]
    freeze = found.of("freeze")
    assert freeze is not None
    assert freeze.training.test is not None
    shown = [measure.with_range(freeze.training.test.numbers) for measure in RELAXED]
    assert line_of(page, "`freeze`")[3:5] == shown
    assert line_of(page, "`freeze`")[5].startswith("-0.004 (")
    assert line_of(page, "`scratch`")[1:] == ["\N{EN DASH}"] * 6
    assert len(line_of(page, "`otsu`")) == 7
    assert "within 3 pixels of a true one" in page


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
    assert words in opening(complete)
    assert "Partial run" not in complete


def test_a_run_that_only_profiles_says_what_would_be_frozen(tmp_path: Path) -> None:
    text = opening(page(tmp_path, FinetunePlan(modes=())))
    assert "# Fine-tuning of `umamba-pico` on `kaggle_3m`: profile of the gradients" in text
    assert "was only profiled on `kaggle_3m`" in text
    assert "would freeze 2 of 7 tensors" in text
    assert "Modes:" not in text


def test_an_unfinished_run_says_how_far_it_is(tmp_path: Path) -> None:
    text = opening(page(tmp_path, FinetunePlan(unmeasured=("full",), waiting=("freeze",))))
    assert "**Partial run.** 1 of 3 modes finished. Status: running." in text
    assert "is being fine-tuned" in text


def test_nothing_measured_and_nothing_decided_is_told(tmp_path: Path) -> None:
    plan = FinetunePlan(modes=("full",), waiting=("full",), profiled=0, decided=False)
    found = read_finetuning(build_finetuning(tmp_path, plan))
    page = opening(finetuning_text(found))
    assert page.splitlines()[0].endswith(": not measured yet")
    assert "The rule" not in page
    assert "from the same seed" not in page, "there is one mode only"


def test_a_rule_that_freezes_nothing_says_from_where_on_it_would(tmp_path: Path) -> None:
    large = ((f"{MAMBA}D", (64,), True, 2e-5), (f"{MAMBA}A_log", (64, 16), True, 4e-5))
    text = opening(page(tmp_path, FinetunePlan(tensors=large)))
    assert "froze 0 of 2 tensors" in text
    assert "So the mode freeze is full fine-tuning." in text
    assert "The smallest statistic that it looked at is 2.1e-05." in text


def test_many_held_out_groups_need_no_warning(tmp_path: Path) -> None:
    many = replace(IMAGES, groups=30, images=30)
    text = opening(page(tmp_path, FinetunePlan(modes=("full",), training=many)))
    assert "Few held-out" not in text


def test_one_group_gives_no_interval(tmp_path: Path) -> None:
    one = replace(IMAGES, grouping="patient", groups=1)
    text = opening(page(tmp_path, FinetunePlan(modes=("full",), training=one)))
    assert "From 1 held-out patient nothing can be said about others" in text


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
    text = opening(page(tmp_path, FinetunePlan(modes=("freeze",), rule=rule, record=record)))
    assert words in text
    assert "in `none`" not in text


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
    text = page(tmp_path, FinetunePlan(modes=()))
    assert "robust finetune" in section(text, "How to repeat it")
    assert "Device: cpu (2 threads)." in text
    assert "## Data" not in text
    assert "| setting" not in text


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
    assert words in page(tmp_path, FinetunePlan(modes=(), record=record))


def test_the_source_of_the_relaxed_numbers_is_told_of_roads_only(
    tmp_path: Path, complete: str
) -> None:
    found = read_finetuning(build_finetuning(tmp_path, ROADS))
    assert "Relaxed precision and recall: 3 pixels, as V. Mnih" in finetuning_text(found)
    assert "Relaxed" not in complete


DASH = "\N{EN DASH}"


def test_every_rule_is_a_line(tmp_path: Path) -> None:
    run = build_finetuning(tmp_path, FinetunePlan(modes=(), sweep=True))
    page = section(finetuning_text(read_finetuning(run)), "Time saved against")
    assert line_of(page, "rule") == ["rule", "chosen from", "frozen %", "time saved %", "dice"]
    assert line_of(page, "`smallest 0.6`") == [
        *("`smallest 0.6`", "all tensors", "40.0", f"15.0 (10.0{DASH}20.0)"),
        f"0.840 (0.800{DASH}0.870)",
    ]
    assert line_of(page, "`encoder`")[-1] == "0.830"


def test_without_a_sweep_there_is_no_section(tmp_path: Path) -> None:
    assert "Time saved against" not in page(tmp_path, FinetunePlan(modes=()))


def test_time_that_nobody_measured_is_a_dash() -> None:
    row = sweep_rows().iloc[1]
    assert saved(row.copy()) == f"3.0 (1.0{DASH}5.0)"
    row["seconds_ratio_low"] = None
    assert saved(row) == "3.0"
    row["seconds_ratio"] = None
    assert saved(row) == DASH


def test_unusual_masks_are_told(tmp_path: Path) -> None:
    words = "foreground is `128`, `255` is ignored"
    masks = MasksRecord(
        foreground=["128"], background=None, ignored=["255"], channel="colour", words=words
    )
    plan = FinetunePlan(modes=("full",), training=replace(IMAGES, dataset={"masks": masks}))
    settings = section(page(tmp_path, plan), "Recipe and settings")
    assert f"- Masks: {words}.\n" in settings


def names(gallery: FinetuningGallery) -> list[str]:
    kinds = (gallery.gradients, gallery.modes, gallery.strips, gallery.cases, gallery.tradeoff)
    return [Path(figure.path).stem for kind in kinds for figure in kind]


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (
            FinetunePlan(modes=("full", "freeze"), sweep=True),
            ["gradients", "modes", "groups", "cases-full", "cases-freeze", "sweep"],
        ),
        (FinetunePlan(modes=()), ["gradients"]),
        (FinetunePlan(modes=("full",), unmeasured=("full",), profiled=0), ["modes"]),
        (FinetunePlan(modes=("full",), waiting=("full",), profiled=0, decided=False), []),
    ],
)
def test_a_run_has_the_pictures_that_it_has_data_for(
    tmp_path: Path, plan: FinetunePlan, expected: list[str]
) -> None:
    gallery = draw_finetuning_gallery(read_finetuning(build_finetuning(tmp_path, plan)))
    assert names(gallery) == expected
    assert all((tmp_path / "figures" / f"{name}.png").is_file() for name in expected)


def drawn_by(
    monkeypatch: pytest.MonkeyPatch, run: Path, plan: FinetunePlan
) -> dict[str, tuple[object, ...]]:
    """What the drawing functions were given."""
    calls: dict[str, tuple[object, ...]] = {}
    for name in ("gradients", "modes", "strips", "tradeoff"):
        monkeypatch.setattr(
            finetuning_page,
            f"draw_{name}",
            lambda *given, name=name: calls.update({name: given}),
        )
    monkeypatch.setattr(finetuning_page, "case_figures", lambda *given: ())
    draw_finetuning_gallery(read_finetuning(build_finetuning(run, plan)))
    return calls


def test_what_is_drawn_is_what_the_files_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = drawn_by(monkeypatch, tmp_path, FinetunePlan(sweep=True))
    lines, limit = calls["gradients"][:2]
    assert isinstance(lines, list)
    assert all(isinstance(line, GradientCurve) for line in lines)
    assert [line.frozen for line in lines] == [True, True, False, False]
    assert limit == Limit("threshold 1e-06", 1e-6)
    (courses, _, panel) = calls["modes"]
    assert panel == ("val_dice", "validation dice (0 to 1)")
    assert isinstance(courses, list)
    assert all(isinstance(course, ModeCourse) for course in courses)
    assert [(c.name, c.look, c.chosen, c.frozen_at) for c in courses] == [
        ("scratch", 0, 5, None),
        ("full", 1, 5, None),
        ("freeze", 2, 5, 10),
    ]
    strips = calls["strips"][0]
    assert isinstance(strips, list)
    assert [strip.name for strip in strips] == ["scratch", "full", "freeze", "otsu"]


def test_time_saved_is_what_is_missing_from_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = drawn_by(monkeypatch, tmp_path, FinetunePlan(modes=(), sweep=True))["tradeoff"][0]
    assert isinstance(rules, list)
    assert all(isinstance(rule, Rule) for rule in rules)
    assert [rule.name for rule in rules] == [
        *("nothing frozen", "below 1e-06", "smallest 0.6", "encoder"),
    ]
    np.testing.assert_allclose(rules[2].saved, (10, 15, 20))
    assert rules[2].score == (0.8, 0.84, 0.87)
    assert rules[3].score == (0.83, 0.83, 0.83), "no interval was given"


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> FinetuningFindings:
    return read_finetuning(build_finetuning(tmp_path_factory.mktemp("run"), FinetunePlan(modes=())))


def ruled(profiled: FinetuningFindings, **changes: object) -> FinetuningFindings:
    rule = profiled.record.rule.model_copy(update=changes)
    assert isinstance(rule, RuleRecord)
    return replace(
        profiled,
        record=profiled.record.model_copy(update={"rule": rule}),
    )


def test_the_lines_are_the_rows_of_the_profile(profiled: FinetuningFindings) -> None:
    lines = curves(profiled)
    assert [line.label for line in lines] == ["A_log", "D", "conv1d.weight", "in_proj.weight"]
    assert [line.frozen for line in lines] == [True, True, False, False]
    assert profiled.profile is not None
    rows = profiled.profile[profiled.profile["name"] == "mamba_layer.mamba.D"]
    np.testing.assert_array_equal(lines[1].statistics, rows["mean_abs"])
    assert lines[1].mean == pytest.approx(rows["mean_abs"].mean())
    assert np.count_nonzero(lines[0].statistics == 0) == 3


def test_a_rule_about_all_tensors_shows_all(profiled: FinetuningFindings) -> None:
    lines = curves(ruled(profiled, scope="all"))
    assert len(lines) == 7
    assert lines[0].label == "encoder.stem.conv1.bias"
    means = [line.mean for line in lines]
    assert means == sorted(m for m in means if m is not None)


def test_a_relative_statistic_is_divided_by_the_weight(
    profiled: FinetuningFindings,
) -> None:
    plain, relative = (
        curves(profiled),
        curves(ruled(profiled, relative=True)),
    )
    np.testing.assert_allclose(2 * plain[3].statistics, relative[3].statistics)


def test_the_statistic_is_the_rule_s(profiled: FinetuningFindings) -> None:
    plain, largest = (
        curves(profiled),
        curves(ruled(profiled, kind="max_abs")),
    )
    np.testing.assert_allclose(largest[3].statistics, 6 * plain[3].statistics)


def test_a_tensor_without_any_gradient_comes_last_and_has_no_mean(
    profiled: FinetuningFindings,
) -> None:
    assert profiled.profile is not None
    rows = profiled.profile.copy()
    rows.loc[rows["name"] == "mamba_layer.mamba.D", "mean_abs"] = np.nan
    last = curves(replace(profiled, profile=rows))[-1]
    assert (last.label, last.mean) == ("D", None)
    half = profiled.profile.copy()
    half.loc[half["iteration"] > 0, "mean_abs"] = np.nan
    first = curves(replace(profiled, profile=half))[-1]
    assert first.mean == pytest.approx(np.nanmean(first.statistics)), "iterations without count not"


def test_without_a_profile_there_are_no_lines(profiled: FinetuningFindings) -> None:
    assert curves(replace(profiled, profile=None)) == []
    assert not any(line.frozen for line in curves(replace(profiled, decisions=None)))


def test_the_limit_is_the_rule_s(profiled: FinetuningFindings) -> None:
    lines = curves(profiled)
    assert rule_limit(profiled, lines) == Limit("threshold 1e-06", 1e-6)
    lowest = rule_limit(ruled(profiled, threshold=None, quantile=0.5), lines)
    assert lowest is not None
    assert lowest.value == lines[1].mean, "the largest of the frozen ones"
    assert lowest.name == f"the smallest 0.5: up to {lines[1].mean:.1e}"
    assert rule_limit(ruled(profiled, threshold=None, pattern="x"), lines) is None
    assert rule_limit(ruled(profiled, threshold=None, quantile=0.5), lines[2:]) is None


@pytest.mark.parametrize(
    ("name", "dimensions", "inside", "kind"),
    [
        ("mamba_layer.mamba.A_log", 2, True, "A_log"),
        ("layers.3.mixer.A_b_log", 2, True, "A_log"),
        ("layers.3.mixer.D_b", 1, True, "D"),
        ("layers.0.blocks.1.op.A_logs", 2, True, "A_log"),
        ("layers.0.blocks.1.op.Ds", 1, True, "D"),
        ("layers.0.blocks.1.op.dt_projs_weight", 3, True, "dt_proj"),
        ("layers.3.mixer.dt_proj_b.bias", 1, True, "dt_proj"),
        ("layers.0.blocks.1.op.x_proj_weight", 3, True, "x_proj"),
        ("layers.0.blocks.1.op.out_norm.weight", 1, True, "norm"),
        ("m.in_proj.weight", 2, True, "in_proj"),
        ("m.out_proj.weight", 2, True, "out_proj"),
        ("m.conv1d_b.bias", 1, True, "conv1d"),
        ("m.conv2d.weight", 4, True, "conv2d"),
        ("encoder.conv.weight", 4, False, "convolutions"),
        ("encoder.conv.bias", 1, False, "biases"),
        ("encoder.norm.weight", 1, False, "scales"),
        ("head.weight", 2, False, "linear layers"),
    ],
)
def test_tensors_are_told_by_their_part(
    name: str, dimensions: int, inside: bool, kind: str
) -> None:
    assert kind_of_tensor(name, dimensions, inside=inside) == kind


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["a.b.D", "a.b.conv.weight"], ["D", "conv.weight"]),
        (["a.0.D", "a.1.D"], ["0.D", "1.D"]),
        (["a.b.conv.weight"], ["conv.weight"]),
        (["D", "a.D"], ["D", "a.D"]),
        ([], []),
    ],
)
def test_names_lose_what_all_have_in_common(names: list[str], short: list[str]) -> None:
    assert short_names(names) == short

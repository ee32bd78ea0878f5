from pathlib import Path

import numpy as np
import pytest

from robustcli.reports import finetuning_gallery
from robustcli.reports.figures.gradients import Limit, Trace
from robustcli.reports.figures.modes import ModeCourse
from robustcli.reports.figures.tradeoff import Rule
from robustcli.reports.finetuning import read_finetuning
from robustcli.reports.finetuning_gallery import FinetuningGallery, draw_finetuning_gallery
from tests.reports.finetune_runs import FinetunePlan, build_finetuning


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
            finetuning_gallery,
            f"draw_{name}",
            lambda *given, name=name: calls.update({name: given}),
        )
    monkeypatch.setattr(finetuning_gallery, "case_figures", lambda *given: ())
    draw_finetuning_gallery(read_finetuning(build_finetuning(run, plan)))
    return calls


def test_what_is_drawn_is_what_the_files_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = drawn_by(monkeypatch, tmp_path, FinetunePlan(sweep=True))
    lines, limit = calls["gradients"][:2]
    assert isinstance(lines, list)
    assert all(isinstance(line, Trace) for line in lines)
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

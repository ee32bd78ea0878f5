"""Gates: parsing of limits, the numbers they are compared with, and the results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from robustcli.core.errors import RunError, UsageError
from robustcli.evaluation.cell_table import table
from robustcli.evaluation.gates import (
    Gate,
    GateScope,
    GatesRecord,
    check_gates,
    check_run,
    gate_error,
    judge,
    parse_gates,
    read_gates,
)
from robustcli.evaluation.record import EVALUATION
from robustcli.evaluation.store import Store
from robustcli.transforms.base import CLEAN, Cell
from tests.builders import IDENTITY, RunPlan, build_run, imagenet_c, model, paper21
from tests.reports.mask_runs import MaskPlan, build_masks

AFFINE, CROP = Cell("affine", 0), Cell("crop", 0)
SCOPE = GateScope("cls", ("a", "smp:Unet/resnet34"), (CLEAN, AFFINE, CROP, Cell("fog", 1)))
PLAN = RunPlan(
    models=(model("vmamba-b"), model("swin-b")),
    transforms=(IDENTITY, *paper21()[:3], *imagenet_c(severities=(1, 3))[:2]),
    images=60,
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return build_run(tmp_path / "run", PLAN)


def gate_results(run: Path, *gates: str, drop: tuple[str, ...] = ()) -> GatesRecord:
    parsed = parse_gates(gates, drop)
    return judge(run, parsed, check_run(run, parsed))


@pytest.mark.parametrize(
    ("text", "target", "severity", "name", "limit"),
    [
        ("perspective=70", "perspective", None, None, 70),
        ("vmamba-b:perspective=70.5", "perspective", None, "vmamba-b", 70.5),
        ("fog:3=70", "fog", 3, None, 70),
        ("swin-*:c_*:5=1e1", "c_*", 5, "swin-*", 10),
        ("smp:Unet/resnet34:mean=0.7", "mean", None, "smp:Unet/resnet34", 0.7),
        ("runs/a=b:clean=3", "clean", None, "runs/a=b", 3),
    ],
)
def test_a_gate_is_parsed(
    text: str, target: str, severity: int | None, name: str | None, limit: float
) -> None:
    (gate,) = parse_gates((text,), ())
    assert gate == Gate("--fail-under", text, limit, target, severity, name)
    assert not gate.is_drop


def test_a_loss_alone_is_that_of_any_transform() -> None:
    assert parse_gates((), "5") == (Gate("--fail-drop", "5", 5, "*"),)
    assert parse_gates((), ["affine=5"]) == (Gate("--fail-drop", "affine=5", 5, "affine"),)


@pytest.mark.parametrize("text", ["70", "=70", "affine=", "affine=x", "affine=nan", "affine=inf"])
def test_malformed_gates_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"cannot be read\.\nExpected \[MODEL:\]TARGET=NUMBER"):
        parse_gates((text,), ())
    with pytest.raises(UsageError, match="The drop of untransformed images is always 0"):
        parse_gates((), ("clean=5",))


@pytest.mark.parametrize(
    ("gates", "drop", "message"),
    [
        (("afine=70",), (), r"that is not in the run: `afine`\.\nDid you mean `affine`"),
        (("*noise*=70",), (), r"in the run: `\*noise\*`\.\nThe run has `affine`, `crop`, `fog`"),
        (("b:affine=70",), (), r"specifies a model that is not in the run: `b`"),
        (("clean:3=70",), (), r"`:3`, or name the transform"),
        (("fog:3=70",), (), r"a severity that is not in the run\.\n`fog` is evaluated at .* 1 "),
        (("affine=700",), (), r"out of range\.\nExpected percent of top-1, 0 to 100; got 700"),
        (("affine=0.7",), (), r"is 0\.7 percent\.(?s:.*)Write 70 for 70 %"),
        ((), ("-1",), r"out of range\.\nExpected percentage points"),
    ],
)
def test_gates_that_do_not_fit_the_run(
    gates: tuple[str, ...], drop: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        check_gates(parse_gates(gates, drop), SCOPE)


def test_gates_that_fit() -> None:
    gates = ("A:AFFINE=70", "smp:Unet/resnet34:c*=1.5", "mean=50", "identity=80", "*=0", "fog:1=9")
    check_gates(parse_gates(gates, ("0.5", "mean=3")), SCOPE)
    segmenters = GateScope("seg", ("a",), (CLEAN, AFFINE))
    check_gates(parse_gates(("affine=0.7",), ("0.05",)), segmenters)
    with pytest.raises(UsageError, match="Expected dice, 0 to 1; got 70"):
        check_gates(parse_gates(("affine=70",), ()), segmenters)
    with pytest.raises(UsageError, match="has no matching result"):
        check_gates(parse_gates((), ("5",)), GateScope("cls", ("a",), (CLEAN,)))


def test_the_numbers_are_those_of_the_table(run: Path) -> None:
    rows = table(run).set_index(["model", "transform", "severity"]).sort_index()
    record = gate_results(run, "*=0", "clean=0", drop=("100",))
    assert record.passed
    assert len(record.gates) == 2 * (5 + 1 + 5)
    gates_by_key = {(r.model, r.target, r.measure): r for r in record.gates}
    for (name, transform, severity), row in rows.iterrows():
        label = f"{transform}, severity {severity}" if severity else transform
        top1 = gates_by_key[name, "clean images" if transform == "identity" else label, "top1"]
        assert top1.value == pytest.approx(100 * row["correct"] / row["n"])
        oracle = binomtest(int(row["correct"]), int(row["n"])).proportion_ci(method="wilson")
        assert (top1.low, top1.high) == pytest.approx((100 * oracle.low, 100 * oracle.high))
        if transform != "identity":
            drop = gates_by_key[name, label, "drop"]
            assert drop.value == pytest.approx(100 * row["drop"])
            assert (drop.low, drop.high) == pytest.approx((100 * row.drop_low, 100 * row.drop_high))


def test_the_mean_is_paired_over_images(run: Path) -> None:
    """The oracle takes each image's mean over the transforms, and the interval of their mean."""
    cells = [Cell(cell_record.name, cell_record.severity) for cell_record in PLAN.transforms[1:]]

    def hits(cell: Cell) -> np.ndarray:
        rows = Store(run).rows("swin-b", cell, "cls").sort_values("image_id")
        return (rows["prediction"] == rows["target"]).to_numpy(float)

    mean_per_image = np.mean([hits(cell) for cell in cells], axis=0)
    lost_share = hits(CLEAN) - mean_per_image
    score, drop = gate_results(run, "swin-b:mean=0", drop=("swin-b:mean=100",)).gates
    for result, values in ((score, mean_per_image), (drop, lost_share)):
        assert result.value == pytest.approx(100 * values.mean())
        extended = [*values, 0 if result is score else -1, 1]  # Bonett and Price (2012)
        error = np.std(extended) / np.sqrt(len(extended))
        ends = np.clip(norm.interval(0.95, np.mean(extended), error), -1, 1)
        assert (result.low, result.high) == pytest.approx(tuple(100 * end for end in ends))
        assert result.target == "mean over 5 severities of 4 transforms"


def test_a_value_at_the_limit_passes_and_chance_is_reported(run: Path) -> None:
    row = table(run).set_index(["model", "transform"]).sort_index().loc[("vmamba-b", "affine")]
    value = float(100 * row["top1"])
    at_limit, just_below, far_below = (
        gate_results(run, f"vmamba-b:affine={limit!r}").gates[0]
        for limit in (round(value, 9), value + 1, float(100 * row["top1_high"] + 1))
    )
    assert (at_limit.passed, at_limit.certain) == (True, False)
    assert (just_below.passed, just_below.certain) == (False, False)
    assert "within sampling error: the interval contains the limit" in just_below.words
    assert (far_below.passed, far_below.certain) == (False, True)
    assert "is below the limit" in far_below.words
    assert "and the difference is larger than the sampling error" in far_below.words


def test_what_is_judged_is_written_and_told(run: Path) -> None:
    assert read_gates(run) is None
    record = gate_results(run, "vmamba-b:affine=100", "clean=2")
    assert read_gates(run) == record
    assert [result.model for result in record.failed] == ["vmamba-b"]
    error = gate_error(run, record)
    assert error.exit_code == 4
    assert error.what == f"1 of 3 gates failed in `{run}`."
    assert "`--fail-under vmamba-b:affine=100`: `vmamba-b`, affine: top-1 " in error.why


def test_segmenters_are_judged_by_dice(tmp_path: Path) -> None:
    run = build_masks(tmp_path / "run", MaskPlan())
    row = table(run).set_index("transform").loc["affine"]
    score, drop = gate_results(run, "affine=0.99", drop=("affine=0.9",)).gates
    assert (score.value, score.low, score.high) == pytest.approx(
        (row["dice"], row["dice_low"], row["dice_high"])
    )
    assert (score.unit, score.measure, score.passed) == ("dice", "dice", False)
    assert drop.value == pytest.approx(row["drop"], abs=1e-8)
    means = gate_results(run, "mean=0").gates[0]
    transformed_rows = table(run).iloc[1:]
    assert means.value == pytest.approx(transformed_rows["dice"].mean())
    assert means.low is not None
    assert means.low < means.value


def test_a_run_that_lost_a_file_is_not_judged_by_its_other_rows(run: Path) -> None:
    assert gate_results(run, "clean=0").passed
    next(run.glob("predictions/model=swin-b/transform=*/severity=3/*.parquet")).unlink()
    with pytest.raises(RunError, match=r"missing rows of `swin-b` under .*severity 3"):
        gate_results(run, "vmamba-b:clean=0")


def test_an_incomplete_run_is_not_judged(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", RunPlan(images=60, done=0.5))
    with pytest.raises(RunError, match=r"has missing rows of `vmamba-b`.*\n30 of 60 exist"):
        gate_results(run, "clean=0")
    EVALUATION.update(run, status="partial")
    with pytest.raises(RunError, match=r"is incomplete \(status: partial\)") as raised:
        gate_results(run, "clean=0")
    assert raised.value.exit_code == 1

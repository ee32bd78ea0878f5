from pathlib import Path

from robustcli.evaluation.intervals import wilson_interval
from robustcli.evaluation.metrics import table
from robustcli.reports.console import accuracy_table
from tests.builders import IDENTITY, RunPlan, build_run, imagenet_c, model, paper21


def printed(run: Path, *models: str, **changes: object) -> list[str]:
    cells = (IDENTITY, *paper21()[:4], *imagenet_c(severities=(2,))[:1])
    plan = RunPlan(models=[model(name) for name in models], transforms=cells, images=100)
    return accuracy_table(table(build_run(run, plan))).splitlines()


def test_one_model_shows_counts_interval_and_drop(tmp_path: Path) -> None:
    lines = printed(tmp_path, "vmamba-b")
    row = table(tmp_path).iloc[1]
    low, high = wilson_interval(int(row["correct"]), 100)
    assert lines[3].split() == [
        *("additive_gaussian_noise", str(row["correct"]), "of", "100", f"{row['correct']:.1f}"),
        *(f"{100 * low:.1f}-{100 * high:.1f}", f"{100 * row['drop']:.1f}"),
        f"{100 * row['retention']:.1f}",
    ]
    assert "c_gaussian_noise, severity 2" in "\n".join(lines)


def test_several_models_stand_side_by_side(tmp_path: Path) -> None:
    lines = printed(tmp_path, "vmamba-b", "swin-b")
    tops = table(tmp_path).query("transform == 'affine'")
    (line,) = [line for line in lines if line.startswith("affine")]
    assert line.split()[1::2] == [f"{100 * top1:.1f}" for top1 in tops["top1"]]


def test_the_last_lines_say_clean_best_and_worst_of_each_model(tmp_path: Path) -> None:
    lines = printed(tmp_path, "vmamba-b", "swin-b")
    numbers = table(tmp_path)
    for line, name in zip(lines[-2:], ("vmamba-b", "swin-b"), strict=True):
        rows = numbers[numbers["model"] == name]
        worst = rows.sort_values("top1").iloc[0]["transform"]
        assert line.startswith(f"{name}: {rows['correct'].iloc[0]} of 100 (identity), best ")
        assert f"worst {worst}" in line


def test_many_models_are_printed_in_several_tables(tmp_path: Path) -> None:
    names = [f"m-{i}" for i in range(6)]
    text = "\n".join(printed(tmp_path, *names))
    assert text.count("top-1 % (95 % interval)") == 2
    assert max(len(line) for line in text.splitlines()) <= 110
    assert all(name in text for name in names)


def test_the_table_is_plain_ascii_for_any_terminal(tmp_path: Path) -> None:
    assert "\n".join(printed(tmp_path, "vmamba-b")).isascii()

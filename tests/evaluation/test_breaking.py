import pandas as pd

from robustcli.evaluation.breaking import BreakingPoint, breaking_points


def cells(transform: str, retention: dict[int, float | None], model: str = "a") -> pd.DataFrame:
    return pd.DataFrame(
        {
            "model": model,
            "transform": transform,
            "severity": list(retention),
            "retention": pd.Series(list(retention.values()), dtype=float),
        }
    )


def test_the_lowest_severity_below_one_half_breaks() -> None:
    table = pd.concat(
        [
            cells("identity", {0: 1.0}),
            cells("blur", {0: 0.1, 1: 0.9, 3: 0.5, 4: 0.49, 5: 0.3}),
            cells("noise", {1: 0.9, 5: 0.6}),
            cells("noise", {1: 0.4, 5: 0.1}, model="b"),
        ]
    )
    assert breaking_points(table) == [
        BreakingPoint("a", "blur", 4, 5),
        BreakingPoint("a", "noise", None, 5),
        BreakingPoint("b", "noise", 1, 5),
    ]


def test_one_severity_is_no_scale_and_an_unmeasured_one_does_not_count() -> None:
    table = pd.concat([cells("blur", {0: 1.0, 3: 0.2}), cells("noise", {1: 0.4, 2: None})])
    assert breaking_points(table) == []

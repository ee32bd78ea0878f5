"""Rules of what to freeze, as the user gives them."""

from __future__ import annotations

import math

import pytest

from robustcli.core.errors import UsageError
from robustcli.finetuning.rules import FreezeRule, make_rule


@pytest.mark.parametrize("value", [-1e-6, math.inf, math.nan])
def test_threshold_must_be_a_size(value: float) -> None:
    with pytest.raises(UsageError, match="not a size of a gradient"):
        FreezeRule(threshold=value)


@pytest.mark.parametrize("value", [0.0, 1.0, 30.0])
def test_quantile_must_be_a_share(value: float) -> None:
    with pytest.raises(UsageError, match="not a share"):
        FreezeRule(quantile=value)


@pytest.mark.parametrize("given", [{}, {"threshold": 1e-6, "quantile": 0.3}])
def test_one_rule_at_a_time(given: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        FreezeRule(**given)  # type: ignore[arg-type]


def test_a_rule_from_options() -> None:
    assert make_rule() == FreezeRule(threshold=1e-6)
    assert make_rule(relative=0.1) == FreezeRule(threshold=0.1, relative=True)
    assert make_rule(quantile=0.3, scope="all", kind="rms") == FreezeRule(
        quantile=0.3, kind="rms", scope="all"
    )
    assert make_rule(pattern="x") == FreezeRule(pattern="x")
    with pytest.raises(UsageError, match="exclude each other"):
        make_rule(threshold=1.0, relative=1.0)
    with pytest.raises(UsageError, match="`--freeze-relative -1` is not a size"):
        make_rule(relative=-1.0)

"""A gradient profile as a file."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from robustcli.core.errors import UsageError
from robustcli.finetuning.gradients import statistics
from robustcli.finetuning.profile_file import read_profile, write_profile
from tests.finetuning.test_gradients import profiled, two_layers


def test_profile_survives_the_disk(tmp_path: Path) -> None:
    network = two_layers()
    rows = profiled(network, [[1.0, -2.0], [0.5, 0.25]])
    path = tmp_path / "gradients.parquet"
    write_profile(path, rows, "toy")
    again = statistics(read_profile(path, network, "toy"))
    assert again["0.weight"] == statistics(rows)["0.weight"]


def test_a_profile_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "gradients.parquet"
    write_profile(path, profiled(two_layers(), [[1.0, 1.0]]), "toy")
    with pytest.raises(UsageError, match=r"made of `toy`; `other` has no `0\.weight`"):
        read_profile(path, nn.Sequential(nn.Linear(5, 5)), "other")


def test_what_is_no_profile_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "gradients.parquet"
    with pytest.raises(UsageError, match="does not exist"):
        read_profile(path, two_layers(), "toy")
    path.write_bytes(b"no parquet")
    with pytest.raises(UsageError, match="cannot be read"):
        read_profile(path, two_layers(), "toy")


def test_a_profile_that_lacks_tensors_is_of_another_model(tmp_path: Path) -> None:
    rows = profiled(two_layers(), [[1.0, 1.0]])
    write_profile(tmp_path / "p.parquet", rows[rows["name"] != "1.weight"], "small")
    with pytest.raises(UsageError, match="is of another model") as caught:
        read_profile(tmp_path / "p.parquet", two_layers(), "large")
    assert "it lacks `1.weight` of shape (1, 1), which `large` has" in caught.value.why

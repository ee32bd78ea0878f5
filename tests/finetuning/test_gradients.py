"""Statistics of gradients compared with exact values, and profiles on disk."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from robustcli.core.errors import UsageError
from robustcli.finetuning.gradients import (
    GradientProfile,
    mamba_parameters,
    read_profile,
    statistics,
    unmeasured,
    write_profile,
)
from robustcli.models.architectures import architecture


def two_layers() -> nn.Sequential:
    network = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 1, bias=False))
    network[0].weight.data = torch.tensor([[3.0, 4.0]])
    return network


def profiled(network: nn.Sequential, gradients: list[list[float]]) -> pd.DataFrame:
    profile = GradientProfile(network)
    for values in gradients:
        network[0].weight.grad = torch.tensor([values])
        profile.add()
    return profile.rows()


def test_numbers_of_one_iteration() -> None:
    values = statistics(profiled(two_layers(), [[-3.0, 1.0]]))["0.weight"]
    assert math.isnan(values.by_kind["change"])
    assert {**values.by_kind, "change": 0.0} == pytest.approx(
        {"mean_abs": 2.0, "rms": math.sqrt(5), "max_abs": 3.0, "abs_mean": 1.0, "change": 0.0}
    )
    assert values.weight_rms == pytest.approx(5 / math.sqrt(2))
    assert (values.shape, values.count, values.mamba) == ((1, 2), 2, False)


def test_mean_over_iterations() -> None:
    values = statistics(profiled(two_layers(), [[2.0, 2.0], [-4.0, 4.0]]))["0.weight"]
    assert values.by_kind["mean_abs"] == pytest.approx(3.0)
    assert values.by_kind["abs_mean"] == pytest.approx(1.0)


def test_the_change_is_that_from_one_iteration_to_the_next() -> None:
    rows = profiled(two_layers(), [[2.0, 2.0], [-4.0, 4.0], [-4.0, 5.0]])
    changes = rows.loc[rows["name"] == "0.weight", "change"].tolist()
    assert math.isnan(changes[0])
    assert changes[1:] == [(6 + 2) / 2, (0 + 1) / 2]


def test_the_change_ratio_is_of_the_last_quarter_over_the_first() -> None:
    # Nine gradients with one sign and eight changes of 8, 4, 2, 2, 2, 2, 1 and 2.
    values = [0.0, 8.0, 12.0, 14.0, 16.0, 18.0, 20.0, 21.0, 23.0]
    result = statistics(profiled(two_layers(), [[value, value] for value in values]))["0.weight"]
    assert result.change_ratio == pytest.approx(((1 + 2) / 2) / ((8 + 4) / 2))


@pytest.mark.parametrize("iterations", [1, 2])
def test_one_change_has_no_ratio(iterations: int) -> None:
    values = statistics(profiled(two_layers(), [[1.0, 1.0], [2.0, 2.0]][:iterations]))
    assert math.isnan(values["0.weight"].change_ratio)


def test_a_tensor_without_gradient_is_listed_with_nothing() -> None:
    values = statistics(profiled(two_layers(), [[1.0, 1.0]]))
    assert list(values) == ["0.weight", "1.weight"]
    assert math.isnan(values["1.weight"].by_kind["mean_abs"])


def test_gradients_are_not_changed_and_later_changes_of_them_do_not_count() -> None:
    network = two_layers()
    profile = GradientProfile(network)
    gradient = torch.tensor([[1.0, 2.0]])
    network[0].weight.grad = gradient
    profile.add()
    gradient.zero_()  # as clipping does
    assert profile.rows()["max_abs"].iloc[0] == 2.0
    assert network[0].weight.grad is gradient
    profile.add()
    assert profile.rows()["change"].iloc[2] == 1.5


@pytest.mark.parametrize(
    ("name", "layer_part"),
    [("ulvm", "mamba"), ("umamba", "mamba_layer.mamba"), ("vmamba-pico", "op.")],
)
def test_scan_parameters_are_found_by_type(name: str, layer_part: str) -> None:
    network = architecture(name).build()
    scan_parameters = mamba_parameters(network)
    assert scan_parameters
    assert all(layer_part in parameter_names for parameter_names in scan_parameters)
    a_logs = {n for n, _ in network.named_parameters() if n.endswith(("A_log", "A_logs"))}
    assert a_logs <= scan_parameters
    assert scan_parameters < {n for n, _ in network.named_parameters()}


def test_without_a_profile_all_but_the_gradients_is_known() -> None:
    values = unmeasured(two_layers())
    assert list(values) == ["0.weight", "1.weight"]
    assert values["0.weight"].shape == (1, 2)
    assert values["0.weight"].weight_rms == pytest.approx(5 / math.sqrt(2))
    assert all(math.isnan(value) for value in values["0.weight"].by_kind.values())


def test_a_profile_is_unchanged_after_writing_and_reading(tmp_path: Path) -> None:
    network = two_layers()
    rows = profiled(network, [[1.0, -2.0], [0.5, 0.25]])
    path = tmp_path / "gradients.parquet"
    write_profile(path, rows, "toy")
    reread = statistics(read_profile(path, network, "toy"))
    assert reread["0.weight"] == statistics(rows)["0.weight"]


def test_a_profile_from_before_changes_were_measured_is_read(tmp_path: Path) -> None:
    network = two_layers()
    rows = profiled(network, [[1.0, -2.0], [0.5, 0.25], [0.5, 0.5]])
    path = tmp_path / "gradients.parquet"
    write_profile(path, rows, "toy")
    table = pq.read_table(path)
    pq.write_table(table.drop_columns("change"), path)
    old_values = statistics(read_profile(path, network, "toy"))["0.weight"]
    assert old_values.by_kind["rms"] == statistics(rows)["0.weight"].by_kind["rms"]
    assert math.isnan(old_values.change_ratio)


def test_a_profile_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "gradients.parquet"
    write_profile(path, profiled(two_layers(), [[1.0, 1.0]]), "toy")
    with pytest.raises(UsageError, match=r"measured on `toy`; `other` has no `0\.weight`"):
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
    with pytest.raises(UsageError, match="belongs to another model") as caught:
        read_profile(tmp_path / "p.parquet", two_layers(), "large")
    assert "it has no `1.weight` of shape (1, 1), but `large` has" in caught.value.why

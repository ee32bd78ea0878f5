"""Gradient profiles compared with exact values; frozen parameters do not move."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from robustcli.core.errors import UsageError
from robustcli.finetuning.freezing import (
    FreezeAfterProfile,
    KeepFrozen,
    ProfileGradients,
    forget_frozen,
    freeze,
    hold_statistics,
    saving,
)
from robustcli.finetuning.gradients import (
    GradientProfile,
    mamba_parameters,
    read_profile,
    statistics,
    unmeasured,
    write_profile,
)
from robustcli.finetuning.selection import Decision, FreezeRule, freeze_decisions
from robustcli.models.architectures import architecture
from robustcli.training.lit_module import average


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
    rows = profiled(network, [[1.0, -2.0], [0.5, 0.25], [0.5, 0.5]])
    path = tmp_path / "gradients.parquet"
    write_profile(path, rows, "toy")
    reread = statistics(read_profile(path, network, "toy"))
    assert not math.isnan(reread["0.weight"].change_ratio)  # NaN would equal nothing
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


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 1)
    )


def train(net: nn.Module, steps: int = 5) -> None:
    optimizer = torch.optim.SGD(
        [p for p in net.parameters() if p.requires_grad],
        lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1,
    )  # fmt: skip
    for step in range(steps):
        net.train()
        hold_statistics(net)
        x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        net(x + 3).square().mean().backward()
        optimizer.step()


def test_a_frozen_parameter_is_bit_identical_after_training() -> None:
    net = network()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    freeze(net, ["0.weight", "0.bias"])
    train(net)
    after = net.state_dict()
    assert torch.equal(after["0.weight"], before["0.weight"])
    assert torch.equal(after["0.bias"], before["0.bias"])
    assert not torch.equal(after["3.weight"], before["3.weight"])
    assert net[0].weight.grad is None


def test_earlier_momentum_does_not_move_frozen_parameters() -> None:
    """A gradient of zero is not enough: momentum and weight decay still move the weight."""
    net = network()
    train(net)
    freeze(net, ["3.weight"])
    before = net.get_parameter("3.weight").clone()
    train(net)
    assert torch.equal(net.get_parameter("3.weight"), before)


def test_running_statistics_of_a_frozen_norm_stand_still() -> None:
    net = network()
    freeze(net, ["1.weight", "1.bias"])
    train(net)
    assert torch.equal(net.get_buffer("1.running_mean"), torch.zeros(4))
    unfrozen = network()
    freeze(unfrozen, ["1.weight"])
    train(unfrozen)
    assert not torch.equal(unfrozen.get_buffer("1.running_mean"), torch.zeros(4))


def test_frozen_parameters_and_norms_of_a_weight_average_stand_still() -> None:
    net = network()
    module: Any = SimpleNamespace(averaged=average(net, 0.9))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    train(net)
    module.averaged.update_parameters(net)
    keep = KeepFrozen(net, ["0.weight", "1.weight", "1.bias"])
    keep.leave_out(trainer(optimizer), module)
    for _ in range(3):
        train(net)
        module.averaged.update_parameters(net)
    averaged, own = module.averaged.module.state_dict(), net.state_dict()
    for name in ("0.weight", "1.weight", "1.bias", "1.running_mean", "1.num_batches_tracked"):
        assert torch.equal(averaged[name], own[name]), name
    assert not torch.equal(averaged["3.weight"], own["3.weight"])


def test_a_frozen_prefix_builds_no_graph() -> None:
    net = network()
    freeze(net, ["0.weight", "0.bias", "1.weight", "1.bias"])
    assert not net[:3](torch.zeros(1, 1, 8, 8)).requires_grad
    assert net(torch.zeros(1, 1, 8, 8)).requires_grad


def test_savings_of_two_products_by_hand() -> None:
    """y = x W1 W2: 3 products of 2*1*4*4 flops for each layer, minus the gradient of x."""
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    costs = saving(net, ["0.weight"], torch.ones(1, 4), moments=2)
    product = 2 * 4 * 4
    assert costs.flops == 5 * product
    # The gradient of W1, and the backward pass to its output.
    assert costs.flops_saved == 2 * product
    assert (costs.parameters, costs.frozen) == (32, 16)
    assert (costs.optimizer_bytes, costs.optimizer_bytes_saved) == (256, 128)
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_freezing_the_last_layer_saves_only_its_own_gradient() -> None:
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    assert saving(net, ["1.weight"], torch.ones(1, 4), moments=1).flops_saved == 32


def test_mamba_alone_saves_little_of_a_u_mamba() -> None:
    """Mamba layers are a small part of the work, so freezing only them saves little."""
    net = architecture("umamba").build(features=(8, 16, 32), strides=(1, 2, 2), num_classes=1)
    names = [n for n, _ in net.named_parameters() if n.startswith("mamba_layer.")]
    costs = saving(net, names, torch.randn(1, 3, 32, 32), moments=1)
    assert 0 < costs.flops_saved < 0.1 * costs.flops


def test_unknown_name() -> None:
    with pytest.raises(KeyError):
        freeze(network(), ["9.weight"])


MODULE: Any = None


def network_profiler() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))


def trainer(optimizer: torch.optim.Optimizer | None = None) -> Any:
    return SimpleNamespace(optimizers=[] if optimizer is None else [optimizer])


def step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    net(torch.ones(3, 2) + torch.arange(3)[:, None]).square().mean().backward()
    optimizer.step()


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> list[int]:
    return [len(group["params"]) for group in optimizer.param_groups]


def test_moments_of_frozen_tensors_are_forgotten_and_empty_groups_stay() -> None:
    net = network_profiler()
    groups = [{"params": list(layer.parameters())} for layer in net]
    optimizer = torch.optim.AdamW(groups, lr=0.1, weight_decay=0.5)
    step(net, optimizer)
    net[0].requires_grad_(False)
    forget_frozen(optimizer)
    assert optimizer_tensors(optimizer) == [0, 2, 2]
    assert len(optimizer.state) == 4
    before = net[0].weight.clone()
    step(net, optimizer)
    assert torch.equal(net[0].weight, before)


def test_names_are_frozen_before_the_optimizer_and_norms_stand_still() -> None:
    net = network_profiler()
    keep = KeepFrozen(net, ["0.weight", "0.bias", "1.weight", "1.bias"])
    keep.setup(trainer(), MODULE, "fit")
    assert [n for n, p in net.named_parameters() if p.requires_grad] == ["2.weight", "2.bias"]
    net.train()
    keep.on_train_batch_start(trainer(), MODULE, None, 0)
    assert not net[1].training
    assert net[0].training


def test_a_resumed_run_has_the_same_set() -> None:
    net = network_profiler()
    keep = KeepFrozen(net)
    keep.load_state_dict(KeepFrozen(network_profiler(), ["0.weight"]).state_dict())
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    keep.on_fit_start(trainer(optimizer), MODULE)
    assert optimizer_tensors(optimizer) == [5]
    assert not net[0].weight.requires_grad


def test_the_rule_decides_once_after_the_last_profiled_step() -> None:
    net, decided = network_profiler(), list[list[Decision]]()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    profiler = ProfileGradients(net, 2)
    rule = FreezeRule(quantile=0.5, scope="all")
    decide = partial(freeze_decisions, rule=rule, heads=["2."])
    freezing = FreezeAfterProfile(net, profiler, decide, decided.append)
    for count in (0, 1, 1):
        step(net, optimizer)
        profiler.on_before_optimizer_step(trainer(), MODULE, optimizer)
        freezing.on_train_batch_end(trainer(optimizer), MODULE, None, None, 0)
        assert len(decided) == count
    (decisions,) = decided
    assert sum(d.frozen for d in decisions) == 2  # of the four that are not heads
    assert optimizer_tensors(optimizer) == [4]
    repeated = FreezeAfterProfile(net, profiler, decide, decided.append)
    repeated.load_state_dict(freezing.state_dict())
    repeated.on_train_batch_end(trainer(optimizer), MODULE, None, None, 0)
    assert (len(decided), repeated.names) == (1, [d.name for d in decisions if d.frozen])


UNUSED: Any = SimpleNamespace()


def steps(profiler: ProfileGradients, layer: nn.Linear, values: list[float]) -> None:
    for value in values:
        layer.weight.grad = torch.full_like(layer.weight, value)
        profiler.on_before_optimizer_step(UNUSED, UNUSED, UNUSED)


def test_a_profile_has_a_number_of_steps_and_is_reported_once() -> None:
    layer, profiles = nn.Linear(2, 1, bias=False), list[pd.DataFrame]()
    profiler = ProfileGradients(layer, 2, profiles.append)
    steps(profiler, layer, [1.0])
    assert not profiler.full
    steps(profiler, layer, [2.0, 3.0])
    assert profiler.full
    (rows,) = profiles
    assert rows["mean_abs"].tolist() == [1.0, 2.0]


def test_a_profile_without_a_number_does_not_end() -> None:
    layer = nn.Linear(2, 1, bias=False)
    profiler = ProfileGradients(layer)
    steps(profiler, layer, [1.0] * 5)
    assert not profiler.full
    assert len(profiler.profile) == 5


def test_steps_with_nan_gradients_are_skipped() -> None:
    """float16's loss scaler skips a step there."""
    layer = nn.Linear(2, 1, bias=False)
    profiler = ProfileGradients(layer, 2)
    steps(profiler, layer, [torch.inf, 1.0, torch.nan, 2.0])
    assert profiler.profile.rows()["mean_abs"].tolist() == [1.0, 2.0]


def test_a_resumed_profile_equals_that_of_an_uninterrupted_run() -> None:
    layer = nn.Linear(2, 1, bias=False)
    uninterrupted, first = ProfileGradients(layer, 3), ProfileGradients(layer, 3)
    steps(uninterrupted, layer, [1.0, 2.0, 4.0])
    steps(first, layer, [1.0, 2.0])
    second = ProfileGradients(layer, 3)
    second.load_state_dict(first.state_dict())
    steps(second, layer, [4.0])
    assert second.profile.rows()["change"].tolist()[1:] == [1.0, 2.0]
    assert uninterrupted.state_dict()["last"] == {}  # a full profile no longer needs them
    pd.testing.assert_frame_equal(second.profile.rows(), uninterrupted.profile.rows())

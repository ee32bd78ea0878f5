"""Checkpoints that nnU-Net's U-Mamba loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from robustcli.adapters.nnunet_models import read_nnunet
from robustcli.core.errors import RunError, UsageError
from robustcli.models.architectures import architecture
from robustcli.models.blocks import StagedUNet
from robustcli.models.umamba import build
from robustcli.nnunet.files import (
    CHECKPOINTS,
    TRAINERS,
    find_checkpoint,
    is_results_folder,
    recognised,
    trainer_of,
    upstream_state,
    write_results,
)
from robustcli.nnunet.plans_json import NnUNetPlan, make_plan
from tests.adapters.files import assert_holds
from tests.models import golden
from tests.nnunet.nnunet_files import PLAN, network

TRAINER = "nnUNetTrainerUMambaBot__nnUNetPlans__2d"


def made(folder: Path, *places: str) -> Path:
    for place in places:
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(b"")
    return folder


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        (("best", "final", "latest"), "final"),
        (("best", "latest"), "best"),
        (("latest",), "latest"),
    ],
)
def test_the_finished_one_comes_first(tmp_path: Path, there: tuple[str, ...], taken: str) -> None:
    made(tmp_path, *(f"fold_0/checkpoint_{name}.pth" for name in there))
    assert find_checkpoint(tmp_path).name == f"checkpoint_{taken}.pth"


def test_the_fold_can_be_named(tmp_path: Path) -> None:
    made(tmp_path, *(f"{TRAINER}/fold_{fold}/checkpoint_final.pth" for fold in ("0", "all")))
    assert find_checkpoint(tmp_path, fold="all").parent.name == "fold_all"
    with pytest.raises(UsageError, match=r"no fold `3`\.\nIt has `fold_0`, `fold_all`"):
        find_checkpoint(tmp_path, fold="3")


def test_several_trainings_are_a_choice_for_the_user(tmp_path: Path) -> None:
    made(tmp_path, *(f"{TRAINER}/fold_{fold}/checkpoint_final.pth" for fold in (0, 1)))
    with pytest.raises(
        UsageError, match=r"(?s)contains 2 trainings.*fold_0`.*fold_1`.*one training"
    ):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["", "nothing-here"])
def test_a_folder_without_any(tmp_path: Path, name: str) -> None:
    (tmp_path / "fold_0").mkdir()
    with pytest.raises(
        UsageError, match=r"(?s)contains no checkpoint of nnU-Net.*fold_X/checkpoint_"
    ):
        find_checkpoint(tmp_path / name)


def test_a_results_folder_is_known_from_others(tmp_path: Path) -> None:
    assert not is_results_folder(tmp_path)
    made(tmp_path, f"{TRAINER}/fold_0/checkpoint_best.pth")
    places = (tmp_path, tmp_path / TRAINER, tmp_path / TRAINER / "fold_0")
    assert all(is_results_folder(place) for place in places)
    assert not is_results_folder(tmp_path / TRAINER / "fold_0" / "checkpoint_best.pth")


@pytest.mark.parametrize(
    ("name", "variant"), [("UMambaBot_2d", "umamba"), ("UMambaEnc_2d", "umamba-enc")]
)
def test_names_shapes_and_order_are_upstreams(name: str, variant: str) -> None:
    state = upstream_state(build(variant))
    shapes = [(key, tuple(tensor.shape)) for key, tensor in state.items()]
    assert shapes == list(golden.layout(name).items())


def test_copies_share_their_storage() -> None:
    state = upstream_state(build("umamba", features=(4, 8), strides=(1, 2), patch_size=16))
    name = "encoder.stem.1.conv1"
    copies = [
        state[f"{prefix}{name}.{part}.weight"]
        for prefix in ("", "decoder.")
        for part in ("conv", "all_modules.0")
    ]
    assert len({tensor.data_ptr() for tensor in copies}) == 1
    assert not any(tensor.requires_grad for tensor in state.values())
    assert all(tensor.device == torch.device("cpu") for tensor in state.values())


SMALL = {"features": (4, 8), "strides": (1, 2), "patch_size": 16}


@pytest.mark.parametrize("model", sorted(TRAINERS))
def test_is_told_by_the_names_of_the_tensors(model: str) -> None:
    blocks = {"n_blocks": 1} if model == "resenc" else {}
    names = list(architecture(model).build(**SMALL, **blocks).state_dict())
    for trainer in ("", TRAINERS[model], f"{TRAINERS[model]}NoAMP", "nnUNetTrainerOfMine"):
        assert recognised(Path("x"), names, trainer) == model


KEYS = [
    *("network_weights", "optimizer_state", "grad_scaler_state", "logging", "_best_ema"),
    *("current_epoch", "init_args", "trainer_name", "inference_allowed_mirroring_axes"),
]


def written(folder: Path, network: StagedUNet, plan: NnUNetPlan = PLAN) -> Path:
    """The checkpoint that `write_results` writes."""
    return write_results(folder, network, plan=plan, epochs=1) / "fold_all" / CHECKPOINTS[0]


@pytest.mark.parametrize("model", ["umamba", "umamba-enc"])
def test_what_is_written_is_read_again(tmp_path: Path, model: str) -> None:
    made = network(model)
    top = write_results(tmp_path / "a", made, plan=PLAN, epochs=24)
    again = write_results(tmp_path / "b", made, plan=PLAN, epochs=24)
    for file in (*top.iterdir(), top / "fold_all" / CHECKPOINTS[0]):
        if file.is_file():
            assert file.read_bytes() == (again / file.relative_to(top)).read_bytes()
    assert top.name == f"{trainer_of(made)}__nnUNetPlans__2d"
    found = read_nnunet(tmp_path / "a")
    assert (found.model, found.fold, found.epochs) == (model, "all", 24)
    assert found.plan == PLAN
    assert json.loads((top / "plans.json").read_text()) == PLAN.plans
    restored = network(model, seed=5)
    restored.load_state_dict(dict(found.weights))
    assert_holds(restored, made.state_dict())


@pytest.mark.parametrize(
    ("name", "variant"), [("UMambaBot_2d", "umamba"), ("UMambaEnc_2d", "umamba-enc")]
)
def test_the_file_has_upstreams_keys_in_order_and_loads_the_safe_way(
    tmp_path: Path, name: str, variant: str
) -> None:
    """The layout's plan: 256 x 256 and five stages, where the planner would take seven."""
    base = make_plan((256, 256), ("R", "G", "B"), images=10**4)
    five = {
        **base.settings,
        **{key: base.settings[key][:5] for key in
           ("pool_op_kernel_sizes", "conv_kernel_sizes", "n_conv_per_stage_encoder")},
        "n_conv_per_stage_decoder": [2] * 4,
    }  # fmt: skip
    plan = type(base)({**base.plans, "configurations": {"2d": five}}, base.dataset)
    made = network(variant, plan)
    content = torch.load(written(tmp_path, made, plan), weights_only=True)
    assert list(content) == KEYS
    shapes = [(key, tuple(t.shape)) for key, t in content["network_weights"].items()]
    assert shapes == list(golden.layout(name).items())
    assert content["current_epoch"] == 1
    assert content["logging"]["dice_per_class_or_region"] == []
    assert content["init_args"]["plans"] == plan.plans
    assert set(content["init_args"]) == {
        *("plans", "configuration", "fold", "dataset_json", "unpack_dataset", "device")
    }


def test_shared_names_take_no_room_in_the_file(tmp_path: Path) -> None:
    made = network()
    file = written(tmp_path, made)
    bare = sum(t.numel() * 4 for t in made.state_dict().values())
    torch.save(made.state_dict(), tmp_path / "bare.pth")
    extra = file.stat().st_size - (tmp_path / "bare.pth").stat().st_size
    assert extra < bare / 2


def test_nnunets_optimizer_takes_the_state(tmp_path: Path) -> None:
    state = torch.load(written(tmp_path, network()), weights_only=True)["optimizer_state"]
    theirs = torch.optim.SGD(
        network().parameters(), 0.1, weight_decay=3e-5, momentum=0.99, nesterov=True
    )
    theirs.load_state_dict(state)
    assert theirs.param_groups[0]["lr"] == 0.01


def test_a_network_of_another_plan_is_refused(tmp_path: Path) -> None:
    other = make_plan((32, 32), ("MR",), images=9, features=(8, 64))
    with pytest.raises(
        UsageError,
        match=r"(?s)does not match the plan.*`features` is .*`in_channels` is 3, but 1 in the plan",
    ):
        written(tmp_path / "x", network(), other)
    assert not (tmp_path / "x").exists()


def test_a_file_system_that_refuses(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("a file where a folder should be")
    with pytest.raises(RunError, match=r"Cannot write `.*checkpoint_final\.pth`"):
        written(tmp_path / "x", network())

"""What is taken where nothing is said, and that it is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from robustcli.adapters.load import resolve
from robustcli.finetuning.config import FinetuneConfig
from robustcli.finetuning.starts import light, no_weights, usual_recipe, usual_steps, with_defaults
from robustcli.training.config import TrainConfig

AS_TYPED = FinetuneConfig(TrainConfig("umamba"))


@pytest.fixture(autouse=True)
def _nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROBUST_DATA_SEGMENTATION", raising=False)
    monkeypatch.chdir(tmp_path)


def test_the_command_as_typed_takes_what_is_bundled_and_says_so() -> None:
    said: list[str] = []
    training = with_defaults(AS_TYPED, said.append).training
    assert (training.model, training.data) == ("umamba-pico", "nuclei-mini:stained")
    assert [line.split(":")[0] for line in said] == ["No --pretrained and no --data", "No --data"]
    assert "pretrained on the fluorescence images" in said[0]
    assert "the intervals are wide" in said[1]


def test_named_weights_or_data_mean_the_network_itself() -> None:
    said: list[str] = []
    named = replace(AS_TYPED, pretrained=Path("x"))
    assert with_defaults(named, said.append).training.model == "umamba"
    elsewhere = replace(AS_TYPED, training=TrainConfig("umamba", "roads"))
    assert with_defaults(elsewhere, said.append).training == elsewhere.training
    assert len(said) == 1  # of the data of the first


def test_data_of_the_user_go_before_the_bundled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUST_DATA_SEGMENTATION", "/my/cells")
    said: list[str] = []
    assert with_defaults(AS_TYPED, said.append).training.data == "/my/cells"
    assert said[1] == (
        "No --data: using /my/cells (environment variable ROBUST_DATA_SEGMENTATION)."
    )


@pytest.mark.parametrize(("quick", "steps"), [(False, 360), (True, 60)])
def test_bundled_data_have_a_recipe_for_two_cores(quick: bool, steps: int) -> None:
    config = TrainConfig("umamba-pico", quick=quick)
    assert usual_steps(config, config, "nuclei-mini:stained") == steps
    made = light(config, "nuclei-mini:stained")
    assert (made.window, made.batch_size, made.quick) == (128, 4, False)


def test_what_the_user_says_holds() -> None:
    config = TrainConfig("umamba-pico", window=64, batch_size=2, epochs=3)
    assert light(config, "nuclei-mini") == config
    assert usual_steps(config, config, "nuclei-mini") is None


@pytest.mark.parametrize(
    ("config", "data"),
    [
        (TrainConfig("unet"), "kaggle_3m"),
        (TrainConfig("unet", protocol="paper"), "nuclei-mini"),
        (TrainConfig("unet", recipe="nnunet"), "nuclei-mini"),
    ],
)
def test_other_data_protocols_and_recipes_are_left_alone(config: TrainConfig, data: str) -> None:
    assert light(config, data) is config
    assert usual_steps(config, config, data) is None


def test_a_u_mamba_on_data_of_the_user_is_trained_usual_recipe_does_and_it_is_said() -> None:
    said: list[str] = []
    typed = TrainConfig("umamba")
    made = usual_recipe(typed, resolve("umamba"), "roads", said.append)
    assert (made.recipe, usual_steps(typed, made, "roads")) == ("nnunet", 6000)
    assert said == [
        "No --recipe: a U-Mamba is trained as nnU-Net does, which takes a GPU. `--recipe "
        "nnunet-light` is the same for a CPU, `--recipe patient` is ours."
    ]
    assert usual_steps(made, made, "roads") is None  # named by the user: its 1000 epochs
    assert usual_steps(replace(typed, epochs=3), made, "roads") is None
    assert usual_steps(replace(typed, quick=True), made, "roads") is None


@pytest.mark.parametrize(
    ("config", "data"),
    [
        (TrainConfig("unet"), "roads"),
        (TrainConfig("umamba", recipe="patient"), "roads"),
        (TrainConfig("umamba", protocol="paper"), "roads"),
    ],
)
def test_nothing_else_is(config: TrainConfig, data: str) -> None:
    said: list[str] = []
    assert usual_recipe(config, resolve(config.model), data, said.append) is config
    bundled = usual_recipe(
        TrainConfig("umamba-pico"), resolve("umamba-pico"), "nuclei-mini", said.append
    )
    assert (bundled.recipe, bundled.window) == (None, 128)
    assert said == []


def test_without_weights_the_ways_to_them_are_named() -> None:
    error = no_weights(resolve("umamba"))
    assert error.what == "`umamba` has no weights here to fine-tune."
    assert "`umamba-pico` comes with weights" in error.why
    assert "--mode scratch" in error.todo
    assert "comes with weights" not in no_weights(resolve("unet")).why

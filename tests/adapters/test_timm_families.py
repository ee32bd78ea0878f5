"""VMamba and Vim as timm models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from robustcli.adapters.networks import create_model
from robustcli.core.errors import UsageError
from robustcli.models.vim import resize_positions
from tests.adapters.files import TIMM_NAMES, assert_holds, random_state, small_timm


@pytest.mark.parametrize("name", TIMM_NAMES)
def test_official_weights_through_timm(name: str, tmp_path: Path) -> None:
    """`pretrained=True` with a local copy; the release's address is the default."""
    state = random_state(small_timm(name))
    torch.save({"model": state, "max_accuracy": 80.0}, tmp_path / "w.pth")
    for custom in (True, False):
        overlay = {"file": str(tmp_path / "w.pth"), "custom_load": custom}
        assert_holds(small_timm(name, pretrained=True, pretrained_cfg_overlay=overlay), state)


def official(path: Path) -> dict[str, Any]:
    return {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path), "custom_load": True}}


@pytest.mark.parametrize("name", TIMM_NAMES)
def test_weights_for_other_classes_and_channels_as_everywhere_in_timm(
    name: str, tmp_path: Path
) -> None:
    state = random_state(small_timm(name))
    torch.save(state, tmp_path / "w.pth")
    model = small_timm(name, num_classes=5, in_chans=1, **official(tmp_path / "w.pth"))
    conv = model.default_cfg["first_conv"] + ".weight"
    loaded, head = model.state_dict(), model.classifier_name
    for key, tensor in state.items():
        if key == conv:
            expected = tensor.sum(1, keepdim=True)
            torch.testing.assert_close(loaded[key], expected)
        elif not key.startswith(head + "."):
            torch.testing.assert_close(loaded[key], tensor, rtol=0, atol=0)
    assert model(torch.zeros(1, 1, 32, 32)).shape == (1, 5)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(random_state(small_timm("vmamba_tiny_v0")), tmp_path / "w.pth")
    with pytest.raises(UsageError, match="does not contain the weights of `TimmVMamba`"):
        small_timm("vmamba_tiny_s1l8", **official(tmp_path / "w.pth"))


def test_a_vims_positions_follow_the_image_size(tmp_path: Path) -> None:
    state = random_state(small_timm("vim_tiny"))
    torch.save(state, tmp_path / "w.pth")
    model = small_timm("vim_tiny", img_size=64, **official(tmp_path / "w.pth"))
    torch.testing.assert_close(model.pos_embed, resize_positions(state["pos_embed"], (4, 4)))


def test_an_unknown_pooling() -> None:
    with pytest.raises(
        UsageError, match=r"`global_pool=max` is unknown\.\n.*supports pooling by `avg`"
    ):
        small_timm("vmamba_tiny_v0", global_pool="max")


def test_features_that_are_not_there() -> None:
    with pytest.raises(
        UsageError, match=r"`out_indices=\(7,\)` selects features.*\nIt has 3, numbered"
    ):
        small_timm("vim_tiny", features_only=True, out_indices=(7,))
    with pytest.raises(UsageError, match=r"`out_indices=4` selects features"):
        small_timm("vim_tiny", features_only=True, out_indices=4)


def test_vim_pools_by_the_mean_when_asked() -> None:
    model = small_timm("vim_tiny", global_pool="avg").eval()
    x = torch.zeros(1, 3, 32, 32)
    with torch.no_grad():
        tokens = model.forward_features(x)
        torch.testing.assert_close(model.forward_head(tokens, pre_logits=True), tokens.mean(1))


@pytest.mark.parametrize(("name", "folder"), [("vmamba_tiny_v0", ""), ("vim_small", "/tree/main")])
def test_without_a_network_the_address_and_the_way_to_name_a_copy(
    attempts: list[object], name: str, folder: str
) -> None:
    message = rf"The weights of `{name}` cannot be loaded\.\n.*{folder}(.|\n)*overlay="
    with pytest.raises(UsageError, match=message):
        small_timm(name, pretrained=True)
    assert attempts


def test_a_vim_of_coarser_patches_is_not_stretched_over_finer_ones(tmp_path: Path) -> None:
    torch.save(create_model("vim-t").state_dict(), tmp_path / "w.pth")
    with pytest.raises(UsageError, match="These are the weights of `vim-t`: use this name"):
        timm.create_model("vim_tiny_plus", **official(tmp_path / "w.pth"))

"""Which parameters are decayed, family by family."""

import pytest
import torch

from robustcli.models import umamba, vim, vmamba
from robustcli.models.registry import ARCHITECTURES, architecture
from robustcli.models.weight_decay import (
    everything_decays,
    mamba_decays,
    parameter_groups,
    vmamba_decays,
)


def _undecayed(network, rule):
    return {name for name, p in network.named_parameters() if not rule(name, p)}


def test_vmamba_leaves_out_vectors_and_biases_but_decays_step_sizes_and_states():
    network = vmamba.build("vmamba-t-v0", depths=(1,), dim=16)
    out = _undecayed(network, vmamba_decays)
    prefix = "layers.0.blocks.0.op."
    kept = {name for name, _ in network.named_parameters()} - out
    assert {prefix + "A_logs", prefix + "dt_projs_bias", prefix + "x_proj_weight"} <= kept
    assert {prefix + "Ds", prefix + "conv2d.bias", prefix + "out_norm.weight"} <= out
    assert "classifier.head.bias" in out


def test_vim_leaves_out_states_of_both_directions_and_the_embeddings():
    out = _undecayed(vim.build("vim-t", depth=1, img_size=32), mamba_decays)
    mixer = "layers.0.mixer."
    assert out == {
        "cls_token", "pos_embed", "patch_embed.proj.bias", "head.bias", "norm_f.weight",
        "layers.0.norm.weight",
        *(mixer + p for p in ("A_log", "D", "A_b_log", "D_b", "conv1d.bias", "conv1d_b.bias")),
        mixer + "dt_proj.bias", mixer + "dt_proj_b.bias",
    }  # fmt: skip


def test_the_segmentation_projects_decay_everything():
    network = umamba.build("umamba", features=(4, 8), strides=(1, 2))
    assert _undecayed(network, everything_decays) == set()


def test_groups_hold_each_trainable_parameter_once():
    network = vim.build("vim-t", depth=2, img_size=32)
    network.head.weight.requires_grad_(False)
    groups = parameter_groups(network, 0.05, mamba_decays)
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0]
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in network.parameters() if p.requires_grad)


def test_an_optimizer_takes_the_groups_and_an_undecayed_parameter_stays():
    network = vim.build("vim-t", depth=1, img_size=32)
    before = network.layers[0].mixer.A_log.detach().clone()
    optimizer = torch.optim.SGD(parameter_groups(network, 0.5, mamba_decays), lr=1.0)
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    weight = network.head.weight.detach().clone()
    optimizer.step()
    assert torch.equal(network.layers[0].mixer.A_log, before)
    assert torch.allclose(network.head.weight, weight / 2)


def test_no_group_is_empty():
    network = umamba.build("umamba", features=(4, 8), strides=(1, 2))
    assert len(parameter_groups(network, 0.1, everything_decays)) == 1


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_names_a_rule(name):
    expected = {"vmamba": vmamba_decays, "vim": mamba_decays}
    family = architecture(name).family
    assert architecture(name).decays() is expected.get(family, everything_decays)

"""Tiny networks with weights of a fixed seed, as explanations see them."""

import torch
from torch import nn

from robustcli.explanation.network import ExplainedNetwork
from robustcli.models import vim, vmamba
from tests.models import golden

CPU = torch.device("cpu")


def explained(module: nn.Module, family: str = "test", **facts: object) -> ExplainedNetwork:
    """`module` as methods get it."""
    module.eval().requires_grad_(False)
    return ExplainedNetwork(module, CPU, facts.pop("task", "cls"), family, ("a", "b", "c"), **facts)


def small_vmamba(forward_type: str = "v05_noz", **changes: object) -> vmamba.VMamba:
    """Three blocks at two resolutions, 8 x 8 and 4 x 4 of 32 x 32 pixels, three classes."""
    options = {
        "depths": (1, 2),
        "dim": 16,
        "ssm_ratio": 1.0,
        "num_classes": 3,
        "forward_type": forward_type,
    }
    network = vmamba.build("vmamba-pico", stem_strides=(2, 2), **{**options, **changes})
    return golden.fill(network, golden.strong)


def small_vim(**changes: object) -> vim.Vim:
    """Two layers, 4 x 4 patches of 16 x 16 pixels, three classes."""
    options = {"dim": 16, "depth": 2, "patch_size": 4, "img_size": 16, "num_classes": 3}
    return golden.fill(vim.build("vim", **{**options, **changes}), golden.strong)


def without_biases(network: nn.Module) -> nn.Module:
    """`network` with additive constants at zero, in place; step sizes keep theirs."""
    with torch.no_grad():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            added = name.endswith(("bias", "running_mean", "pos_embed", "cls_token"))
            if added and not name.startswith("dt_proj") and ".dt_proj" not in name:
                tensor.zero_()
    return network


def fingerprint(network: nn.Module) -> dict[str, object]:
    """What must be the same before and after an explanation."""
    return {
        "tensors": {name: tensor.clone() for name, tensor in network.state_dict().items()},
        "gradients": [p.grad for p in network.parameters()],
        "asked": [p.requires_grad for p in network.parameters()],
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for m in network.modules()
        ],
        "modes": [m.training for m in network.modules()],
    }


def assert_unchanged(network: nn.Module, before: dict[str, object]) -> None:
    after = fingerprint(network)
    old, new = before.pop("tensors"), after.pop("tensors")
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)
    assert after == before
    assert all(gradient is None for gradient in after["gradients"])

"""The state dict of one of our U-Mambas as upstream's network has it: every name, in order.

Upstream registers most tensors under two or four names, and nnU-Net loads strictly.
"""

from __future__ import annotations

import re

from torch import Tensor, nn

from robustcli.models.aliases import canonical_key, with_aliases

_WRAPPER = re.compile(r"\.conv[12]\.(conv|norm)\.\w+$")


def upstream_state(network: nn.Module) -> dict[str, Tensor]:
    """The weights on the CPU under every name that upstream has, in upstream's order.

    Names of one tensor share its storage, also in the file.
    """
    state = {key: tensor.detach().cpu() for key, tensor in network.state_dict().items()}
    full, position = with_aliases(state), {key: i for i, key in enumerate(state)}
    first = {_block(key): i for key, i in reversed(position.items())}

    def place(key: str) -> tuple[int, int, bool, int]:
        name = canonical_key(key)
        section = 1 if key.startswith("decoder.encoder.") else 2 * key.startswith("decoder.")
        return section, first[_block(name)], ".all_modules." in key, position[name]

    return {key: full[key] for key in sorted(full, key=place)}


def _block(name: str) -> str:
    """The wrapper that registers the tensor `name` twice, else `name` itself."""
    return name.rpartition(".")[0].rpartition(".")[0] if _WRAPPER.search(name) else name

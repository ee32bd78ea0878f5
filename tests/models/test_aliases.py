"""State dicts with upstream's several names per tensor, to ours and back."""

import pytest
import torch

from robustcli.core.errors import UsageError
from robustcli.models import umamba, umambabot
from robustcli.models.aliases import canonical_key, with_aliases, without_aliases
from tests.models import golden

OFFICIAL = [("UMambaBot_2d", "umamba"), ("UMambaEnc_2d", "umamba-enc")]


def _network(variant):
    module = umambabot if "bot" in variant else umamba
    with torch.device("meta"):
        return module.build(variant)


@pytest.mark.parametrize(("name", "variant"), OFFICIAL)
def test_writes_every_official_name_of_the_plans_network(name, variant):
    full = with_aliases(_network(variant).state_dict())
    assert {key: tuple(tensor.shape) for key, tensor in full.items()} == golden.layout(name)


@pytest.mark.parametrize(("name", "variant"), OFFICIAL)
def test_each_official_alias_is_the_tensor_that_upstream_says(name, variant):
    aliases = golden.facts(f"{name}.meta.json")["aliases"]
    assert {key: canonical_key(key) for key in aliases} == aliases


@pytest.mark.parametrize("variant", ["umambabot", "umambabot_pp"])
def test_writes_every_name_of_the_papers_network(variant):
    aliases = golden.facts(f"{variant}.aliases.json")
    unique = _network(variant).state_dict()
    assert set(with_aliases(unique)) == set(unique) | set(aliases)
    assert {key: canonical_key(key) for key in aliases} == aliases


def test_either_copy_alone_is_accepted():
    network = umamba.build("umamba", features=[4, 8, 16], strides=[1, 2, 2])
    state = network.state_dict()
    full = with_aliases(state)
    first = {k: v for k, v in full.items() if "all_modules" not in k and "decoder.enc" not in k}
    second = {k: v for k, v in full.items() if k not in state}
    second |= {k: v for k, v in state.items() if k not in set(map(canonical_key, second))}
    for given in (full, first, second):
        again = without_aliases(given)
        assert again.keys() == state.keys()
        assert all(again[key] is state[key] for key in state)


def test_copies_from_a_file_need_not_share_memory():
    state = {"encoder.stem.0.conv1.weight": torch.ones(2)}
    full = {key: tensor.clone() for key, tensor in with_aliases(state).items()}
    assert len(full) == 2
    assert list(without_aliases(full)) == list(state)


def test_copies_that_differ_are_refused():
    state = {"conv1.conv.weight": torch.ones(2), "conv1.all_modules.0.weight": torch.zeros(2)}
    with pytest.raises(UsageError, match=r"(?s)two versions of `conv1.conv.weight`.*all_modules"):
        without_aliases(state)


def test_norms_outside_the_blocks_have_one_name():
    for key in ("mamba_layer.norm.weight", "encoder.mamba_layers.0.norm.bias"):
        assert "all_modules" not in " ".join(with_aliases({key: torch.zeros(1)}))
    assert list(with_aliases({"decoder.upsample_layers.0.conv.weight": torch.zeros(1)})) == [
        "decoder.upsample_layers.0.conv.weight"
    ]

"""Networks by name."""

import subprocess
import sys

import pytest
import torch

from robustcli.core.errors import UsageError
from robustcli.core.names import canonical
from robustcli.models.registry import ARCHITECTURES, architecture
from tests.models import golden


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_name_builds(name):
    with torch.device("meta"):
        network = architecture(name).build()
    assert network.num_classes == network.config.num_classes
    assert golden.parameters(network) > 0


@pytest.mark.parametrize("spelling", ["VMamba_B", "vmamba-b", " Umamba_ENC ", "ULVM-V6"])
def test_spelling_is_free(spelling):
    assert canonical(architecture(spelling).name) == canonical(spelling)


@pytest.mark.parametrize(
    ("name", "release"),
    [
        ("vmamba-t", "vmamba-t-s1l8"),
        ("vmamba-s", "vmamba-s-s2l15"),
        ("vmamba-b", "vmamba-b-s2l15"),
    ],
)
def test_the_bare_names_are_those_of_the_front_page(name, release):
    assert architecture(name).variant == release


def test_options_reach_the_configuration():
    network = architecture("umamba").build(features=[4, 8], strides=[1, 2], num_classes=5)
    assert network.config.features == (4, 8)
    assert network.decoder.seg_layers[0].out_channels == 5


def test_an_unknown_option_is_refused():
    with pytest.raises(UsageError, match=r"(?s)`ulvm_v5` has no option `branch`.*`branches`"):
        architecture("ulvm_v5").build(branch=2)


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(UsageError, match=r"(?s)No network is called `umambo`.*`umamba`"):
        architecture("umambo")


def test_no_two_names_are_spelled_alike():
    assert len({canonical(name) for name in ARCHITECTURES}) == len(ARCHITECTURES)


def test_listing_imports_no_torch():
    code = "import sys, robustcli.models.registry as r; r.architecture('vim'); print(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "'torch'" not in done.stdout
    assert "'robustcli.models.registry'" in done.stdout

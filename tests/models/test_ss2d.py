"""SS2D against the official module, with gradients."""

import pytest
import torch

from robustcli.models.vmamba import SS2D
from tests.models import golden


@pytest.mark.parametrize(
    ("tag", "options"),
    [
        ("ss2d_v05noz_r1", {"d_state": 1, "ratio": 1.0, "gate": False, "conv_bias": False}),
        ("ss2d_v05noz_r2", {"d_state": 1, "ratio": 2.0, "gate": False, "conv_bias": False}),
        ("ss2d_v0", {"d_state": 16, "ratio": 2.0, "gate": True, "conv_bias": True}),
    ],
)
def test_agrees_with_the_official_module_and_its_gradients(tag, options):
    first = not options["gate"]  # the official v0 is channels-last, as ours always is
    error = golden.worst_module_error(tag, SS2D(16, **options), channels_first=first)
    assert error < 1e-12


def test_large_activations_do_not_overflow_in_half_precision():
    mixer = golden.fill(SS2D(16, d_state=1, ratio=1.0, gate=False, conv_bias=False), golden.strong)
    x = 2e3 * golden.images(1, 20, 20, 16)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.float16):
        assert mixer(x).isfinite().all()

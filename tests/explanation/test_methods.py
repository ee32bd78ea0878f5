"""The contract of every method, and which of them a network is explained by."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from robustcli.core.errors import UsageError
from robustcli.explanation import block, input_methods
from robustcli.explanation.methods import METHODS, chosen_methods, default_methods
from robustcli.explanation.network import Attribution, ExplainedNetwork
from tests.explanation.networks import assert_unchanged, explained, fingerprint, small_vmamba
from tests.imaginary_gpu import CPU, GPU, imaginary_gpu

SIDE, PHOTOS = 32, 3


@cache
def network() -> ExplainedNetwork:
    module = small_vmamba()
    return replace(explained(module, "vmamba"), initial=small_vmamba)


@pytest.fixture(scope="module", autouse=True)
def few_steps():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(input_methods, "CLIMB_STEPS", 3)
        patch.setattr(input_methods, "PATH_POINTS", 5)
        patch.setattr(input_methods, "WINDOWS_ACROSS", 2)
        patch.setattr(block, "CURVE_STEPS", 2)
        yield


def photos() -> torch.Tensor:
    return torch.randn(PHOTOS, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


TARGETS = torch.tensor([0, 2, 1])
SEEDS = [11, 12, 13]


def computed(name: str, batch_size: int = 2, rows: slice = slice(None)) -> Attribution:
    return METHODS[name].function()(
        network(), photos()[rows], TARGETS[rows], batch_size=batch_size, seeds=SEEDS[rows]
    )


result = cache(computed)


@pytest.mark.parametrize("name", METHODS)
class TestEveryMethod:
    def test_gives_a_finite_map_per_photo_and_leaves_the_network_as_it_was(self, name):
        module = network().module
        before = fingerprint(module)
        made = computed(name)
        assert_unchanged(module, before)
        assert made.maps.shape == (PHOTOS, SIDE, SIDE)
        assert made.maps.dtype == torch.float32
        assert torch.isfinite(made.maps).all()
        assert made.maps.flatten(1).std(1).min() > 0
        assert not made.maps.requires_grad
        assert all(values.shape == (PHOTOS,) for values in made.checks.values())
        assert (made.pictures is not None) == (METHODS[name].kind == "learned")
        if made.pictures is not None:
            assert made.pictures.shape == (PHOTOS, SIDE, SIDE, 3)
            assert made.pictures.dtype == torch.uint8

    def test_does_not_depend_on_the_batch_size_or_the_other_photos(self, name):
        reference = result(name)
        # Sums over another number of images differ by rounding; three steps keep it small.
        for batch_size, rows in ((8, slice(None)), (1, slice(1, 2))):
            other = computed(name, batch_size, rows)
            close = {"rtol": 1e-3, "atol": 1e-4 * float(reference.maps.abs().max())}
            torch.testing.assert_close(other.maps, reference.maps[rows], **close)
            assert other.checks.keys() == reference.checks.keys()
            for check, values in other.checks.items():
                expected = reference.checks[check][rows]
                torch.testing.assert_close(values, expected, rtol=1e-3, atol=1e-4)

    def test_says_truly_whether_target_and_photo_matter(self, name):
        method, call = METHODS[name], METHODS[name].function()
        first = result(name).maps
        other = call(network(), photos(), TARGETS.flip(0), batch_size=2, seeds=SEEDS).maps
        assert torch.equal(first[0], other[0]) != method.targeted
        moved = call(network(), photos().flip(3), TARGETS, batch_size=2, seeds=SEEDS).maps
        assert torch.equal(first[0], moved[0]) != method.from_photo


def test_learned_pictures_depend_on_their_seed_and_raise_the_score():
    call = METHODS["maximised-noise"].function()
    first, same, other = (
        call(network(), photos(), TARGETS, batch_size=3, seeds=seeds).maps
        for seeds in (SEEDS, SEEDS, [1, 2, 3])
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    shown = network()
    black, white = shown.limits(photos())
    start = (torch.rand(PHOTOS, 3, SIDE, SIDE) * 0.2 + 0.4) * (white - black) + black
    made = METHODS["maximised-photo"].function()(shown, start, TARGETS, batch_size=3, seeds=SEEDS)
    pictures = made.pictures.permute(0, 3, 1, 2).float() / 255 * (white - black) + black
    assert (shown.score(pictures, TARGETS) > shown.score(start, TARGETS)).all()


def names(methods) -> set[str]:
    return {method.name for method in methods}


def test_globs_take_what_fits_and_names_must_fit():
    resnet = {"model": "resnet18", "family": "resnet", "task": "cls"}
    assert names(chosen_methods(["*"], **resnet)) == {
        name for name, method in METHODS.items() if not method.families
    }
    assert names(chosen_methods(["Grad_CAM", "grad*"], **resnet)) == {"grad-cam"}
    message = (
        r"(?s)`--method attention` cannot be used with `resnet18`.*made for `vmamba`, `vim` "
        r"networks.*Suitable methods: .*`occlusion`"
    )
    with pytest.raises(UsageError, match=message):
        chosen_methods(["attention"], **resnet)
    with pytest.raises(UsageError, match="explains classes, not masks"):
        chosen_methods(["maximised-noise"], model="unet", family="unet", task="seg")
    with pytest.raises(UsageError, match=r"(?s)No method is called `oclusion`.*`occlusion`"):
        chosen_methods(["oclusion"], **resnet)


def test_the_usual_methods_are_maps_of_photos():
    assert {m.kind for m in default_methods("vim", "cls")} == {"localised"}
    assert "attention" in names(default_methods("vim", "cls"))
    assert "attention" not in names(default_methods("resnet", "cls"))


# The rules of `relevance` work in backward hooks, which the imaginary device does not follow.
@pytest.mark.parametrize("name", [name for name in METHODS if name != "relevance"])
def test_no_tensors_of_two_devices_meet(name, monkeypatch):
    monkeypatch.setenv("ROBUST_SCAN_BACKEND", "cpu")
    module, initial = small_vmamba(), small_vmamba()
    on_gpu = replace(explained(module, "vmamba"), device=GPU, initial=lambda: initial)
    with imaginary_gpu(module, initial):
        pixels, targets = photos()[:1].to(GPU), TARGETS[:1].to(GPU)
        made = METHODS[name].function()(on_gpu, pixels, targets, batch_size=2, seeds=SEEDS[:1])
        curves = block.insertion_and_deletion(on_gpu, pixels, targets, made.maps, batch_size=2)
        assert (made.maps.device, curves[0].device) == (GPU, CPU)


def test_the_imaginary_gpu_tells_devices_apart():
    with imaginary_gpu():
        on_gpu, on_cpu = torch.ones(3).to(GPU), torch.ones(3)
        with pytest.raises(AssertionError, match="two devices"):
            on_gpu + on_cpu
        assert (on_gpu.cpu() + on_cpu + torch.tensor(1.0)).sum() == 9

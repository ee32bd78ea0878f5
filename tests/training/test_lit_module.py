"""Networks as Lightning modules: outputs, weight decay, and non-finite steps."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import timm
import torch
from sklearn.metrics import f1_score
from torch import Tensor, nn

from robustcli.adapters.load import resolve
from robustcli.adapters.preprocessing import Preprocessing
from robustcli.core.errors import RunError
from robustcli.models.architectures import (
    architecture,
    everything_decays,
    mamba_decays,
    vmamba_decays,
)
from robustcli.training.datamodule import constant_ids
from robustcli.training.lit_module import (
    ClassifierModule,
    SegmenterModule,
    check_gradient,
    check_loss,
    decays_of,
    gradient_norm,
    outputs,
    without_gradient_of_constants,
)
from robustcli.training.mask_samples import MaskBatch
from robustcli.training.photo_samples import PhotoBatch
from robustcli.training.recipes import CLASS_RECIPES, recipe_for


def test_everything_decays_in_every_segmenter() -> None:
    assert decays_of(resolve("ulvm_v5")) is everything_decays
    assert decays_of(resolve("smp:Unet/resnet18")) is everything_decays


def test_our_classifiers_have_their_upstreams_rules() -> None:
    assert decays_of(resolve("vmamba-pico")) is vmamba_decays
    assert decays_of(resolve("vim-t")) is mamba_decays


def test_networks_of_timm_name_parameters_without_decay() -> None:
    network = timm.create_model("vit_tiny_patch16_224", depth=1)
    decays = decays_of(resolve("vit_tiny_patch16_224"), network)
    parameters = dict(network.named_parameters())
    undecayed = {name for name, p in parameters.items() if not decays(name, p)}
    assert {"pos_embed", "cls_token", "norm.bias", "norm.weight"} <= undecayed
    assert "blocks.0.attn.qkv.weight" not in undecayed


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_message_names_images_epoch_and_step(value: float) -> None:
    ids = [f"image-{i}" for i in range(10)]
    with pytest.raises(RunError, match=r"The loss is -?(nan|inf) in epoch 3, step 121") as caught:
        check_loss(torch.tensor(value), ids, (), epoch=2, step=120)
    assert "image-0, image-1" in caught.value.why
    assert caught.value.why.endswith("image-7 and 2 more.")
    assert "`--lr`" in caught.value.todo


def test_an_image_of_one_value_is_named() -> None:
    with pytest.raises(RunError) as caught:
        check_loss(torch.tensor(math.nan), ["a", "b", "c"], ["b"], 0, 0)
    assert (
        "Images with a single value in all pixels, the most likely reason: b." in caught.value.why
    )


def test_finite_losses_and_gradients_pass() -> None:
    check_loss(torch.tensor(1e30), ["a"], (), 0, 0)
    check_gradient(torch.tensor(1e30), [], ["a"], (), 0, 0)


def test_a_gradient_names_its_parameters() -> None:
    last = nn.Linear(2, 1)
    network = nn.Sequential(nn.Linear(2, 2), last)
    network(torch.ones(1, 2)).sum().backward()
    last.bias.grad.fill_(math.nan)
    norm = gradient_norm(network.parameters())
    with pytest.raises(RunError, match=r"gradient of 1 parameters \(`1.bias`\) is not finite"):
        check_gradient(norm, network.named_parameters(), ["a"], (), 0, 0)


def test_the_norm_is_over_all_gradients_that_there_are() -> None:
    network = nn.Linear(3, 2)
    assert gradient_norm(network.parameters()) == 0
    network.weight.grad = torch.full((2, 3), 2.0)
    network.bias.grad = torch.full((2,), 1.0)
    assert gradient_norm(network.parameters()).item() == pytest.approx(math.sqrt(6 * 4 + 2))
    expected = nn.utils.get_total_norm(p.grad for p in network.parameters() if p.grad is not None)
    assert gradient_norm(network.parameters()).item() == pytest.approx(expected.item())


RECIPE = recipe_for("unet", "patient", "x")


def module(network: nn.Module | None = None, **overrides: str) -> SegmenterModule:
    channels = overrides.pop("channels", "rgb")
    return SegmenterModule(
        network or nn.Conv2d(3, 1, 1), replace(RECIPE, **overrides), channels=channels,  # type: ignore[arg-type]
        decays=everything_decays, val_groups=(),
    )  # fmt: skip


def batch(images: torch.Tensor) -> MaskBatch:
    empty_masks = torch.zeros(len(images), 1, 1, 1)
    return MaskBatch(
        images, empty_masks, ["x"] * len(images), torch.arange(len(images)), empty_masks.bool()
    )


def test_bytes_become_zero_to_one_in_the_networks_order() -> None:
    pixel = torch.tensor([255, 51, 0], dtype=torch.uint8).reshape(1, 3, 1, 1)
    assert module().pixels(batch(pixel)).flatten().tolist() == pytest.approx([1, 0.2, 0])
    bgr_pixels = module(channels="bgr").pixels(batch(pixel))
    assert bgr_pixels.flatten().tolist() == pytest.approx([0, 0.2, 1])
    resized = torch.tensor([0.5, 0.25, 1.0]).reshape(1, 3, 1, 1)
    assert torch.equal(module().pixels(batch(resized)), resized)


def test_the_recipe_sets_the_threshold() -> None:
    logits = torch.tensor([-0.1, 0.1, 0.49, 0.5])
    assert module().foreground(logits).tolist() == [False, True, True, True]
    by_logit = module(decision="logit").foreground(logits)
    assert by_logit.tolist() == [False, False, False, True]
    probabilities = module(architecture("ulvm").build())
    assert probabilities.probabilities
    assert probabilities.foreground(logits).tolist() == [False, False, False, True]


def test_frozen_parameters_stay_out_of_the_optimizer() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Conv2d(2, 1, 1))
    network[0].requires_grad_(False)
    lit_module = module(network)
    lit_module._trainer = type("T", (), {"estimated_stepping_batches": 10})()
    optimizer = lit_module.configure_optimizers()
    (group,) = optimizer["optimizer"].param_groups
    assert group["params"] == list(network[1].parameters())
    assert group["weight_decay"] == 0.01
    assert optimizer["lr_scheduler"]["interval"] == "step"


def test_one_output_at_the_size_of_the_images() -> None:
    network = architecture("segformer").build().eval()
    (output,) = outputs(network, torch.zeros(1, 3, 64, 64))
    assert output.shape == (1, 1, 64, 64)


class Deep(nn.Module):
    """Returns two classes at two resolutions."""

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Returns logits 1 for background, and 3 or 2 for foreground."""
        b, _, h, w = x.shape
        ones = torch.ones(b, 1, h, w)
        half = ones[..., ::2, ::2]
        return [torch.cat([ones, 3 * ones], 1), torch.cat([half, 2 * half], 1)]


def test_every_resolution_of_deep_supervision_as_a_foreground_logit() -> None:
    fine_logits, coarse_logits = outputs(Deep(), torch.zeros(2, 3, 8, 8))
    assert (fine_logits.shape, coarse_logits.shape) == ((2, 1, 8, 8), (2, 1, 4, 4))
    assert fine_logits.unique().tolist() == [2.0]
    assert coarse_logits.unique().tolist() == [1.0]


SIZE = 32


def gradients(network: nn.Module, images: Tensor, *, bounded: bool) -> dict[str, Tensor]:
    network.zero_grad()
    if bounded:
        with without_gradient_of_constants(network):
            out = network(images)
    else:
        out = network(images)
    levels = [out] if isinstance(out, Tensor) else out
    torch.stack([level.square().mean() for level in levels]).sum().backward()
    return {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


def norm(gradients_by_name: dict[str, Tensor]) -> float:
    return float(torch.stack([gradient.norm() for gradient in gradients_by_name.values()]).norm())


def test_constant_images_are_found_by_id() -> None:
    images = torch.randint(0, 256, (4, 3, 9, 11), dtype=torch.uint8)
    images[1] = 0
    images[2] = torch.tensor([7, 90, 255], dtype=torch.uint8)[:, None, None]
    images[3] = 8
    images[3, 2, 8, 10] = 9
    assert constant_ids(images, ["a", "b", "c", "d"]) == ("b", "c")


@pytest.mark.parametrize("name", ["ulvm", "ulvm_v5", "umamba", "umambabot", "segformer", "unet"])
def test_a_black_image_does_not_spoil_the_gradient(name: str) -> None:
    torch.manual_seed(0)
    network = architecture(name).build().train()
    images = torch.rand(2, 3, SIZE, SIZE)
    unbounded_norm = norm(gradients(network, images, bounded=False))
    images[1] = 0
    assert norm(gradients(network, images, bounded=True)) < 10 * unbounded_norm + 1


def test_the_gradient_of_a_black_image_overflows_without_the_bound() -> None:
    """Without the bound the gradient of a black image overflows float32."""
    torch.manual_seed(0)
    network = architecture("ulvm").build().train()
    assert not norm(gradients(network, torch.zeros(2, 3, SIZE, SIZE), bounded=False)) < 1e30


@pytest.mark.parametrize("name", ["ulvm", "umamba", "unet", "vmunet"])
def test_gradients_of_other_images_stay_the_same_to_the_bit(name: str) -> None:
    torch.manual_seed(0)
    network = architecture(name).build().eval()  # no dropout, no running averages
    images = torch.rand(2, 3, SIZE, SIZE)
    unbounded = gradients(network, images, bounded=False)
    bounded = gradients(network, images, bounded=True)
    assert unbounded.keys() == bounded.keys()
    assert all(torch.equal(unbounded[name], bounded[name]) for name in unbounded)


@pytest.mark.parametrize(
    "module",
    [nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True), nn.BatchNorm2d(4), nn.LayerNorm(4)],
)
def test_each_norm_passes_nothing_of_what_does_not_vary(module: nn.Module) -> None:
    images = torch.rand(2, 4, 5, 4)
    is_instance_norm = isinstance(module, (nn.GroupNorm, nn.InstanceNorm2d))
    constant = images.clone()
    constant[1 if is_instance_norm else slice(None)] = 0.5
    x = constant.requires_grad_()
    with without_gradient_of_constants(module):
        out = module(x)
    (out * torch.rand_like(out)).sum().backward()
    assert not x.grad[1].any()
    assert bool(x.grad[0].any()) is is_instance_norm


class FirstChannel(nn.Module):
    """Returns the first pixels of an image as scores, so that they define its class."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0, 0, :3]


def test_the_validation_of_a_classifier_is_that_of_all_images_of_all_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    targets, predictions = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([0, 1, 1, 2, 0])
    images = torch.zeros(5, 3, 3, 3, dtype=torch.uint8)
    images[torch.arange(5), 0, 0, predictions] = 255
    logged: dict[str, float] = {}

    def answers_of(numbers: list[list[int]], sums: list[Tensor]) -> ClassifierModule:
        """Validates these batches in one process; its sums are added to `sums`."""
        preprocessing = Preprocessing(None, 3, mean=(0.0,) * 3, std=(1.0,) * 3)
        recipe = replace(CLASS_RECIPES["classes"], batch_size=2)
        module = ClassifierModule(
            FirstChannel(), recipe, everything_decays, preprocessing=preprocessing, val_images=5
        )

        def reduce(tensor: Tensor, reduce_op: str) -> Tensor:
            assert reduce_op == "sum"
            sums.append(tensor)
            return tensor if len(sums) <= 2 else tensor + sums[-3]

        module._trainer = SimpleNamespace(strategy=SimpleNamespace(reduce=reduce))  # type: ignore[assignment]
        monkeypatch.setattr(module, "_log", lambda name, value: logged.update({name: float(value)}))
        module.on_validation_epoch_start()
        for places in numbers:
            indices = torch.tensor(places, dtype=torch.long)
            batch = PhotoBatch(images[indices], targets[indices], [str(p) for p in places], indices)
            module.validation_step(batch, 0)
        module.on_validation_epoch_end()
        return module

    answers_of([[0, 1], [2, 3], [4]], [])
    logged_alone = dict(logged)
    assert logged_alone["val_top1"] == pytest.approx(3 / 5)
    expected = f1_score(targets, predictions, average="macro")
    assert logged_alone["val_f1"] == pytest.approx(expected)
    sums: list[Tensor] = []
    answers_of([[0, 1], []], sums)  # a batch without images keeps the processes in step
    answers_of([[2, 3], [4]], sums)
    assert logged == pytest.approx(logged_alone)

"""What a segmenter answers, for images of any size."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustcli.adapters.classifier import Facts, Precision
from robustcli.adapters.entry import FOREGROUND
from robustcli.adapters.mask_preprocessing import MaskPreprocessing
from robustcli.adapters.nnunet_inference import NnUNetInference
from robustcli.adapters.nnunet_mirror import Mirrored
from robustcli.adapters.nnunet_normalise import Channel
from robustcli.adapters.nnunet_windows import covered_evenly
from robustcli.adapters.otsu import Otsu
from robustcli.adapters.segmenter import Segmenter
from robustcli.models.registry import architecture
from tests.models import golden

FACTS = Facts("toy", "toy", "toy", {}, 0, "", "", "", False, FOREGROUND, False)
SIZES = [(1, 1), (1, 90), (37, 41), (64, 64), (64, 64), (64, 65), (20, 200), (130, 70)]
CPU = torch.device("cpu")


class Pixelwise(nn.Module):
    """A logit from each pixel alone, so nothing depends on where a window lies; red counts most."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []
        self.types: list[torch.dtype] = []

    def forward(self, x: Tensor) -> Tensor:
        self.shapes.append(tuple(x.shape))
        weights = torch.tensor([5.0, 2.0, -6.0]).view(1, 3, 1, 1)
        logits = torch.nn.functional.conv2d(x, weights)
        self.types.append(logits.dtype)
        return logits


def images(sizes: list[tuple[int, int]]) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def expected(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    values = image.astype(np.float64) / 255
    logits = values @ np.array([5.0, 2.0, -6.0])
    found: NDArray[np.float32] = (1 / (1 + np.exp(-logits))).astype(np.float32)
    return found


def segmenter(network: nn.Module, window: int = 64, **changes: object) -> Segmenter:
    return Segmenter(network.eval(), MaskPreprocessing(window).changed(changes), FACTS)


@pytest.mark.parametrize("overlap", [0, 0.5, 0.75])
def test_tiles_of_a_network_without_borders_are_the_whole(overlap: float) -> None:
    given = images(SIZES)
    found = segmenter(Pixelwise(), overlap=overlap).probabilities(given)
    for answer, image in zip(found, given, strict=True):
        assert answer.dtype == np.float32
        assert answer.flags.c_contiguous
        np.testing.assert_allclose(answer, expected(image), atol=1e-6)


def test_a_batch_of_mixed_sizes_is_as_one_by_one() -> None:
    network = golden.fill(architecture("ulvm_v2").build(), golden.rule_b)
    one = segmenter(network)
    given = images(SIZES)
    for together, image in zip(one.probabilities(given), given, strict=True):
        (alone,) = one.probabilities([image])
        np.testing.assert_allclose(together, alone, atol=1e-4)  # the sums go another way
    assert one.probabilities([]) == []


def test_what_fits_the_window_goes_through_at_once() -> None:
    network = Pixelwise()
    segmenter(network).probabilities(images([(64, 64), (3, 9), (64, 64), (50, 64)]))
    assert network.shapes == [(4, 3, 64, 64)]


def test_large_images_go_through_one_after_the_other_in_few_windows() -> None:
    network = Pixelwise()
    segmenter(network).probabilities(images([(300, 200)] * 3))
    assert {shape[1:] for shape in network.shapes} == {(3, 64, 64)}
    assert max(shape[0] for shape in network.shapes) == 4


class Ramp(nn.Module):
    """Depends on where in its window a pixel lies: a flip and an overlap change what it says."""

    def forward(self, x: Tensor) -> Tensor:
        place = torch.linspace(-6, 6, x.shape[3]) + torch.linspace(0, 9, x.shape[2])[:, None]
        return x[:, :1] + place


@pytest.mark.parametrize("axes", [(), (0,), (0, 1)])
def test_nnunets_way_averages_flips_and_then_windows_before_the_sigmoid(
    axes: tuple[int, ...],
) -> None:
    (image,) = images([(64, 96)])
    how = NnUNetInference((Channel(),) * 3, axes)
    (found,) = segmenter(Ramp(), nnunet=how).probabilities([image])
    pixels = torch.from_numpy(how.normalised(image)).permute(2, 0, 1)[None]
    scores = covered_evenly(pixels, 64, Mirrored(Ramp(), axes), overlap=0.5, batch=4, device=CPU)
    np.testing.assert_allclose(found, scores[0, 0].sigmoid(), atol=1e-6)


def test_nnunets_way_pads_with_zeros_after_normalisation() -> None:
    class Seeing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            self.seen = x
            return x[:, :1]

    network, given = Seeing(), images([(64, 30)])
    how = NnUNetInference((Channel(),) * 3, ())
    segmenter(network, nnunet=how).probabilities(given)
    assert torch.all(network.seen[..., :17] == 0)
    assert torch.all(network.seen[..., 47:] == 0)
    np.testing.assert_allclose(network.seen[0, :, :, 17:47].std((1, 2), correction=0), 1, rtol=1e-4)


def test_window_zero_takes_images_as_they_are() -> None:
    network, given = Pixelwise(), images([(70, 33), (1, 2)])
    found = segmenter(network, window=0).probabilities(given)
    assert network.shapes == [(1, 3, 70, 33), (1, 3, 1, 2)]
    np.testing.assert_allclose(found[0], expected(given[0]), atol=1e-6)


def test_blue_comes_first_where_the_network_wants_it() -> None:
    given = images([(64, 64)])
    (found,) = segmenter(Pixelwise(), channels="bgr").probabilities(given)
    np.testing.assert_allclose(found, expected(given[0][..., ::-1]), atol=1e-6)


@pytest.mark.parametrize("threshold", [0.5, 0.6224593])
def test_masks_begin_at_the_threshold(threshold: float) -> None:
    """0.6224593 is the probability of a logit of 0.5."""
    levels = np.linspace(0, 255, 64 * 64).round().astype(np.uint8).reshape(64, 64, 1)
    image = np.concatenate((levels, 0 * levels, 0 * levels), 2)
    (found,) = segmenter(Pixelwise(), threshold=threshold).masks([image])
    logit = {0.5: 0.0, 0.6224593: 0.5}[threshold]
    assert found.dtype == np.bool_
    np.testing.assert_array_equal(found, 5 * levels[..., 0].astype(float) / 255 >= logit)


def test_probabilities_are_not_squashed_again() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    image[:2, :2] = 255
    (found,) = segmenter(Otsu(), window=0).probabilities([image])
    np.testing.assert_array_equal(found, image[..., 0] / 255)


def test_of_several_classes_the_background_is_the_rest() -> None:
    class Three(nn.Module):
        def forward(self, x: Tensor) -> list[Tensor]:
            scores = torch.tensor([1.0, 2.0, 0.5]).view(1, 3, 1, 1)
            return [scores.expand(len(x), 3, *x.shape[2:]), x]

    (found,) = segmenter(Three()).probabilities(images([(5, 6)]))
    scores = np.exp([1.0, 2.0, 0.5])
    np.testing.assert_allclose(found, 1 - scores[0] / scores.sum(), rtol=1e-6)


@pytest.mark.parametrize("name", ["segformer", "resnet18_seg"])
@pytest.mark.parametrize("size", [(48, 64), (64, 64)])
def test_answers_of_another_size_come_back_to_the_images(name: str, size: tuple[int, int]) -> None:
    network = golden.fill(architecture(name).build(), golden.rule_b)
    (found,) = segmenter(network).probabilities(images([size]))
    assert found.shape == size
    assert found.std() > 0


@pytest.mark.parametrize(("precision", "used"), [("bf16", torch.bfloat16), ("fp16", torch.half)])
def test_half_precision_ends_in_float32(precision: Precision, used: torch.dtype) -> None:
    network, given = Pixelwise(), images([(64, 64), (80, 64)])
    found = segmenter(network).to(CPU, precision).probabilities(given)
    assert set(network.types) == {used}
    for answer, image in zip(found, given, strict=True):
        assert answer.dtype == np.float32
        np.testing.assert_allclose(answer, expected(image), atol=2e-2)


def test_nothing_is_recorded_for_gradients() -> None:
    network = architecture("unet").build(features=(4, 8))
    one = segmenter(network, window=16)
    one.probabilities(images([(16, 16)]))
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


def test_importing_it_does_not_wait_for_monai() -> None:
    code = "import sys, robustcli.adapters.load_segmenter; print('monai' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert done.stderr == ""


def test_monai_says_nothing() -> None:
    code = (
        "import numpy, torch\nfrom tests.adapters.test_segmenter import Pixelwise, segmenter\n"
        "segmenter(Pixelwise()).probabilities([numpy.zeros((90, 90, 3), numpy.uint8)])\n"
    )
    root = golden.ROOT
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=root
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_image_beyond_the_image_itself() -> None:
    """A photo of 9 megapixels: as a whole, one of the network's maps takes 64 bytes a pixel."""
    code = (
        "import numpy, resource, torch\nfrom robustcli.models.registry import architecture\n"
        "from tests.adapters.test_segmenter import segmenter\n"
        "one = segmenter(architecture('unet').build(features=(16, 16)), window=256)\n"
        "one.probabilities([numpy.zeros((300, 300, 3), numpy.uint8)])\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\none.probabilities([numpy.zeros((3000, 3000, 3), numpy.uint8)])\n"
        "print((peak() - before) * 1024 / 9e6)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=golden.ROOT, check=True
    )
    assert float(done.stdout) < 40  # bytes a pixel: uint8 and float32 image, sums and weights

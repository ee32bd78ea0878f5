"""What a segmenter answers, for images of any size."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from skimage import filters
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_accuracy

from robustcli.adapters.catalogue import FOREGROUND
from robustcli.adapters.model import ModelFacts, Precision, shapes_only
from robustcli.adapters.segmenter import (
    LUMINANCE,
    WINDOWS,
    MaskPreprocessing,
    Otsu,
    Segmenter,
    at_size,
    covered,
    first,
    foreground_logits,
    is_probability,
    native_window,
    padded_to_window,
    raw_output,
    threshold,
)
from robustcli.core.errors import RunError, UsageError
from robustcli.models.architectures import ARCHITECTURES, architecture
from robustcli.nnunet.inference import Mirrored, covered_evenly
from robustcli.nnunet.normalisation import Channel, NnUNetInference
from tests.adapters.files import header
from tests.models import golden

SEGMENTERS = [name for name, network in ARCHITECTURES.items() if network.task == "seg"]


class Says(nn.Module):
    """Answers what it was told, whatever the input."""

    def __init__(self, answer: Tensor | list[Tensor]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, _: Tensor) -> Tensor | list[Tensor]:
        return self.answer


def scores(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def on_meta(name: str, **options: object) -> nn.Module:
    with shapes_only():
        return architecture(name).build(**options)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_of_several_classes_all_but_the_first_are_foreground(classes: int) -> None:
    logits = scores(2, classes, 4, 5)
    output = foreground_logits(logits).sigmoid()
    torch.testing.assert_close(output, logits.softmax(1)[:, 1:].sum(1, keepdim=True))


def test_one_class_stays_as_it_is_and_huge_logits_finite() -> None:
    logits = scores(2, 1, 4, 5)
    assert foreground_logits(logits) is logits
    logits = torch.tensor([3e4, -3e4]).view(1, 2, 1, 1)
    assert foreground_logits(logits).item() == -6e4


def test_of_deep_supervision_the_first_counts() -> None:
    logits = [scores(1, 1, 8, 8), scores(1, 1, 4, 4)]
    assert first(logits) is logits[0]
    assert first(tuple(logits)) is logits[0]
    assert raw_output(Says(logits), torch.zeros(1, 3, 8, 8)) is logits[0]


def test_a_quarter_is_enlarged_as_the_paper_did() -> None:
    logits = scores(2, 1, 4, 6)
    expected = F.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)
    output = raw_output(Says(logits), torch.zeros(2, 3, 16, 24))
    torch.testing.assert_close(output, expected, rtol=0, atol=0)
    assert at_size(logits, (4, 6)) is logits


def test_which_answers_are_probabilities() -> None:
    names = {name for name in SEGMENTERS if is_probability(golden.published(name))}
    assert names == {name for name in SEGMENTERS if name.startswith("ulvm")} | {"vmunet"}
    assert is_probability(Otsu())
    assert not is_probability(on_meta("vmunet", num_classes=2))  # its logits are then a softmax's


def test_networks_with_a_sigmoid_give_logits_of_several_classes() -> None:
    assert not is_probability(on_meta("ulvm", num_classes=3))
    options = {"widths": (4, 8, 8, 16, 16, 16), "branches": 2}
    several = architecture("ulvm").build(**options, num_classes=3).eval()
    network = architecture("ulvm").build(**options).eval()
    state = several.state_dict()
    head = {key: state[key][2:] for key in ("final.weight", "final.bias")}
    network.load_state_dict({**state, **head})
    x = golden.images(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(several(x)[:, 2:].sigmoid(), network(x))


CLASS_WEIGHTS = torch.tensor([[0.0, 0.0, 0.0], [5.0, 2.0, -6.0], [-3.0, 1.0, 4.0]])


class PixelClasses(nn.Module):
    """Logits of background and two classes from each pixel alone."""

    num_classes = 3

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(x, CLASS_WEIGHTS[:, :, None, None])


def most_probable(image: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """The class of each pixel, and where it is no tie, which rounding decides."""
    values = image.astype(np.float64) / 255 @ CLASS_WEIGHTS.double().numpy().T
    ordered = np.sort(values, axis=-1)
    return values.argmax(-1), ordered[..., -1] - ordered[..., -2] > 1e-4


@pytest.mark.parametrize("way", ["ours", "nnunet"])
def test_the_most_probable_class_counts_whatever_windows_cover_the_image(way: str) -> None:
    changes: dict[str, object] = {}
    if way == "nnunet":
        changes = {"nnunet": NnUNetInference((Channel("rgb_to_0_1"),) * 3, (0, 1))}
    model = segmenter(PixelClasses(), **changes).for_classes(["a", "b"])
    pictures = images([(64, 64), (20, 30), (150, 90)])
    for result, image in zip(model.predict(pictures), pictures, strict=True):
        assert result.dtype == np.uint8
        best, clear = most_probable(image)
        assert result.shape == best.shape
        assert clear.mean() > 0.99
        np.testing.assert_array_equal(result[clear], best[clear])


def test_of_several_classes_the_foreground_is_all_of_them() -> None:
    pictures = images([(40, 90)])
    several = segmenter(PixelClasses()).for_classes(["a", "b"])
    merged = segmenter(PixelClasses())  # as before: all but the first output are foreground
    assert merged.classes == ()
    np.testing.assert_allclose(
        several.probabilities(pictures)[0], merged.probabilities(pictures)[0], atol=1e-6
    )
    assert merged.predict(pictures)[0].dtype == bool


def test_classes_of_a_training_that_count_as_foreground_are_announced() -> None:
    named = header("net", mask_classes=("inside", "edge"))
    plain = segmenter(PixelClasses())
    model = Segmenter(plain.network, plain.preprocessing, plain.facts, named)
    assert model.for_classes(["inside", "edge"]).notes == ()
    for _ in range(2):
        (note,) = model.for_classes([]).notes
        assert "was trained for the classes inside, edge" in note
        assert note.endswith("all its classes count as foreground.")
    assert model.for_classes(["inside", "edge"]).notes == ()


def test_masks_need_one_output_for_each_class_and_the_background() -> None:
    with pytest.raises(UsageError, match=r"(?s)has 3 outputs; the masks have 3 classes.*need 4"):
        segmenter(PixelClasses()).for_classes(["a", "b", "c"])
    with pytest.raises(UsageError, match=r"(?s)tells foreground from background.*--foreground"):
        segmenter(Otsu(), window=0).for_classes(["a", "b"])
    with pytest.raises(UsageError, match=r"`threshold=0\.7` cannot be used with several classes"):
        segmenter(PixelClasses(), threshold=0.7).for_classes(["a", "b"])
    with pytest.raises(UsageError, match=r"(?s)returns 3 scores per pixel.*need 5"):
        raw_output(PixelClasses(), torch.zeros(1, 3, 8, 8), classes=4)


def test_the_window_of_each() -> None:
    expected = dict.fromkeys(SEGMENTERS, 256) | {"segformer": 224, "umamba-pico": 128}
    assert {name: native_window(golden.published(name)) for name in SEGMENTERS} == expected
    assert native_window(on_meta("umamba-enc", patch_size=64)) == 64
    assert native_window(on_meta("resnet18_seg", output=128)) == 128


def test_defaults_and_changes() -> None:
    default = MaskPreprocessing(256)
    assert (default.channels, default.threshold, default.overlap) == ("rgb", 0.5, 0.5)
    changed = default.changed({"window": 64, "channels": "bgr", "threshold": 0.6}, 3)[0]
    assert changed == MaskPreprocessing(64, "bgr", 0.6)
    assert default.changed({}, 3) == (default, ())
    assert default.changed({"channels": "bgr"}, 1)[0].channels == "grey"
    assert default.view == changed.view == "as-is"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"window": -1}, "`window=-1` is not a number of pixels"),
        ({"window": 10**9}, r"`window` is too large: 1,000,000,000 pixels"),
        ({"window": 2.5}, r"`window=2\.5` is not a number of pixels"),
        ({"window": True}, "`window=True` is not a number of pixels"),
        ({"channels": "grb"}, r"`channels=grb` is unknown\.\nExpected `rgb`, `bgr` or `grey`"),
        ({"threshold": 1.2}, r"`threshold=1\.2` is not a probability"),
        ({"threshold": float("nan")}, "`threshold=nan` is not a probability"),
        ({"overlap": 1}, r"`overlap=1` is out of range\.\nIt is at least 0 and below 1"),
        ({"overlap": -0.1}, r"`overlap=-0\.1` is out of range"),
        ({"resize": 256}, r"has no `resize`\.\nIt has `window`, .*images keep their size"),
        ({"mean": (0.5,) * 3}, "has no `mean`"),
    ],
)
def test_what_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        MaskPreprocessing(256).changed(change, 3)


def grey(values: NDArray[np.float64]) -> torch.Tensor:
    """An image (1, 3, H, W) whose channels are all `values` / 255."""
    return torch.from_numpy(values).float().div(255).expand(1, 3, *values.shape)


@pytest.mark.parametrize("seed", range(8))
def test_the_threshold_is_scikit_images(seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts = rng.normal(rng.uniform(20, 110), 15, 700), rng.normal(rng.uniform(120, 230), 20, 300)
    levels = np.concatenate(parts).clip(0, 255).astype(np.uint8)
    levels[:2] = 0, 255  # scikit-image counts between the extremes, here always all 256 levels
    expected = filters.threshold_otsu(levels)  # type: ignore[no-untyped-call]
    assert threshold(torch.from_numpy(levels).long()) == expected


def test_the_smaller_side_is_the_foreground() -> None:
    bright = np.full((10, 10), 40.0)
    bright[2:5, 3:6] = 200
    for image in (bright, 255 - bright):
        output = Otsu()(grey(image))[0, 0]
        assert torch.equal(output, torch.from_numpy(bright == 200).float())


def test_of_equal_sides_the_brighter_one() -> None:
    half = np.zeros((4, 4))
    half[:, 2:] = 90
    assert float(binary_accuracy(Otsu()(grey(half))[0, 0], torch.from_numpy(half == 90))) == 1


@pytest.mark.parametrize("level", [0, 100, 255])
def test_an_image_of_one_brightness_has_no_foreground(level: int) -> None:
    output = Otsu()(grey(np.full((3, 5), float(level))))
    assert output.shape == (1, 1, 3, 5)
    assert not output.any()


def test_colours_count_by_their_luminance() -> None:
    image = torch.zeros(1, 3, 2, 2)
    image[0, 1, 0, 0] = 1  # green is brighter than blue
    image[0, 2, 1:] = 1
    assert sum(LUMINANCE) == pytest.approx(1)
    assert Otsu()(image)[0, 0].tolist() == [[1, 0], [0, 0]]


def test_every_image_has_its_own_threshold() -> None:
    rng = np.random.default_rng(0)
    single, other = (grey(rng.integers(0, top, (8, 9)).astype(float)) for top in (40, 255))
    both = Otsu()(torch.cat((single, other)))
    assert torch.equal(both, torch.cat((Otsu()(single), Otsu()(other))))
    assert set(both.unique().tolist()) == {0, 1}


FACTS = ModelFacts("toy", "toy", "toy", {}, 0, "", "", "", False, FOREGROUND, False)
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
    result: NDArray[np.float32] = (1 / (1 + np.exp(-logits))).astype(np.float32)
    return result


def segmenter(
    network: nn.Module, window: int | tuple[int, int] = 64, **changes: object
) -> Segmenter:
    preprocessing, _ = MaskPreprocessing(window).changed(changes, 3)
    return Segmenter(network.eval(), preprocessing, FACTS)


def test_fp32_is_not_rounded_to_tf32_on_nvidia_gpus() -> None:
    class Asked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(torch.backends.cudnn.allow_tf32)
            return x[:, :1]

    seen: list[bool] = []
    segmenter(Asked()).predict(images([(64, 64)]))
    assert seen == [False]
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("classes", [0, 2])
def test_an_image_without_probabilities_has_no_mask(classes: int) -> None:
    class Overflowing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            scores = x.new_zeros(len(x), classes + 1 if classes else 1, *x.shape[2:])
            return torch.where(x.mean((1, 2, 3), keepdim=True) > 0.9, torch.nan, scores)

    model = segmenter(Overflowing())
    model.classes = tuple("ab"[:classes])
    dark, bright = np.zeros((64, 64, 3), np.uint8), np.full((70, 64, 3), 255, np.uint8)
    model.predict([dark])
    with pytest.raises(RunError, match="returns NaN"):
        model.predict([dark, bright])


@pytest.mark.parametrize("overlap", [0, 0.5, 0.75])
def test_tiles_of_a_network_without_borders_are_the_whole(overlap: float) -> None:
    pictures = images(SIZES)
    model = segmenter(Pixelwise(), overlap=overlap).probabilities(pictures)
    for answer, image in zip(model, pictures, strict=True):
        assert answer.dtype == np.float32
        assert answer.flags.c_contiguous
        np.testing.assert_allclose(answer, expected(image), atol=1e-6)


def test_a_batch_of_mixed_sizes_is_as_one_by_one() -> None:
    network = golden.fill(architecture("ulvm_v2").build(), golden.rule_b)
    model = segmenter(network)
    pictures = images(SIZES)
    for together, image in zip(model.probabilities(pictures), pictures, strict=True):
        (alone,) = model.probabilities([image])
        np.testing.assert_allclose(together, alone, atol=1e-4)  # the sums go another way
    assert model.probabilities([]) == []


def test_small_images_go_through_at_once_and_large_ones_in_as_many_windows_as_suit_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = Pixelwise()
    segmenter(network).probabilities(images([(64, 64), (3, 9), (64, 64), (50, 64)]))
    assert network.shapes == [(4, 3, 64, 64)]
    network = Pixelwise()
    segmenter(network).probabilities(images([(300, 200)] * 3))
    assert {shape[1:] for shape in network.shapes} == {(3, 64, 64)}
    assert max(shape[0] for shape in network.shapes) == 4
    monkeypatch.setitem(WINDOWS, "cpu", 32)  # as on a GPU
    network = Pixelwise()
    segmenter(network).probabilities(images([(300, 200)]))
    assert [len(shape) and shape[0] for shape in network.shapes] == [32, 22]


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
    (model,) = segmenter(Ramp(), nnunet=how).probabilities([image])
    pixels = torch.from_numpy(how.normalised(image)).permute(2, 0, 1)[None]
    scores = covered_evenly(
        pixels, (64, 64), Mirrored(Ramp(), axes), overlap=0.5, batch=4, device=CPU
    )
    np.testing.assert_allclose(model, scores[0, 0].sigmoid(), atol=1e-6)


def test_nnunets_way_pads_with_zeros_after_normalisation() -> None:
    class Seeing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            self.seen = x
            return x[:, :1]

    network, pictures = Seeing(), images([(64, 30)])
    how = NnUNetInference((Channel(),) * 3, ())
    segmenter(network, nnunet=how).probabilities(pictures)
    assert torch.all(network.seen[..., :17] == 0)
    assert torch.all(network.seen[..., 47:] == 0)
    np.testing.assert_allclose(network.seen[0, :, :, 17:47].std((1, 2), correction=0), 1, rtol=1e-4)


def test_window_zero_takes_images_as_they_are() -> None:
    network, pictures = Pixelwise(), images([(70, 33), (1, 2)])
    model = segmenter(network, window=0).probabilities(pictures)
    assert network.shapes == [(1, 3, 70, 33), (1, 3, 1, 2)]
    np.testing.assert_allclose(model[0], expected(pictures[0]), atol=1e-6)


def test_blue_comes_first_where_the_network_wants_it() -> None:
    pictures = images([(64, 64)])
    (model,) = segmenter(Pixelwise(), channels="bgr").probabilities(pictures)
    np.testing.assert_allclose(model, expected(pictures[0][..., ::-1]), atol=1e-6)


@pytest.mark.parametrize("threshold", [0.5, 0.6224593])
def test_masks_begin_at_the_threshold(threshold: float) -> None:
    """0.6224593 is the probability of a logit of 0.5."""
    levels = np.linspace(0, 255, 64 * 64).round().astype(np.uint8).reshape(64, 64, 1)
    image = np.concatenate((levels, 0 * levels, 0 * levels), 2)
    (model,) = segmenter(Pixelwise(), threshold=threshold).predict([image])
    logit = {0.5: 0.0, 0.6224593: 0.5}[threshold]
    assert model.dtype == np.bool_
    np.testing.assert_array_equal(model, 5 * levels[..., 0].astype(float) / 255 >= logit)


def test_probabilities_are_not_squashed_again() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    image[:2, :2] = 255
    (output,) = segmenter(Otsu(), window=0).probabilities([image])
    np.testing.assert_array_equal(output, image[..., 0] / 255)


@pytest.mark.parametrize("name", ["segformer", "resnet18_seg"])
def test_answers_of_another_size_come_back_to_the_images(name: str) -> None:
    network, sizes = architecture(name).build(), [(48, 64), (64, 64)]
    probabilities = segmenter(network).probabilities(images(sizes))
    assert [p.shape for p in probabilities] == sizes
    assert all(p.std() > 0 for p in probabilities)
    with torch.no_grad():
        assert raw_output(network, golden.images(1, 3, 64, 96)).shape == (1, 1, 64, 96)


@pytest.mark.parametrize(("precision", "used"), [("bf16", torch.bfloat16), ("fp16", torch.half)])
def test_half_precision_ends_in_float32(precision: Precision, used: torch.dtype) -> None:
    network, pictures = Pixelwise(), images([(64, 64), (80, 64)])
    model = segmenter(network).to(CPU, precision).probabilities(pictures)
    assert set(network.types) == {used}
    for answer, image in zip(model, pictures, strict=True):
        assert answer.dtype == np.float32
        np.testing.assert_allclose(answer, expected(image), atol=2e-2)


def test_group_norms_are_as_exact_as_on_contiguous_images() -> None:
    """With the channels of a pixel next to each other, torch's group norm is off by 1e-2 here."""
    network = nn.GroupNorm(1, 3)
    pixels = torch.randint(200, 202, (2, 64, 64, 3), generator=torch.Generator().manual_seed(0))
    images = pixels.permute(0, 3, 1, 2)
    exact = nn.GroupNorm(1, 3).double()(images.double() / 255)
    with torch.inference_mode():
        model = segmenter(network)
        assert float((network(model.normalised(images)) - exact).abs().max()) < 1e-3
        difference = float((network(images.float() / 255) - exact).abs().max())
    assert difference > 3e-3, "otherwise the copy is no longer needed"


@pytest.mark.slow  # imports torch and monai in a new process, ten seconds
def test_monai_is_not_waited_for_and_says_nothing() -> None:
    code = (
        "import sys, numpy, torch\nfrom tests.adapters.test_segmenter import Pixelwise, segmenter\n"
        "assert 'monai' not in sys.modules\n"
        "segmenter(Pixelwise()).probabilities([numpy.zeros((90, 90, 3), numpy.uint8)])\n"
        "assert 'monai' in sys.modules\n"
    )
    # Python prints the warnings that are meant for users, and hides those for developers.
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=golden.ROOT
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_image_beyond_the_image_itself() -> None:
    """A photo of 9 megapixels: as a whole, one of the network's maps takes 64 bytes a pixel."""
    code = (
        "import numpy, resource, torch\nfrom robustcli.models.architectures import architecture\n"
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


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (2, 3), (7, 8), (8, 20), (31, 5)])
def test_a_padded_image_holds_the_original_in_its_middle(height: int, width: int) -> None:
    (original,) = images([(height, width)])
    padded = padded_to_window(original, (8, 8))
    assert padded.image.shape == (max(8, height), max(8, width), 3)
    cut = padded.image[padded.top : padded.top + height, padded.left : padded.left + width]
    np.testing.assert_array_equal(cut, original)
    assert padded.top == max(0, 8 - height) // 2
    assert padded.left == max(0, 8 - width) // 2


def test_padding_is_a_reflection() -> None:
    row = np.repeat(np.arange(5, dtype=np.uint8)[None, :, None], 3, 2)
    assert padded_to_window(row, (9, 9)).image[4, :, 0].tolist() == [2, 1, 0, 1, 2, 3, 4, 3, 2]
    assert padded_to_window(row[:, :2], (8, 8)).image[0, :, 0].tolist() == [1, 0, 1, 0, 1, 0, 1, 0]
    assert set(padded_to_window(row[:, 4:], (8, 8)).image.flat) == {4}


def test_what_is_large_enough_is_left_alone() -> None:
    (original,) = images([(8, 9)])
    assert padded_to_window(original, (8, 8)).image is original
    assert padded_to_window(original, (0, 0)).image is original


def by_hand(size: tuple[int, int], window: int, starts: tuple[list[int], list[int]]) -> Tensor:
    """The window's own coordinates, averaged with weights exp(-d^2 / 2 (window / 8)^2).

    As in the library, no weight is below a thousandth.
    """
    at = torch.arange(window, dtype=torch.float64) - (window - 1) / 2
    bell = torch.exp(-(at**2) / (2 * (window / 8) ** 2))
    weight, answer = (bell[:, None] * bell).clamp(min=1e-3), at[:, None] + 10 * at
    total, norm = torch.zeros(2, *size, dtype=torch.float64)
    for top in starts[0]:
        for left in starts[1]:
            total[top : top + window, left : left + window] += weight * answer
            norm[top : top + window, left : left + window] += weight
    result: Tensor = total / norm
    return result


def test_overlapping_windows_are_averaged_with_gaussian_weights() -> None:
    """Window 16, half overlap: starts at 0, 8, 16 of 32 and at 0, 8, 9 of 25 pixels."""

    def coordinates(windows: Tensor) -> Tensor:
        at = torch.arange(16.0) - 7.5
        return (at[:, None] + 10 * at).expand(len(windows), 1, 16, 16).clone()

    averaged = covered(
        torch.zeros(1, 3, 32, 25), (16, 16), coordinates, overlap=0.5, batch=4, device=CPU
    )
    expected = by_hand((32, 25), 16, ([0, 8, 16], [0, 8, 9]))
    torch.testing.assert_close(averaged[0, 0].double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("size", [(70, 150), (20, 40), (48, 64), (48, 30), (100, 64)])
def test_windows_with_two_sides_are_those_of_the_plan(size: tuple[int, int]) -> None:
    """As by hand: z-scores, zeros around small images, then the mean of evenly spaced windows."""
    shapes: set[tuple[int, ...]] = set()

    class Recording(Ramp):
        def forward(self, x: Tensor) -> Tensor:
            shapes.add(tuple(x.shape[1:]))
            return super().forward(x)

    inference = NnUNetInference((Channel("zscore"),) * 3, ())
    model = segmenter(Recording(), (48, 64), nnunet=inference)
    (picture,) = images([size])
    (answer,) = model.probabilities([picture])
    assert shapes == {(3, 48, 64)}
    padded = padded_to_window(inference.normalised(picture), (48, 64), by="constant")
    pixels = torch.from_numpy(padded.image).permute(2, 0, 1)[None].float()
    scores = covered_evenly(pixels, (48, 64), Ramp(), overlap=0.5, batch=4, device=CPU)
    if pixels.shape[2:] == (48, 64):
        scores = Ramp()(pixels)
    height, width = size
    expected = scores.sigmoid()[0, 0, padded.top :, padded.left :][:height, :width]
    np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("window", [-1, True, 1.5, (8,), (8, 0), (8, 8, 8), (8, "8")])
def test_a_window_is_a_side_or_a_height_and_width(window: Any) -> None:
    with pytest.raises(UsageError, match="is not a number of pixels"):
        MaskPreprocessing(window)


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_no_more_windows_at_a_time_than_said(batch: int) -> None:
    seen: list[tuple[int, ...]] = []

    def brightness(windows: Tensor) -> Tensor:
        seen.append(tuple(windows.shape))
        return windows.mean(1, keepdim=True)

    images = torch.rand(2, 3, 20, 33, generator=torch.Generator().manual_seed(0))
    averaged = covered(images, (8, 8), brightness, overlap=0.25, batch=batch, device=CPU)
    torch.testing.assert_close(averaged, images.mean(1, keepdim=True))
    assert {shape[1:] for shape in seen} == {(3, 8, 8)}
    assert max(shape[0] for shape in seen) <= batch

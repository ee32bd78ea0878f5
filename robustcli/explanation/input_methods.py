"""Methods that vary the input: integrated gradients, occlusion, and activation maximisation.

Integrated gradients, and occlusion with a sliding window, are computed with captum. It gets one
photo at a time, and evaluates `batch_size` steps or windows of it per forward pass. This bounds
memory, and the result does not depend on `batch_size`.

Activation maximisation optimises pictures to maximise the score of a class. Source: Olah et al.,
"Feature visualization" (Distill 2017). The picture is the sigmoid of an inverse Fourier transform,
whose coefficients are optimised with step sizes that decrease with their frequency. The picture is
shifted at random before every step, and differences of neighbouring pixels are penalised. If the
optimisation starts from a photo, the transform is added to the photo, and differences from the
photo are penalised too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from captum.attr import IntegratedGradients, Occlusion
from torch import Tensor

from robustcli.explanation.network import Attribution, ExplainedNetwork, batched

# Integrated gradients and occlusion.

PATH_POINTS = 64
"""Number of points of the Gauss-Legendre rule on the path from the baseline to the photo.

For a MobileNetV2, the median difference between the sum of a map and the change of the score is
10 % with 32 points and 4 % with 64."""
WINDOWS_ACROSS = 4
"""The window's side is 1 / WINDOWS_ACROSS of the image's; it moves by half of the window's side."""


def integrated_gradients(
    explained: ExplainedNetwork,
    pixels: Tensor,
    targets: Tensor,
    *,
    batch_size: int,
    seeds: Sequence[int] = (),
) -> Attribution:
    """Gradients along the straight path from the mean colour to the photo, summed over channels.

    The sum of an exact map is the score of the photo minus the score of the baseline.
    `completeness_error` is the deviation of the sum from this difference, as a share of it.
    """
    method = IntegratedGradients(explained.score)

    def attribute_photo(photo: Tensor, target: Tensor) -> Tensor:
        attributed: Tensor = method.attribute(
            photo, explained.mean_colour(photo), additional_forward_args=target,
            n_steps=PATH_POINTS, method="gausslegendre", internal_batch_size=batch_size,
        )  # fmt: skip
        return attributed.detach()

    maps = _photo_by_photo(attribute_photo, pixels, targets).sum(1)
    photos, baselines = _scores(explained, pixels, targets, batch_size)
    due = photos - baselines
    error = (maps.flatten(1).cpu().double().sum(1) - due).abs() / due.abs().clamp(min=1e-6)
    return Attribution(maps.float(), {"completeness_error": error})


def _scores(
    explained: ExplainedNetwork, pixels: Tensor, targets: Tensor, batch_size: int
) -> tuple[Tensor, Tensor]:
    """The scores (N,) of the photos and of their baselines (mean colour), in float64."""
    parts = batched(len(pixels), batch_size)
    with torch.no_grad():
        photos = [explained.score(pixels[part], targets[part]) for part in parts]
        bare = [explained.score(explained.mean_colour(pixels[p]), targets[p]) for p in parts]
    # On the CPU: not every device has float64.
    return torch.cat(photos).cpu().double(), torch.cat(bare).cpu().double()


def occlusion(
    explained: ExplainedNetwork,
    pixels: Tensor,
    targets: Tensor,
    *,
    batch_size: int,
    seeds: Sequence[int] = (),
) -> Attribution:
    """The decrease of the score when a window of the mean colour covers a part of the photo.

    The value of a pixel is the mean over all windows that cover it.
    """
    method = Occlusion(explained.score)
    channels, *sides = pixels.shape[1:]
    window = [max(1, side // WINDOWS_ACROSS) for side in sides]

    def attribute_photo(photo: Tensor, target: Tensor) -> Tensor:
        attributed: Tensor = method.attribute(
            photo, (channels, *window), (channels, *(max(1, side // 2) for side in window)),
            baselines=explained.mean_colour(photo), additional_forward_args=target,
            perturbations_per_eval=batch_size,
        )  # fmt: skip
        return attributed.detach()

    # A window covers all channels, so the maps of all channels are equal.
    return Attribution(_photo_by_photo(attribute_photo, pixels, targets)[:, 0].float())


def _photo_by_photo(
    attribute_photo: Callable[[Tensor, Tensor], Tensor], pixels: Tensor, targets: Tensor
) -> Tensor:
    """Applies `attribute_photo` to each photo and target; returns (N, C, H, W)."""
    rows = range(len(pixels))
    return torch.cat(
        [attribute_photo(pixels[row : row + 1], targets[row : row + 1]) for row in rows]
    )


# Activation maximisation.

CLIMB_STEPS = 32
LEARNING_RATE = 0.012
JITTER = 16
"""The picture is shifted by up to 1 / JITTER of its side, in each direction."""
VARIATION = 3.0
"""Weight of the mean squared difference of neighbouring pixels (values in [0, 1]), times 100."""
LEAVING = 3.0
"""Weight of the mean squared difference from the photo, times 100."""
_NOISE = 0.01  # standard deviation of the initial coefficients, if started from noise
_LEAST, _MOST = 0.02, 0.98  # range of a photo's values, so that their logit is finite


def from_photo(
    explained: ExplainedNetwork,
    pixels: Tensor,
    targets: Tensor,
    *,
    batch_size: int,
    seeds: Sequence[int],
) -> Attribution:
    """Optimises pictures from the photos; maps contain the change of each pixel."""
    black, white = explained.limits(pixels)
    photos = ((pixels - black) / (white - black)).clamp(0, 1)
    return _maximised(explained, photos, targets, batch_size, seeds, start=photos)


def from_noise(
    explained: ExplainedNetwork,
    pixels: Tensor,
    targets: Tensor,
    *,
    batch_size: int,
    seeds: Sequence[int],
) -> Attribution:
    """Optimises pictures from faint noise on grey; only the shape of `pixels` is used.

    Maps contain the difference of each pixel from grey.
    """
    grey = torch.full_like(pixels, 0.5)
    return _maximised(explained, grey, targets, batch_size, seeds, start=None)


def _maximised(
    explained: ExplainedNetwork, origin: Tensor, targets: Tensor, batch_size: int,
    seeds: Sequence[int], start: Tensor | None,
) -> Attribution:  # fmt: skip
    parts = batched(len(origin), batch_size)
    made = [
        _climb(
            explained, origin[part], targets[part], seeds[part], None if start is None
            else start[part],
        )
        for part in parts
    ]  # fmt: skip
    pictures = torch.cat(made)
    black, white = explained.limits(pictures)
    with torch.no_grad():
        probabilities = torch.cat(
            [
                explained.probability(pictures[p] * (white - black) + black, targets[p]).cpu()
                for p in parts
            ]
        )
    maps = (pictures - origin).abs().mean(1)
    if pictures.shape[1] == 1:
        pictures = pictures.expand(-1, 3, -1, -1)
    shown = (pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()
    return Attribution(maps, {"picture_probability": probabilities}, shown)


def _climb(
    explained: ExplainedNetwork, origin: Tensor, targets: Tensor, seeds: Sequence[int],
    start: Tensor | None,
) -> Tensor:  # fmt: skip
    """Optimised pictures (N, C, H, W), values in [0, 1]; each image uses only its own seed."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    N, C, H, W = origin.shape
    scale = _scale(H, W, origin.device)
    waves = torch.zeros(N, C, H, W // 2 + 1, 2, device=origin.device)
    if start is None:
        noise = [torch.randn(waves.shape[1:], generator=g) for g in generators]
        waves += _NOISE * torch.stack(noise).to(waves.device)
    ground = torch.logit(origin.clamp(_LEAST, _MOST))
    black, white = explained.limits(origin)
    waves.requires_grad_(True)
    optimizer = torch.optim.Adam([waves], lr=LEARNING_RATE)
    for _ in range(CLIMB_STEPS):
        pictures = _pictures(waves, ground, scale)
        moved = torch.stack([_moved(p, g) for p, g in zip(pictures, generators, strict=True)])
        # Sums over images, so that the gradient of each image is independent of the batch.
        with torch.enable_grad():
            score = explained.score(moved * (white - black) + black, targets).sum()
            cost = 100 * VARIATION * _variation(pictures)
            if start is not None:
                cost = cost + 100 * LEAVING * (pictures - start).square().flatten(1).mean(1).sum()
            optimizer.zero_grad()
            (cost - score).backward()  # type: ignore[no-untyped-call,unused-ignore]
        optimizer.step()
    return _pictures(waves, ground, scale).detach()


def _pictures(waves: Tensor, ground: Tensor, scale: Tensor) -> Tensor:
    spectrum = torch.view_as_complex(waves) * scale
    size = (ground.shape[-2], ground.shape[-1])
    made: Tensor = (ground + torch.fft.irfft2(spectrum, s=size, norm="ortho")).sigmoid()
    return made


def _scale(H: int, W: int, device: torch.device) -> Tensor:
    """Step size of each Fourier coefficient, (H, W // 2 + 1): 1 / frequency."""
    down, across = torch.fft.fftfreq(H, device=device), torch.fft.rfftfreq(W, device=device)
    frequency = (down[:, None].square() + across[None].square()).sqrt()
    scale: Tensor = 1 / frequency.clamp(min=1 / max(H, W))
    return scale


def _moved(picture: Tensor, generator: torch.Generator) -> Tensor:
    """`picture` (C, H, W), shifted cyclically at random."""
    shifts = [
        int(torch.randint(-(side // JITTER), side // JITTER + 1, (), generator=generator))
        for side in picture.shape[1:]
    ]
    return picture.roll(shifts, (1, 2))


def _variation(pictures: Tensor) -> Tensor:
    """Mean squared difference of neighbouring pixels, summed over images."""
    total = pictures.new_zeros(())
    for dimension in (2, 3):
        if pictures.shape[dimension] > 1:
            total = total + pictures.diff(dim=dimension).square().flatten(1).mean(1).sum()
    return total

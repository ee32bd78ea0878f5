"""The 19 corruptions of the preset `imagenet-c`, as data.

Source: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", ICLR 2019 (arXiv 1903.12261): 15 of the benchmark, then the 4 held out for
validation. A name carries the prefix `c_`, because `gaussian_blur` is also a transform of paper21.
"""

from __future__ import annotations

from robustcli.transforms.corruption import Corruption
from robustcli.transforms.strength import SEVERITIES

PREFIX = "c_"

_SUMMARIES = {
    "gaussian_noise": "Gaussian noise",
    "shot_noise": "Poisson noise, as from too little light",
    "impulse_noise": "Salt-and-pepper noise",
    "defocus_blur": "Out-of-focus blur",
    "glass_blur": "Seen through frosted glass",
    "motion_blur": "Camera moved, at a random angle",
    "zoom_blur": "Camera moved towards the scene",
    "snow": "Falling snow",
    "frost": "Ice crystals on the lens",
    "fog": "Fog (diamond-square noise)",
    "brightness": "Brighter",
    "contrast": "Less contrast",
    "elastic_transform": "Small regions stretched",
    "pixelate": "Fewer, larger pixels",
    "jpeg_compression": "JPEG at quality 25 down to 7",
    "speckle_noise": "Noise that grows with the value",
    "gaussian_blur": "Gaussian blur",
    "spatter": "Water or mud on the lens",
    "saturate": "Less saturation (1, 2) or more (3 to 5)",
}

IMAGENET_C: tuple[Corruption, ...] = tuple(
    Corruption(
        name=PREFIX + corruption,
        family="imagenet-c",
        geometric=corruption == "elastic_transform",
        severities=SEVERITIES,
        ranged=False,
        summary=summary,
        corruption=corruption,
    )
    for corruption, summary in _SUMMARIES.items()
)

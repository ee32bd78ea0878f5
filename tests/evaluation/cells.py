"""Images with masks, a fast evaluation of Otsu's threshold on them, and an untrained training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.load import load
from robustcli.adapters.training_run import WeightsHeader, write_weights
from robustcli.data.dataset import Dataset
from robustcli.data.sources import Masks, open_dataset
from robustcli.data.splits import split_dataset, write_splits
from robustcli.evaluation.config import EvalConfig
from tests.evaluation import photos

OTSU = ModelRequest("otsu")
PATIENTS = ("ann", "bea", "cy")


def make_pairs(folder: Path, per_patient: int = 3, side: int = 40) -> Path:
    """Writes a manifest of dark images with one bright square each; returns its path.

    The last mask of each patient is empty. The images of a patient are `side`, `side` + 6, ...
    pixels wide and `side` pixels high.
    """
    lines = ["image,mask,group"]
    for number, patient in enumerate(PATIENTS):
        for place in range(per_patient):
            generator = np.random.default_rng((number, place))
            pixels = generator.integers(0, 90, (side, side + 6 * place, 3), np.uint8)
            mask = np.zeros(pixels.shape[:2], np.uint8)
            if place < per_patient - 1:
                mask[8 : 20 + number, 10:22] = 255
                pixels[9 : 20 + number, 10:24] += 120
            name = f"{patient}-{place}.png"
            for kind, content in (("images", pixels), ("masks", mask)):
                (folder / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(content).save(folder / kind / name)
            lines.append(f"images/{name},masks/{name},{patient}")
    manifest = folder / "pairs.csv"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


def pairs_in(folder: Path) -> Dataset:
    """Opens the data set of `make_pairs(folder)`."""
    return open_dataset(str(make_pairs(folder)), Masks(surveyed=False))


def make_roads(folder: Path) -> Path:
    """Writes the images of `make_pairs` as the test split of Massachusetts Roads."""
    for pair in pairs_in(folder.with_name("cells")).samples:
        for kind, ref in (("test", pair.image), ("test_labels", pair.mask)):
            place = folder / "tiff" / kind / f"{Path(pair.image_id).stem.replace('-', '_r0c')}.tif"
            place.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(ref.path) as picture:
                picture.save(place)
    return folder


def config(data: Path, out: Path, *transforms: str, **changes: object) -> EvalConfig:
    """Returns the settings of a fast evaluation of Otsu's threshold in this process."""
    return photos.config(data, out, *transforms, **({"models": (OTSU,)} | changes))


NETWORK = "ulvm_v2"


def make_training(run: Path, index: Dataset, *, seed: int = 0) -> Path:
    """Writes weights, header and splits of a training of ulvm_v2 on `index` to `run`."""
    network = load(ModelRequest(NETWORK, untrained=True), "seg", seed=seed).network
    header = WeightsHeader(
        model=NETWORK, window=64, channels="rgb", threshold=0.5, protocol="patient",
        trained_on=index.digest, images_sha256="0" * 64,
    )  # fmt: skip
    write_weights(run / "weights.safetensors", network.state_dict(), header)
    write_splits(run / "splits.csv", split_dataset(index, seed=seed))
    return run

"""Images with masks as their owners publish them: folders, names, parts, patients and classes."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from robustcli.core.errors import UsageError
from robustcli.data import decode as decoding
from robustcli.data.dataset import Dataset, FileRef
from robustcli.data.decode import UnreadableImage, decode, image_size
from robustcli.data.mask_values import IGNORED
from robustcli.data.masks import decode_pair
from robustcli.data.published_masks import patient_of
from robustcli.data.sources import Masks, open_dataset
from robustcli.data.splits import split_dataset

RNG = np.random.default_rng(0)
H, W = 4, 6


def _png(path: Path, pixels: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _grey() -> NDArray[np.uint8]:
    return RNG.integers(0, 256, (H, W), dtype=np.uint8)


def _open(root: Path, **options: Any) -> Dataset:
    return open_dataset(str(root), Masks(**options))


def _classes(dataset: Dataset) -> tuple[str, ...]:
    assert dataset.reading is not None
    return dataset.reading.classes


def _messages(dataset: Dataset, words: str) -> bool:
    return any(words in note for note in dataset.notes)


# nnU-Net


def _nnunet(
    root: Path, *, channels: int = 1, description: bool = True, ending: str = "png"
) -> Path:
    """Two slices each of four patients; labels 0 to 2, and 3 to ignore in the first one."""
    for case in range(4):
        for number in range(2):
            name = f"liver_{case}_slice_{number}"
            for channel in range(channels):
                _png(root / "imagesTr" / f"{name}_{channel:04}.{ending}", _grey())
            labels = np.tile(np.arange(3, dtype=np.uint8), (H, W // 3))
            if case == number == 0:
                labels[0, 0] = 3
            _png(root / "labelsTr" / f"{name}.{ending}", labels)
    if description:
        names = {str(channel): name for channel, name in enumerate("RGB"[:channels])}
        content = {
            "channel_names": names,
            "labels": {"background": 0, "liver": 1, "tumour": 2, "ignore": 3},
            "numTraining": 8,
            "file_ending": f".{ending}",
        }
        (root / "dataset.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize("ending", ["png", "tif", "bmp"])
def test_nnunet_with_one_channel(ending: str, tmp_path: Path) -> None:
    root = _nnunet(tmp_path / "Dataset009_Liver", ending=ending)
    dataset = _open(root)
    assert _classes(dataset) == ("liver", "tumour")
    assert dataset.grouping == "patient"
    assert dataset.groups == ("liver_0", "liver_1", "liver_2", "liver_3")
    assert dataset.samples[0].image_id == f"imagesTr/liver_0_slice_0.{ending}"
    image, mask = decode_pair(dataset.samples[0])
    with Image.open(root / "imagesTr" / f"liver_0_slice_0_0000.{ending}") as file:
        np.testing.assert_array_equal(image, np.repeat(np.asarray(file)[..., None], 3, axis=2))
    assert mask.tolist()[0] == [IGNORED, 1, 2, 0, 1, 2]
    splits = split_dataset(dataset, seed=0)
    groups = [set(part.groups) for part in (splits.train, splits.val, splits.test)]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 4, "no patient in two parts"


def test_nnunet_with_three_channels_is_one_colour_image(tmp_path: Path) -> None:
    root = _nnunet(tmp_path, channels=3)
    dataset = _open(root)
    sample = dataset.samples[3]
    assert sample.image_id == "imagesTr/liver_1_slice_1.png"
    image, _ = decode_pair(sample)
    for channel in range(3):
        with Image.open(root / "imagesTr" / f"liver_1_slice_1_{channel:04}.png") as file:
            np.testing.assert_array_equal(image[..., channel], np.asarray(file))
    assert image_size(sample.image) == (H, W)
    assert _messages(dataset, "red, green and blue: R, G, B")
    before = dataset.contents
    _png(root / "imagesTr" / "liver_1_slice_1_0002.png", _grey())
    assert _open(root).contents != before, "every channel counts in the digest"


def test_nnunet_in_a_zip_below_outer_folders(tmp_path: Path) -> None:
    root = _nnunet(tmp_path / "nnUNet_raw" / "Dataset009_Liver", channels=3)
    with zipfile.ZipFile(tmp_path / "raw.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(root.rglob("*.*")):
            archive.write(path, path.relative_to(tmp_path))
    packed, unpacked = _open(tmp_path / "raw.zip"), _open(root)
    assert [s.image_id for s in packed.samples] == [s.image_id for s in unpacked.samples]
    assert _classes(packed) == _classes(unpacked)
    for first, other in zip(decode_pair(packed.samples[2]), decode_pair(unpacked.samples[2]),
                          strict=True):  # fmt: skip
        np.testing.assert_array_equal(first, other)


def test_nnunet_test_images_count_where_they_have_masks(tmp_path: Path) -> None:
    root = _nnunet(tmp_path)
    _png(root / "imagesTs" / "liver_9_slice_0_0000.png", _grey())
    without = _open(root)
    assert len(without.samples) == 8
    assert _messages(without, "Skipped: 1 file in `imagesTs` without masks")
    _png(root / "labelsTs" / "liver_9_slice_0.png", np.zeros((H, W), np.uint8))
    dataset = _open(root)
    assert dataset.evaluated == "test"
    assert [s.image_id for s in dataset.samples if s.split == "test"] == [
        "imagesTs/liver_9_slice_0.png"
    ]
    assert {s.split for s in dataset.samples} == {"train", "test"}
    (root / "imagesTs" / "liver_9_slice_0_0000.png").unlink()
    masks_only = _open(root)
    assert (len(masks_only.samples), masks_only.evaluated) == (8, without.evaluated)
    assert _messages(masks_only, "Skipped: 1 file in `labelsTs` without images in")


def test_nnunet_without_its_description_says_how_classes_are_named(tmp_path: Path) -> None:
    root = _nnunet(tmp_path, description=False)
    with pytest.raises(UsageError, match="--classes all"):
        _open(root)
    assert _classes(_open(root, classes="all", ignore=3)) == ("1", "2")


def _without(root: Path, name: str) -> None:
    (root / name).unlink()


def _with(root: Path, name: str) -> None:
    _png(root / name, _grey())


NNUNET_FAULTS: dict[str, tuple[Any, str, str]] = {
    "a missing channel": (
        _without, "imagesTr/liver_2_slice_0_0001.png", "lacks 1 file of channels.*slice_0_0001"
    ),
    "a missing mask": (_without, "labelsTr/liver_2_slice_0.png", "1 of 8 images have no mask"),
    "a mask too many": (_with, "labelsTr/other.png", "1 of 9 masks have no image"),
    "no channel in a name": (_with, "imagesTr/other.png", "without a channel in their file names"),
}  # fmt: skip


@pytest.mark.parametrize("fault", NNUNET_FAULTS)
def test_faults_of_nnunet_data_are_named(fault: str, tmp_path: Path) -> None:
    change, name, message = NNUNET_FAULTS[fault]
    root = _nnunet(tmp_path, channels=3)
    change(root, name)
    with pytest.raises(UsageError, match=rf"(?s){message}"):
        _open(root)


def _nifti(path: Path, array: NDArray[Any], affine: NDArray[Any] | None = None) -> None:
    nibabel = pytest.importorskip("nibabel", reason="NIfTI files need nibabel, an optional library")
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)


@pytest.mark.parametrize("channels", [1, 3])
def test_nnunet_volumes_are_read_slice_by_slice(channels: int, tmp_path: Path) -> None:
    """NIfTI's first axis goes to the right: a slice (W, H) is the image (H, W)."""
    volumes = RNG.integers(-1000, 1000, (2, channels, W, H, 3)).astype(np.int16)
    labels = RNG.permutation(np.arange(W * H * 3) % 3).astype(np.uint8).reshape(W, H, 3)
    for case in range(2):
        for channel in range(channels):
            name = f"la_{case}_{channel:04}.nii.gz"
            _nifti(tmp_path / "imagesTr" / name, volumes[case, channel])
        _nifti(tmp_path / "labelsTr" / f"la_{case}.nii.gz", labels)
    names = {str(channel): "MRI" for channel in range(channels)}
    content = {"channel_names": names, "labels": {"background": 0, "atrium": 1, "wall": 2}}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    dataset = _open(tmp_path)
    assert [sample.image_id for sample in dataset.samples] == [
        f"imagesTr/la_{case}.nii.gz/slice{number:03}" for case in range(2) for number in range(3)
    ]
    assert dataset.groups == ("la_0", "la_1")
    assert _classes(dataset) == ("atrium", "wall")
    assert _messages(dataset, "The 0.5th percentile of each volume becomes black")
    image, mask = decode_pair(dataset.samples[5])
    np.testing.assert_array_equal(mask, labels[:, :, 2].T)
    for channel in range(channels):
        volume = volumes[1, channel].astype(np.float64)
        low, high = np.percentile(volume, [0.5, 99.5])
        grey = np.rint(255 * np.clip((volume[:, :, 2].T - low) / (high - low), 0, 1))
        np.testing.assert_array_equal(image[..., channel], grey)


@pytest.mark.parametrize(("most_kept", "reads"), [(2**20, 4), (0, 12)])
def test_each_volume_of_a_case_is_read_once_if_all_fit_in_memory(
    most_kept: int, reads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for channel in range(3):
        volume = np.arange(W * H * 3, dtype=np.int16).reshape(W, H, 3)
        _nifti(tmp_path / "imagesTr" / f"la_0_000{channel}.nii.gz", volume)
    _nifti(tmp_path / "labelsTr" / "la_0.nii.gz", (volume > 9).astype(np.uint8))
    names = {str(channel): "MRI" for channel in range(3)}
    content = {"channel_names": names, "labels": {"background": 0, "atrium": 1}}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    dataset = _open(tmp_path)
    loaded: list[Path] = []
    read = decoding._read_nifti
    monkeypatch.setattr(decoding, "_read_nifti", lambda path: loaded.append(path) or read(path))
    monkeypatch.setattr(decoding, "_MOST_KEPT", most_kept)
    monkeypatch.setattr(decoding, "_volumes", {})
    for sample in dataset.samples:
        decode_pair(sample)
    assert len(loaded) == reads


def test_volumes_and_masks_with_other_numbers_of_slices_are_refused(tmp_path: Path) -> None:
    labels = (np.arange(W * H * 3) % 2).astype(np.uint8).reshape(W, H, 3)
    _nifti(tmp_path / "imagesTr" / "la_0_0000.nii.gz", np.zeros((W, H, 4), np.int16))
    _nifti(tmp_path / "labelsTr" / "la_0.nii.gz", labels)
    with pytest.raises(UsageError, match=r"differ in the number of slices\.\n.* 4, the mask 3,"):
        _open(tmp_path)


def test_volumes_with_other_axes_than_their_masks_are_reported(tmp_path: Path) -> None:
    labels = (np.arange(W * H * 3) % 2).astype(np.uint8).reshape(W, H, 3)
    volume = RNG.integers(0, 9, (W, H, 3)).astype(np.int16)
    _nifti(tmp_path / "labelsTr" / "la_0.nii.gz", labels)
    for affine, is_other in ((np.eye(4), False), (np.diag([-1, -1, 1, 1]), True)):
        _nifti(tmp_path / "imagesTr" / "la_0_0000.nii.gz", volume, affine)
        assert _messages(_open(tmp_path), "la_0_0000.nii.gz` (LPS) and") == is_other


def test_a_changed_volume_is_read_again(tmp_path: Path) -> None:
    labels = (np.arange(W * H * 3) % 2).astype(np.uint8).reshape(W, H, 3)
    _nifti(tmp_path / "labelsTr" / "la_0.nii.gz", labels)
    seen = []
    for seed in (1, 2):
        volume = np.random.default_rng(seed).integers(0, 999, (W, H, 3)).astype(np.int16)
        _nifti(tmp_path / "imagesTr" / "la_0_0000.nii.gz", volume)
        seen.append(decode_pair(_open(tmp_path).samples[0])[0])
    assert (seen[0] != seen[1]).any()


def test_volumes_that_are_not_read_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nibabel", None)
    for ending, message in (
        (".nrrd", r"(?s)2 unsupported volumes.*slices to PNG"),
        (".nii.gz", r"(?s)nibabel is not installed.*pip install nibabel"),
    ):
        root = tmp_path / ending
        for name in (f"imagesTr/la_003_0000{ending}", f"labelsTr/la_003{ending}"):
            (root / name).parent.mkdir(parents=True)
            (root / name).write_bytes(b"\x1f\x8b")
        with pytest.raises(UsageError, match=message):
            _open(root)


def test_two_or_four_channels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"(?s)2 files each.*one channel \(grey\) or three"):
        _open(_nnunet(tmp_path, channels=2))


def test_a_colour_image_is_no_channel(tmp_path: Path) -> None:
    root = _nnunet(tmp_path, channels=3)
    colours = RNG.integers(0, 256, (H, W, 3), dtype=np.uint8)
    _png(root / "imagesTr" / "liver_0_slice_0_0001.png", colours)
    with pytest.raises(UnreadableImage, match="`0001` is in colour"):
        decode_pair(_open(root).samples[0])


# ISIC

_2016 = "ISBI2016_ISIC_Part1"
ISIC = {
    "2016": (
        {
            "train": (f"{_2016}_Training_Data", f"{_2016}_Training_GroundTruth"),
            "test": (f"{_2016}_Test_Data", f"{_2016}_Test_GroundTruth"),
        },
        "_Segmentation",
    ),
    "2017": (
        {
            "train": ("ISIC-2017_Training_Data", "ISIC-2017_Training_Part1_GroundTruth"),
            "val": ("ISIC-2017_Validation_Data", "ISIC-2017_Validation_Part1_GroundTruth"),
            "test": ("ISIC-2017_Test_v2_Data", "ISIC-2017_Test_v2_Part1_GroundTruth"),
        },
        "_segmentation",
    ),
    "2018": (
        {
            "train": ("ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth"),
            "val": ("ISIC2018_Task1-2_Validation_Input", "ISIC2018_Task1_Validation_GroundTruth"),
            "test": ("ISIC2018_Task1-2_Test_Input", "ISIC2018_Task1_Test_GroundTruth"),
        },
        "_segmentation",
    ),
}  # fmt: skip


def _isic(root: Path, year: str) -> Path:
    folders, ending = ISIC[year]
    for number, (images, masks) in enumerate(folders.values()):
        for i in range(3):
            name = f"ISIC_{100 * number + i:07}"
            _png(root / images / f"{name}.jpg", np.repeat(_grey()[..., None], 3, axis=2))
            _png(root / masks / f"{name}{ending}.png", np.eye(H, W, dtype=np.uint8) * 255)
            if year == "2017":
                _png(root / images / f"{name}_superpixels.png", np.zeros((H, W, 3), np.uint8))
    return root


@pytest.mark.parametrize("year", ISIC)
def test_isic_keeps_its_parts(year: str, tmp_path: Path) -> None:
    dataset = _open(_isic(tmp_path / f"ISIC{year}", year))
    folders, _ = ISIC[year]
    by_split = {split: [s for s in dataset.samples if s.split == split] for split in folders}
    assert {split: len(samples) for split, samples in by_split.items()} == dict.fromkeys(folders, 3)
    assert dataset.evaluated == "test"
    assert by_split["train"][0].image_id == f"{folders['train'][0]}/ISIC_0000000.jpg"
    assert dataset.reading is not None
    assert dataset.reading.is_standard
    _, mask = decode_pair(dataset.samples[0])
    np.testing.assert_array_equal(mask, np.eye(H, W, dtype=bool))
    assert _messages(dataset, "superpixels are skipped") == (year == "2017")
    splits = split_dataset(dataset, seed=0)
    assert [len(p.samples) for p in (splits.train, splits.val, splits.test)] == (
        [2, 1, 3] if year == "2016" else [3, 3, 3]
    )


def test_isic_images_without_masks_are_left_out_and_said(tmp_path: Path) -> None:
    root = _isic(tmp_path, "2018")
    for file in (root / "ISIC2018_Task1_Test_GroundTruth").iterdir():
        file.unlink()
    _png(root / "ISIC2018_Task3_Training_Input" / "ISIC_0099999.jpg", np.zeros((H, W, 3), np.uint8))
    attributes = root / "ISIC2018_Task2_Training_GroundTruth_v3"
    _png(attributes / "ISIC_0000000_attribute_globules.png", np.zeros((H, W), np.uint8))
    dataset = _open(root)
    assert {s.split for s in dataset.samples} == {"train", "val"}
    assert _messages(dataset, "Skipped: 3 images in `ISIC2018_Task1-2_Test_Input`")
    assert _messages(dataset, "Skipped: 1 image in `ISIC2018_Task3_Training_Input`")


def test_an_isic_image_without_its_mask_is_an_error(tmp_path: Path) -> None:
    root = _isic(tmp_path, "2016")
    (root / "ISBI2016_ISIC_Part1_Test_GroundTruth" / "ISIC_0000101_Segmentation.png").unlink()
    with pytest.raises(UsageError, match=r"1 of 3 images have no mask"):
        _open(root)


# Synapse and ACDC


def _slice(classes: int) -> dict[str, NDArray[Any]]:
    labels = RNG.permutation(np.arange(H * W) % classes).reshape(H, W)
    return {"image": RNG.random((H, W)).astype(np.float32), "label": labels.astype(np.float32)}


def _synapse(root: Path) -> Path:
    (root / "train_npz").mkdir(parents=True)
    for case in ("0005", "0006", "0007"):
        for number in range(2):
            path = root / "train_npz" / f"case{case}_slice{number:03}.npz"
            np.savez(path, **_slice(9))  # type: ignore[arg-type,unused-ignore]
    return root


def test_slices_of_synapse(tmp_path: Path) -> None:
    dataset = _open(_synapse(tmp_path / "Synapse"))
    assert len(dataset.samples) == 6
    assert dataset.groups == ("case0005", "case0006", "case0007")
    assert dataset.grouping == "patient"
    assert _classes(dataset) == tuple("12345678")
    assert _messages(dataset, "as published by the owners of the data set")
    sample = dataset.samples[0]
    image, mask = decode_pair(sample)
    with np.load(tmp_path / "Synapse" / "train_npz" / "case0005_slice000.npz") as arrays:
        levels = np.floor(arrays["image"].astype(np.float64) * 255 + 0.5)
        np.testing.assert_array_equal(image[..., 0], levels)
        np.testing.assert_array_equal(mask, arrays["label"])
    assert (image == image[..., :1]).all()
    assert image_size(sample.image) == (H, W)
    named = _open(tmp_path / "Synapse", classes="1=aorta,2=gall", ignore="3,4,5,6,7,8")
    assert _classes(named) == ("aorta", "gall")


def test_slices_in_a_zip_are_those_of_the_folder(tmp_path: Path) -> None:
    root = _synapse(tmp_path / "Synapse")
    with zipfile.ZipFile(tmp_path / "s.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(root.rglob("*.npz")):
            archive.write(path, path.relative_to(tmp_path))
    for packed, plain in zip(_open(tmp_path / "s.zip").samples, _open(root).samples, strict=True):
        for first, other in zip(decode_pair(packed), decode_pair(plain), strict=True):
            np.testing.assert_array_equal(first, other)


BAD_ARRAYS: dict[str, tuple[dict[str, Any], str]] = {
    "values of a scanner": ({"image": np.full((H, W), 300.0)}, "values from 300 to 300"),
    "numbers of 16 bits": ({"image": np.zeros((H, W), np.int16)}, "an array of int16"),
    "no image": ({"picture": np.zeros((H, W))}, "its arrays are picture, not an array `image`"),
    "an object": ({"image": np.array([None])}, "damaged|not a numeric array"),
    "five channels": ({"image": np.zeros((H, W, 5))}, r"shape \(4, 6, 5\)"),
}


@pytest.mark.parametrize("fault", BAD_ARRAYS)
def test_arrays_that_are_no_image(fault: str, tmp_path: Path) -> None:
    arrays, message = BAD_ARRAYS[fault]
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UnreadableImage, match=message):
        decode(FileRef("a.npz", tmp_path / "a.npz", array="image"))
    (tmp_path / "a.npz").write_bytes(b"PK\3\4 cut off")
    with pytest.raises(UnreadableImage, match="damaged"):
        decode(FileRef("a.npz", tmp_path / "a.npz", array="image"))


def test_hdf5_without_h5py_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    root = _synapse(tmp_path)
    (root / "test_vol_h5").mkdir()
    (root / "test_vol_h5" / "case0001.npy.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(UsageError, match=r"(?s)h5py is not installed.*pip install h5py"):
        _open(root)


def _volume(path: Path, classes: int, slices: int | None = 3, *, last: bool = False) -> None:
    h5py = pytest.importorskip("h5py", reason="HDF5 files need h5py, which is optional")
    parts = [_slice(classes) for _ in range(slices or 1)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for key in ("image", "label"):
            stack = np.stack([part[key] for part in parts], axis=2 if last else 0)
            file.create_dataset(key, data=stack if slices else stack[0], compression="gzip")


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [((3, H, W), (2, H, W), r"differ in the number of slices"),
     ((3, H, W), (3, H, W, 1, 1), r"no readable array `label`.*\n.*expected \(slices, height")],
)  # fmt: skip
def test_volumes_of_hdf5_whose_slices_cannot_be_matched(
    image: tuple[int, ...], label: tuple[int, ...], message: str, tmp_path: Path
) -> None:
    h5py = pytest.importorskip("h5py", reason="HDF5 files need h5py, which is optional")
    with h5py.File(tmp_path / "case0001.h5", "w") as file:
        file["image"], file["label"] = np.zeros(image), np.zeros(label, np.uint8)
    with pytest.raises(UsageError, match=message):
        _open(tmp_path)


def test_volumes_of_synapse_are_its_test_part_slice_by_slice(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="HDF5 files need h5py, which is optional")
    root = _synapse(tmp_path)
    path = root / "test_vol_h5" / "case0001.npy.h5"
    _volume(path, 9)
    dataset = _open(root)
    test = [sample for sample in dataset.samples if sample.split == "test"]
    assert [s.image_id for s in test] == [
        f"test_vol_h5/case0001.npy.h5/slice{number:03}" for number in range(3)
    ]
    assert {sample.group for sample in test} == {"case0001"}
    assert dataset.evaluated == "test"
    with h5py.File(path) as file:
        for number, sample in enumerate(test):
            image, mask = decode_pair(sample)
            np.testing.assert_array_equal(mask, file["label"][number])
            np.testing.assert_allclose(image[..., 0] / 255, file["image"][number], atol=0.5 / 255)


def test_volumes_whose_slices_are_the_last_axis(tmp_path: Path) -> None:
    """So the script in TransUNet's repository writes them."""
    h5py = pytest.importorskip("h5py", reason="HDF5 files need h5py, which is optional")
    path = tmp_path / "case0001.npy.h5"
    with h5py.File(path, "w") as file:
        file["image"], file["label"] = (
            np.zeros((H, H, 2)),
            np.arange(H * H * 2).reshape(H, H, 2) % 3,
        )
    dataset = _open(tmp_path)
    assert len(dataset.samples) == 2
    _, mask = decode_pair(dataset.samples[1])
    np.testing.assert_array_equal(mask, np.arange(H * H * 2).reshape(H, H, 2)[..., 1] % 3)


def test_acdc_as_published_with_its_lists(tmp_path: Path) -> None:
    for patient in range(1, 6):
        for frame in (1, 12):
            name = f"patient{patient:03}_frame{frame:02}"
            _volume(tmp_path / "data" / f"{name}.h5", 4, 2)
            for number in range(2 if patient < 4 else 0):
                _volume(tmp_path / "data" / "slices" / f"{name}_slice_{number}.h5", 4, None)
    for file, patient in (("val.list", 4), ("test.list", 5)):
        lines = "".join(f"patient{patient:03}_frame{frame:02}\n" for frame in (1, 12))
        (tmp_path / file).write_text(lines)
    dataset = _open(tmp_path)
    assert _classes(dataset) == ("right ventricle", "myocardium", "left ventricle")
    patients = {
        split: sorted({s.group for s in dataset.samples if s.split == split})
        for split in ("train", "val", "test")
    }
    assert patients == {
        "train": ["patient001", "patient002", "patient003"],
        "val": ["patient004"],
        "test": ["patient005"],
    }
    assert len(dataset.samples) == 3 * 2 * 2 + 2 * 2 + 2 * 2
    assert _messages(dataset, "6 volumes are skipped")
    alone = _open(tmp_path / "data" / "slices")
    assert len(alone.samples) == 12
    assert {s.split for s in alone.samples} == {None}
    splits = split_dataset(alone, seed=0)
    assert [len(part.samples) for part in (splits.train, splits.val, splits.test)] == [4, 4, 4]


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("case0005_slice000", "case0005"),
        ("patient001_frame01_slice_0", "patient001"),
        ("patient001_frame12", "patient001"),
        ("BRATS_001-slice-12", "BRATS_001"),
        ("slices_of_bread_3", "slices_of_bread_3"),
        ("img0001", "img0001"),
    ],
)
def test_the_patient_in_a_name(name: str, patient: str) -> None:
    assert patient_of(name) == patient

"""Layouts of published data sets of images with masks: nnU-Net, ISIC, Synapse, ACDC.

Layouts are recognised by the names of folders or files. Images are grouped by the patients in their
names, so that no patient is in two splits. Published splits are kept.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Literal

from robustcli.core.errors import UsageError
from robustcli.core.io import parse_json
from robustcli.core.names import counted
from robustcli.data.advice import quoted
from robustcli.data.dataset import FileRef
from robustcli.data.layouts import Labelled, Layout, Recogniser, files_below, match_stems
from robustcli.data.listing import HDF5_SUFFIXES, MASK_SUFFIXES, is_image

SIDE_SUFFIXES = frozenset({".json", ".list", ".gz", ".nii", ".nrrd", ".mha", *HDF5_SUFFIXES})
"""Suffixes of files other than images that these layouts read, or refuse with a reason."""
LABEL_FILES = ("labels.json", "dataset.json")
"""Names of files with tables of classes; the second one is that of nnU-Net."""
NNUNET_FILE = LABEL_FILES[1]
_CHANNEL = re.compile(r"(.+)_(\d{4})")
_NNUNET_IMAGES, _NNUNET_LABELS = ("imagestr", "imagests"), ("labelstr", "labelsts")
_OTHER_VOLUMES = (".nrrd", ".mha")
_VOLUME_SUFFIXES = (".nii.gz", ".nii")
_ISIC = re.compile(r"(?:ISBI|ISIC).*(Training|Validation|Test)(?:_v\d)?_.*")
_ISIC_SPLITS = {"training": "train", "validation": "val", "test": "test"}
_SEGMENTATION = re.compile(r"_segmentation$", re.IGNORECASE)
_SUPERPIXELS, _GROUND_TRUTH = "_superpixels", "GroundTruth"
# case0005_slice000, patient001_frame01_slice_0, patient001_frame01: the group precedes the match.
_SLICE = re.compile(r"(?:_frame_?\d+)?(?:[_-]slice[_-]?\d+)?(?:\.npy)?$", re.IGNORECASE)
_IMAGE, _LABEL = "image", "label"
_ACDC = re.compile(r"patient\d+_frame\d+")
_ACDC_CLASSES = (("0", "background"), ("1", "right ventricle"), ("2", "myocardium"),
                 ("3", "left ventricle"))  # fmt: skip
_ALL: Literal["all"] = "all"


def patient_of(name: str) -> str:
    """The patient in the name of a slice (`case0005_slice000`), else the complete name."""
    return _SLICE.sub("", name) or name


def by_nnunet(location: Path, files: Sequence[FileRef]) -> Layout[FileRef] | None:
    """nnU-Net's raw data: `imagesTr/NAME_0000.png`, `labelsTr/NAME.png`, and `dataset.json`.

    Channels `_0000` to `_0002` are red, green and blue; a single channel is the complete image. The
    images in `imagesTs` are test images if `labelsTs` contains their masks, else excluded. Slices
    of a patient (`NAME_slice_3`) form a group. Volumes (`.nii.gz`) are read slice by slice, which
    needs nibabel.
    Source: github.com/MIC-DKFZ/nnUNet, documentation/dataset_format.md.

    Raises:
        UsageError: A case lacks a channel or its labels, or is an unsupported volume.
    """
    images, labels = files_below(files, "imagestr"), files_below(files, "labelstr")
    if not images or not labels:
        return None
    description = next((file for file in files if file.relative == NNUNET_FILE), None)
    channels = _channel_names(description)
    labelled = [*_nnunet_cases(location, "imagesTr", images, labels, channels)]
    test_images, test_labels = files_below(files, "imagests"), files_below(files, "labelsts")
    notes = []
    if test_images and test_labels:
        labelled = [replace(case, split="train") for case in labelled]
        test = _nnunet_cases(location, "imagesTs", test_images, test_labels, channels)
        labelled += [replace(case, split="test") for case in test]
    elif test_images:
        notes.append(
            f"Skipped: {counted(len(test_images), 'file')} in `imagesTs` "
            "without masks in `labelsTs`."
        )
    elif test_labels:
        notes.append(
            f"Skipped: {counted(len(test_labels), 'file')} in `labelsTs` "
            "without images in `imagesTs`."
        )
    notes += _channel_notes(channels, labelled)
    if any(case.image.array for case in labelled):
        notes.append(
            f"Volumes: their {len(labelled)} slices are the images. The 0.5th percentile of each "
            "volume becomes black and the 99.5th becomes white."
        )
        notes += _orientation_notes(labelled)
    return _by_patients(labelled, notes, bool(test_images and test_labels))


def _channel_names(description: FileRef | None) -> list[str]:
    """The channel names of `dataset.json` in order; empty without the file."""
    if description is None:
        return []
    try:
        content = parse_json(description.read().decode("utf-8-sig"))
        names = content.get("channel_names", content.get("modality", {}))
        return [str(names[key]) for key in sorted(names, key=int)]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UsageError(
            f"`{description}` cannot be read.",
            f"It is not a valid nnU-Net description of a data set: {error}.",
            'It needs `"labels": {"background": 0, "liver": 1}` and '
            '`"channel_names": {"0": "R", "1": "G", "2": "B"}`.',
        ) from error


def _channel_notes(channels: Sequence[str], cases: Sequence[Labelled[FileRef]]) -> list[str]:
    stacked = next((case.image.parts for case in cases if case.image.parts), ())
    if not stacked:
        return []
    shown = ", ".join(channels) if len(channels) == len(stacked) else "without names"
    return [f"Images are stacked from 3 files each, as red, green and blue: {shown}."]


def _nnunet_cases(
    location: Path, folder: str, images: Sequence[FileRef], labels: Sequence[FileRef],
    channels: Sequence[str],
) -> Iterator[Labelled[FileRef]]:  # fmt: skip
    """The cases of one folder of images with their labels; every slice of volumes."""
    _check_volumes(location, [*images, *labels])
    by_case: dict[str, dict[str, FileRef]] = defaultdict(dict)
    strange = []
    for image in images:
        match = _CHANNEL.fullmatch(_bare(image.relative))
        if not (is_image(image.relative) or _is_volume(image)):
            continue
        if match is None:
            strange.append(image.relative)
        else:
            by_case[match[1]][match[2]] = image
    if strange:
        raise UsageError(
            f"`{location / folder}` has {len(strange)} images without a channel in their file "
            "names.",
            "File names of nnU-Net end with the channel, `NAME_0000.png`: "
            f"{quoted(sorted(strange))}.",
            "Rename them, or remove them.",
        )
    present = {number for files in by_case.values() for number in files}
    count = len(channels) or len(present)
    _check_channels(location / folder, by_case, present, count)
    cases = []
    for name, files in by_case.items():
        parts = tuple(sorted(files.items()))
        cases.append(replace(parts[0][1], relative=f"{name}.png",
                             parts=parts if len(parts) > 1 else ()))  # fmt: skip
    masks = [
        replace(mask, relative=f"{_bare(mask.relative)}.png")
        for mask in labels
        if is_image(mask.relative, MASK_SUFFIXES) or _is_volume(mask)
    ]
    for image, mask in match_stems(location / folder, cases, masks):
        name = image.stem
        first = next(iter(by_case[name].values())).relative
        ending = first.removeprefix(_bare(first))
        image_id = f"{folder}/{name}{ending}"
        if _is_volume(mask):
            for slice_image, slice_mask in _nifti_pairs(image_id, image, mask):
                yield Labelled(slice_image, slice_mask, group=patient_of(name))
        else:
            yield Labelled(replace(image, relative=image_id), mask, group=patient_of(name))


def stacked_channels(location: Path, files: Sequence[FileRef]) -> tuple[FileRef, ...]:
    """`files` of `location`, with one image per case of nnU-Net's raw data, and without its labels.

    In folders `imagesTr` and `imagesTs`, `NAME_0000.png` to `NAME_0002.png` are one image
    `NAME.png`, as in `by_nnunet`; images with a single file keep their name.

    Raises:
        UsageError: A case lacks a channel, or the number of channels is not supported.
    """
    by_folder: dict[PurePosixPath, list[FileRef]] = defaultdict(list)
    for file in files:
        by_folder[PurePosixPath(file.relative).parent].append(file)
    names = {folder: (folder.name or location.resolve().name).lower() for folder in by_folder}
    stacked: list[FileRef] = []
    for folder, in_folder in by_folder.items():
        beside = {name for other, name in names.items() if other.parent == folder.parent}
        if names[folder] in _NNUNET_LABELS and names[folder].replace("label", "image") in beside:
            continue
        cases = _channels_of_cases(in_folder) if names[folder] in _NNUNET_IMAGES else {}
        present = {number for channels in cases.values() for number in channels}
        if len(present) < 2:
            stacked += in_folder
            continue
        _check_channels(location, cases, present, len(present))
        for name, channels in cases.items():
            parts = tuple(sorted(channels.items()))
            ending = parts[0][1].relative.removeprefix(_bare(parts[0][1].relative))
            stacked.append(replace(parts[0][1], relative=f"{name}{ending}", parts=parts))
    return tuple(stacked)


def look_like_channels(files: Sequence[FileRef]) -> tuple[FileRef, ...]:
    """The files of one case if all `files` are channels `_0000` to `_0002` of cases; else empty."""
    cases = _channels_of_cases(files)
    complete = all(sorted(channels) == ["0000", "0001", "0002"] for channels in cases.values())
    first = cases[min(cases)] if cases else {}
    return tuple(first[number] for number in sorted(first)) if complete else ()


def _channels_of_cases(files: Sequence[FileRef]) -> dict[str, dict[str, FileRef]]:
    """File by channel, by name of the case; empty if a file has no channel in its name."""
    cases: dict[str, dict[str, FileRef]] = defaultdict(dict)
    for file in files:
        match = _CHANNEL.fullmatch(_bare(file.relative))
        if match is None:
            return {}
        cases[match[1]][match[2]] = file
    return cases


def _bare(relative: str) -> str:
    """The path without its suffix, or without `.nii.gz`."""
    ending = next((e for e in _VOLUME_SUFFIXES if relative.lower().endswith(e)), None)
    return relative.rpartition(".")[0] if ending is None else relative[: -len(ending)]


def _is_volume(file: FileRef) -> bool:
    return (file.member or file.path.name).lower().endswith(_VOLUME_SUFFIXES)


def _nifti_pairs(
    image_id: str, image: FileRef, mask: FileRef
) -> Iterator[tuple[FileRef, FileRef]]:  # fmt: skip
    """Pairs of slices of an image and its mask; a single pair if they have two axes."""
    from robustcli.data.decode import VOLUME, volume_slices  # lazy: imports numpy

    count = volume_slices(mask.path, VOLUME)
    for _, part in image.parts or (("", image),):
        _check_slices(part, mask, VOLUME, count)
    for index in [None] if count is None else range(count):
        slice_id = image_id if index is None else f"{image_id}/slice{index:03}"
        parts = tuple(
            (name, replace(part, array=VOLUME, slice_index=index)) for name, part in image.parts
        )
        yield (
            replace(image, relative=slice_id, array=VOLUME, slice_index=index, parts=parts),
            replace(mask, relative=slice_id, array=VOLUME, slice_index=index),
        )


def _check_slices(image: FileRef, mask: FileRef, key: str, count: int | None) -> None:
    """Raises UsageError if the volume `key` of `image` has not the `count` slices of its mask.

    An image that cannot be read is reported when it is decoded.
    """
    from robustcli.data.decode import volume_slices  # lazy: imports numpy

    try:
        image_count = volume_slices(image.path, key)
    except UsageError:
        return
    if image_count != count:
        raise UsageError(
            f"`{image}` and its mask `{mask}` differ in the number of slices.",
            f"The image has {image_count or 1}, the mask {count or 1}, so that their slices cannot "
            "be matched.",
            "Create the mask again from the current image, or remove both.",
        )


def _orientation_notes(cases: Sequence[Labelled[FileRef]]) -> Iterator[str]:
    """A note if the axes of volumes and their masks have different directions."""
    from robustcli.data.decode import nifti_orientation  # lazy: imports numpy

    pairs = {
        part.path: case.label.path
        for case in cases if case.image.array
        for _, part in case.image.parts or (("", case.image),)
    }  # fmt: skip
    differing = [
        (image, mask)
        for image, mask in pairs.items()
        for axes in [{nifti_orientation(image), nifti_orientation(mask)} - {""}]
        if len(axes) > 1
    ]
    if differing:
        image, mask = differing[0]
        yield (
            f"{len(differing)} volumes have other directions of axes than their masks, such as "
            f"`{image}` ({nifti_orientation(image)}) and `{mask}` ({nifti_orientation(mask)}). "
            "Pixels are matched by their positions in the files: if the directions are right, save "
            "the masks again with those of the images."
        )


def _check_volumes(location: Path, files: Sequence[FileRef]) -> None:
    """Raises UsageError for volumes in formats other than NIfTI, and for volumes in archives."""
    volumes = sorted(f.relative for f in files if f.relative.lower().endswith(_OTHER_VOLUMES))
    if volumes:
        raise UsageError(
            f"`{location}` contains {len(volumes)} unsupported volumes, such as `{volumes[0]}`.",
            "Only volumes in NIfTI format are supported (`.nii.gz`, with nibabel).",
            "Convert them to NIfTI, or their slices to PNG: `imagesTr/NAME_slice_000_0000.png` "
            "and `labelsTr/NAME_slice_000.png`; slices with the same NAME are put into the same "
            "split.",
        )
    packed = next((f for f in files if _is_volume(f) and f.member is not None), None)
    if packed is not None:
        raise _in_archive(packed, "NIfTI")


def _in_archive(file: FileRef, kind: str) -> UsageError:
    return UsageError(
        f"`{file}` is {'an' if kind == 'HDF5' else 'a'} {kind} file in an archive.",
        "Its slices can only be read from an unpacked file.",
        "Unpack the archive, and pass the folder.",
    )


def _check_channels(
    folder: Path, by_case: dict[str, dict[str, FileRef]], present: set[str], count: int
) -> None:
    """Raises UsageError unless all cases have the same channels, one or three."""
    incomplete = sorted(
        f"{name}_{number}" for name, files in by_case.items() for number in present - files.keys()
    )
    if incomplete:
        raise UsageError(
            f"`{folder}` lacks {counted(len(incomplete), 'file')} of channels.",
            f"Missing: {quoted(incomplete)}.",
            "All cases need the same channels: add the files, or remove the cases.",
        )
    is_rgb_file = len(present) == 1  # an RGB image in one file has three channel names
    if len(present) not in (1, 3) or (count != len(present) and not is_rgb_file):
        raise UsageError(
            f"Images in `{folder}` have {len(present)} files each, of {count} channels.",
            "Only images with one channel (grey) or three channels (red, green, blue) are "
            "supported.",
            "Remove the files of the other channels, and their names from `dataset.json`.",
        )


def by_isic(location: Path, files: Sequence[FileRef]) -> Layout[FileRef] | None:
    """The lesion segmentation data of the ISIC challenges of 2016, 2017 and 2018.

    The layout of 2016 is `ISBI2016_ISIC_Part1_Training_Data/ISIC_0000000.jpg` with
    `ISBI2016_ISIC_Part1_Training_GroundTruth/ISIC_0000000_Segmentation.png`. From 2017 on, folders
    are `ISIC-2017_Training_Data` (superpixels are excluded) and `ISIC2018_Task1-2_Training_Input`,
    and masks end in `_segmentation.png`. Published splits are kept.
    Source: challenge.isic-archive.com/data, and the page of each challenge.

    Raises:
        UsageError: An image has no mask or a mask no image.
    """
    folders: dict[str, dict[str, list[FileRef]]] = defaultdict(lambda: defaultdict(list))
    for file in files:
        match = _ISIC.fullmatch(file.folder or "")
        if match is None or not is_image(file.relative):
            continue
        inside = replace(file, relative=file.relative.partition("/")[2])
        folders[_ISIC_SPLITS[match[1].lower()]][str(file.folder)].append(inside)
    labelled, notes = list[Labelled[FileRef]](), list[str]()
    for split, of_split in folders.items():
        masks = [f for fs in of_split.values() for f in fs if _SEGMENTATION.search(f.stem)]
        renamed = [replace(m, relative=_SEGMENTATION.sub("", m.stem) + ".png") for m in masks]
        stems = {mask.stem for mask in renamed}
        superpixels = sum(f.stem.endswith(_SUPERPIXELS) for fs in of_split.values() for f in fs)
        if superpixels:
            notes.append(f"ISIC: {superpixels} files of superpixels are skipped ({split}).")
        is_taken = False
        for name in sorted(name for name in of_split if _GROUND_TRUTH not in name):
            images = [f for f in of_split[name] if not f.stem.endswith(_SUPERPIXELS)]
            if is_taken or stems.isdisjoint(image.stem for image in images):
                why = "another folder contains them too" if is_taken else "they have no masks"
                notes.append(f"Skipped: {counted(len(images), 'image')} in `{name}`: {why}.")
                continue
            is_taken = True
            labelled += [
                Labelled(replace(image, relative=f"{name}/{image.relative}"), mask, split)
                for image, mask in match_stems(location / name, images, renamed)
            ]
    if not labelled:
        return None
    splits = {image.split for image in labelled}
    return Layout(tuple(labelled), evaluated="test" if "test" in splits else None,
                  notes=tuple(notes))  # fmt: skip


def by_array_files(location: Path, files: Sequence[FileRef]) -> Layout[FileRef] | None:
    """Array files of slices or volumes with the arrays `image` and `label`: `.npz` or HDF5.

    Synapse multi-organ in the version of TransUNet: `train_npz/case0005_slice000.npz` for training,
    `test_vol_h5/case0001.npy.h5` for test. ACDC in the version of SSL4MIS:
    `data/slices/patient001_frame01_slice_0.h5` for training, the volumes listed in `val.list` and
    `test.list` in `data/` for validation and test. Other data sets: slices grouped by patient.
    Source: github.com/Beckschen/TransUNet, datasets/README.md; github.com/HiLab-git/SSL4MIS,
    data/ACDC and code/dataloaders/dataset.py.

    Raises:
        UsageError: A file is HDF5 and h5py is not installed.
    """
    from robustcli.data.decode import array_names  # lazy: imports numpy

    arrays = [f for f in files if f.relative.lower().endswith((".npz", *HDF5_SUFFIXES))]
    if not arrays or any(is_image(file.relative) for file in files):
        return None
    if not {_IMAGE, _LABEL} <= set(array_names(arrays[0])):
        return None
    slices = [file for file in arrays if "slice" in file.file_name.lower()]
    volumes = [file for file in arrays if file not in slices] if slices else arrays
    lists = {f.file_name: f for f in files if f.file_name in ("val.list", "test.list")}
    notes = list[str]()
    split_of = _splits_of_lists(lists)
    is_acdc = all(_ACDC.match(file.file_name) for file in arrays)
    if split_of:
        unlisted = [v for v in volumes if patient_stem(v) not in split_of]
        volumes = [v for v in volumes if patient_stem(v) in split_of]
        if unlisted and not slices:
            volumes, unlisted = volumes + unlisted, []
        if unlisted:
            notes.append(
                f"{len(unlisted)} volumes are skipped: {', '.join(sorted(lists))} do not list "
                "them, because their slices are for training."
            )
    elif slices and volumes and is_acdc:
        notes.append(
            f"{len(volumes)} volumes are skipped: without `val.list` and `test.list` only the "
            "slices are used, and are split by patient."
        )
        volumes = []
    separate = bool(slices and volumes)
    labelled = [_labelled(file, None, "train" if separate else None) for file in slices]
    for volume in volumes:
        split = split_of.get(patient_stem(volume), "test" if separate else None)
        labelled += _volume(volume, split)
    layout = _by_patients(labelled, notes, any(image.split == "test" for image in labelled))
    return replace(layout, classes=_ACDC_CLASSES if is_acdc else _ALL)


def patient_stem(file: FileRef) -> str:
    """The name of an array file without folder and suffixes: `patient001_frame01`."""
    return file.file_name.partition(".")[0]


def _splits_of_lists(lists: dict[str, FileRef]) -> dict[str, str]:
    """The split of each volume in `val.list` and `test.list`, which have one name per line."""
    splits = {}
    for name, file in lists.items():
        for line in file.read().decode("utf-8").splitlines():
            if line.strip():
                splits[line.strip().partition(".")[0]] = name.removesuffix(".list")
    return splits


def _labelled(file: FileRef, index: int | None, split: str | None) -> Labelled[FileRef]:
    name = file.relative if index is None else f"{file.relative}/slice{index:03}"
    image = replace(file, relative=name, array=_IMAGE, slice_index=index)
    return Labelled(image, replace(image, array=_LABEL), split, patient_of(patient_stem(file)))


def _volume(file: FileRef, split: str | None) -> list[Labelled[FileRef]]:
    """The slices of a file; a file whose arrays have two axes is a single slice."""
    if not file.relative.lower().endswith(HDF5_SUFFIXES):
        return [_labelled(file, None, split)]
    if file.member is not None:
        raise _in_archive(file, "HDF5")
    from robustcli.data.decode import volume_slices  # lazy: imports numpy

    count = volume_slices(file.path, _LABEL)
    _check_slices(file, replace(file, member=_LABEL), _IMAGE, count)
    indices: list[int | None] = [None] if count is None else [*range(count)]
    return [_labelled(file, index, split) for index in indices]


def _by_patients(
    labelled: Sequence[Labelled[FileRef]], notes: Sequence[str], has_test: bool
) -> Layout[FileRef]:
    """The layout, grouped by patient if several images have the same patient in their names."""
    groups = {image.group for image in labelled}
    grouping = "patient" if len(groups) < len(labelled) else "image"
    if grouping == "image":
        labelled = [replace(image, group=None) for image in labelled]
    return Layout(tuple(labelled), grouping, evaluated="test" if has_test else None,
                  notes=tuple(notes))  # fmt: skip


PUBLISHED_MASKS: tuple[Recogniser[FileRef], ...] = (by_nnunet, by_isic, by_array_files)

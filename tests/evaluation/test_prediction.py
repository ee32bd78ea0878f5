"""Predicted masks: selection of images, file names, and refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.load import load
from robustcli.adapters.segmenter import Segmenter
from robustcli.core.errors import RunError, UsageError
from robustcli.data.masks import decode_pair
from robustcli.evaluation import mask_files
from robustcli.evaluation.mask_files import list_jobs, predict_masks
from tests.evaluation.cells import OTSU, pairs_in


@pytest.fixture
def index(tmp_path):
    return pairs_in(tmp_path / "cells")


@pytest.fixture
def images(index, tmp_path):
    return tmp_path / "cells" / "images"


@pytest.fixture
def otsu():
    return load(OTSU, "seg")


def read_pixels(path):
    with Image.open(path) as image:
        return np.array(image)


def test_masks_have_the_size_and_name_of_their_images(index, images, otsu, tmp_path):
    predicted = predict_masks(otsu, [images], tmp_path / "out")
    assert (len(predicted.masks), predicted.existing) == (9, 0)
    for pair in index.samples:
        mask = read_pixels(tmp_path / "out" / pair.image.path.name)
        image, _ = decode_pair(pair)
        assert set(np.unique(mask)) <= {0, 255}
        assert np.array_equal(mask == 255, otsu.predict([image])[0])
    assert len(list((tmp_path / "out").iterdir())) == 9


def test_overlays_lie_beside_and_show_the_mask(images, otsu, tmp_path):
    predict_masks(otsu, [images], tmp_path / "out", overlays=True)
    mask, overlay = (
        read_pixels(tmp_path / "out" / f"ann-0{suffix}.png") for suffix in ("", "_overlay")
    )
    image = read_pixels(images / "ann-0.png")
    assert np.array_equal((overlay != image).any(-1), mask == 255)


def test_the_same_call_again_does_what_is_missing(images, otsu, tmp_path, monkeypatch):
    out = tmp_path / "out"
    predict_masks(otsu, [images], out)
    before = {file.name: file.stat().st_mtime_ns for file in out.iterdir()}
    (out / "bea-1.png").unlink()
    written_paths = []
    real = mask_files.write_bytes
    monkeypatch.setattr(
        mask_files, "write_bytes", lambda p, c: written_paths.append(p.name) or real(p, c)
    )
    assert predict_masks(otsu, [images], out).existing == 8
    assert written_paths == ["bea-1.png"]
    after = {file.name: file.stat().st_mtime_ns for file in out.iterdir()}
    assert {n for n in before if before[n] != after[n]} == {"bea-1.png"}
    assert predict_masks(otsu, [images], out, fresh=True).existing == 0
    assert len(written_paths) == 10


def test_overlays_that_are_asked_for_later_are_added(images, otsu, tmp_path):
    predict_masks(otsu, [images / "ann-0.png"], tmp_path / "out")
    assert (
        predict_masks(otsu, [images / "ann-0.png"], tmp_path / "out", overlays=True).existing == 0
    )
    assert (tmp_path / "out" / "ann-0_overlay.png").exists()


@pytest.mark.parametrize("changes", ["threshold", "model"])
def test_masks_of_other_settings_are_never_mixed(images, otsu, tmp_path, changes):
    out = tmp_path / "out"
    predict_masks(otsu, [images], out)
    if changes == "model":
        other_network = load(ModelRequest("ulvm_v2", untrained=True), "seg")
    else:
        settings = replace(otsu.preprocessing, threshold=0.7)
        other_network = Segmenter(otsu.network, settings, otsu.facts)
    with pytest.raises(UsageError, match="was computed by another model or with other settings"):
        predict_masks(other_network, [images / "ann-0.png"], out)
    assert predict_masks(other_network, [images / "ann-0.png"], out, fresh=True).existing == 0


def test_masks_of_other_images_of_the_same_names_are_refused(images, otsu, tmp_path):
    """Old masks were once kept and counted as masks of the new images."""
    out = tmp_path / "out"
    other_images = shutil.copytree(images, tmp_path / "other")
    predict_masks(otsu, [images], out)
    assert predict_masks(otsu, [other_images], out).existing == 9, "a copy has the same images"
    first = sorted(other_images.glob("*.png"))[0]
    Image.fromarray(255 - np.asarray(Image.open(first))).save(first)
    with pytest.raises(UsageError, match="is the mask of another image"):
        predict_masks(otsu, [other_images], out)
    assert predict_masks(otsu, [other_images], out, fresh=True).existing == 0


@pytest.mark.parametrize("fresh", [False, True])
def test_files_of_others_are_never_overwritten(images, otsu, tmp_path, fresh):
    out = tmp_path / "out"
    out.mkdir()
    Image.new("L", (3, 3)).save(out / "cy-2.png")
    own_bytes = (out / "cy-2.png").read_bytes()
    with pytest.raises(UsageError, match=r"cy-2\.png` already exists"):
        predict_masks(otsu, [images], out, fresh=fresh)
    assert [file.name for file in out.iterdir()] == ["cy-2.png"]
    assert (out / "cy-2.png").read_bytes() == own_bytes


def test_unreadable_images_are_listed_at_the_end(images, otsu, tmp_path):
    broken = {images / f"broken-{number:02}.png": b"no picture" for number in range(25)}
    for path, content in broken.items():
        path.write_bytes(content)
    out = tmp_path / "out"
    with pytest.raises(
        RunError,
        match=r"25 of 34 .*\n.*n-00\.png: not in a sup[\S\s]*5 more; all are in `.*\.json`",
    ):
        predict_masks(otsu, [images], out)
    listed = json.loads((out / "unreadable.json").read_text(encoding="utf-8"))
    assert [row["image"] for row in listed] == list(map(str, broken))
    assert all(row["reason"].startswith("not in a supported im") for row in listed)
    assert len(list(out.glob("*.png"))) == 9
    for path in broken:
        path.unlink()
    assert predict_masks(otsu, [images], out).existing == 9
    assert not (out / "unreadable.json").exists()


def test_images_are_held_a_few_at_a_time(images, otsu, tmp_path, monkeypatch):
    monkeypatch.setattr(mask_files, "_MOST_PIXELS", 2 * 40 * 52)
    sizes = []
    real = otsu.predict
    monkeypatch.setattr(otsu, "predict", lambda batch: sizes.append(len(batch)) or real(batch))
    assert len(predict_masks(otsu, [images], tmp_path / "out").masks) == 9
    assert sum(sizes) == 9
    assert max(sizes) == 3


def files(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def masks(images: list[Path], out: Path, **options: bool) -> list[str]:
    jobs = list_jobs(images, out, **{"overlays": False, **options})
    return [path.relative_to(out).as_posix() for job in jobs for path in job.outputs]


def test_folders_are_kept_and_single_files_keep_their_name(tmp_path):
    folder = files(tmp_path / "in", "b.jpg", "a/c.tif", "notes.txt", ".hidden.png")
    out = tmp_path / "out"
    assert masks([folder], out) == ["a/c.png", "b.png"]
    assert masks([folder / "a" / "c.tif"], out) == ["c.png"]
    assert masks([folder, folder / "b.jpg"], out) == ["a/c.png", "b.png"]
    assert masks([folder], out, overlays=True) == [
        "a/c.png", "a/c_overlay.png", "b.png", "b_overlay.png"
    ]  # fmt: skip


def test_true_masks_and_earlier_outputs_are_no_images(tmp_path):
    folder = files(tmp_path, "p/x_1.tif", "p/x_1_mask.tif", "p/lone_mask.tif", "masks/y.png")
    assert masks([folder], tmp_path / "masks") == ["p/lone_mask.png", "p/x_1.png"]
    paired = files(tmp_path / "paired", "images/a.png", "masks/a.png")
    assert masks([paired], tmp_path / "out") == ["images/a.png"]
    paired = files(tmp_path / "capitals", "Images/a.png", "Masks/a.png")
    assert masks([paired], tmp_path / "out") == ["Images/a.png"]


def test_the_channels_of_a_case_of_nnunet_are_one_image(images, otsu, tmp_path):
    """Read as in a training on the same folder, whether the data set or its images are named."""
    data = tmp_path / "Dataset001"
    for folder in ("imagesTr", "labelsTr", "colour"):
        (data / folder).mkdir(parents=True)
    shades = np.array([1.0, 0.5, 0.25])
    for number, file in enumerate(sorted(images.glob("*.png"))[:2]):
        pixels = (read_pixels(file)[..., :3] * shades).astype(np.uint8)
        Image.fromarray(pixels).save(data / "colour" / f"case{number}.png")
        for channel in range(3):
            name = f"case{number}_{channel:04}.png"
            Image.fromarray(pixels[..., channel]).save(data / "imagesTr" / name)
        Image.new("L", (8, 8)).save(data / "labelsTr" / f"case{number}.png")
    predict_masks(otsu, [data / "colour"], tmp_path / "expected")
    predict_masks(otsu, [data / "imagesTr"], tmp_path / "masks")
    for number in range(2):
        expected, mask = (
            read_pixels(tmp_path / folder / f"case{number}.png") for folder in ("expected", "masks")
        )
        assert expected.any()
        assert np.array_equal(mask, expected)
    shutil.rmtree(data / "colour")
    names = ["imagesTr/case0.png", "imagesTr/case1.png"]
    assert masks([data], tmp_path / "x") == names
    assert predict_masks(otsu, [data / "imagesTr"], tmp_path / "masks").existing == 2
    other = shutil.copytree(data / "imagesTr", tmp_path / "other")
    with pytest.raises(UsageError, match=r"(?s)case0_0000.*`imagesTs` to stack them"):
        masks([other], tmp_path / "x")
    assert len(masks([other], tmp_path / "x", grey=True)) == 6
    assert len(masks(sorted(other.iterdir()), tmp_path / "x")) == 6
    Image.new("L", (8, 8), 9).save(data / "imagesTr" / "case0_0001.png")
    with pytest.raises(UsageError, match="is the mask of another image"):
        predict_masks(otsu, [data / "imagesTr"], tmp_path / "masks")
    (data / "imagesTr" / "case1_0002.png").unlink()
    with pytest.raises(UsageError, match=r"(?s)lacks 1 file of channels.*`imagesTr/case1_0002`"):
        masks([data], tmp_path / "x")


@pytest.mark.parametrize("form", ["zip", "tar"])
def test_masks_of_an_archive_are_those_of_its_folder(images, otsu, tmp_path, form):
    paired = tmp_path / "paired"
    shutil.copytree(images, paired / "images")
    shutil.copytree(images, paired / "masks")  # true masks are skipped, as in a folder
    archive = Path(shutil.make_archive(str(tmp_path / "archive"), form, paired))
    folder_masks = predict_masks(otsu, [paired], tmp_path / "a").masks
    archive_masks = predict_masks(otsu, [archive], tmp_path / "b").masks
    assert len(folder_masks) == 9
    for first, second in zip(folder_masks, archive_masks, strict=True):
        assert first.relative_to(tmp_path / "a") == second.relative_to(tmp_path / "b")
        assert first.read_bytes() == second.read_bytes()
    assert predict_masks(otsu, [archive], tmp_path / "a").existing == 9


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (["tiff/val/a.png", "tiff/val/b.png"], ["tiff/val_labels/a.png", "tiff/val_labels/b.png"]),
        (["train/a.png", "val/b.png"], ["train_labels/a.png"]),  # no masks in `val`
        (["ISIC-2017_Test_v2_Data/ISIC_1.png"],
         ["ISIC-2017_Test_v2_Part1_GroundTruth/ISIC_1_segmentation.png"]),
        (["set/images/a.png"], ["set/masks/a_left.png", "set/masks/a_right.png"]),
        (["_labels/a.png", "cell_labels/a.png"], []),
    ],
)  # fmt: skip
def test_true_masks_of_every_layout_are_no_images(tmp_path, images, masks):
    """Masks of Massachusetts Roads and of ISIC were once predicted as images."""
    folder = files(tmp_path / "in", *images, *masks)
    jobs = list_jobs([folder], tmp_path / "out", overlays=False)
    assert [job.image_id for job in jobs] == images


def test_images_of_a_named_data_set(tmp_path):
    jobs = list_jobs([Path("nuclei-mini")], tmp_path, overlays=False)
    assert {job.image_id.partition("/")[0] for job in jobs} == {"images"}
    assert len({job.mask for job in jobs}) == len(jobs) > 100


@pytest.mark.parametrize(
    ("names", "overlays"), [(("a.png", "a.jpg"), False), (("a.png", "a_overlay.png"), True)]
)
def test_two_images_with_one_mask_are_refused(tmp_path, names, overlays):
    folder = files(tmp_path / "in", *names)
    with pytest.raises(UsageError, match=r"1 output files would belong to more than one image"):
        list_jobs([folder], tmp_path / "out", overlays=overlays)


@pytest.fixture
def names_without_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system as of macOS, Windows and memory sticks."""

    def identity_of_names(folder: Path) -> Callable[[Path], str]:
        return lambda path: str(path).casefold()

    monkeypatch.setattr(mask_files, "identity_of_names", identity_of_names)


@pytest.mark.usefixtures("names_without_case")
def test_names_that_differ_in_case_are_one_file_on_some_systems(tmp_path):
    folder = files(tmp_path / "in", "A.png", "a.png")
    with pytest.raises(UsageError, match=r"1 output files .*\n.*takes their names for one"):
        list_jobs([folder], tmp_path / "out", overlays=False)
    image = files(tmp_path / "photos", "B.PNG") / "B.PNG"
    with pytest.raises(UsageError, match=r"B\.png` is an image that would be overwritten"):
        list_jobs([image], image.parent, overlays=False)


def test_a_name_that_is_too_long_with_its_ending_is_an_error_before_the_first_mask(tmp_path):
    folder = files(tmp_path / "in", f"{'x' * 250}.png")
    assert len(masks([folder], tmp_path / "out")) == 1
    with pytest.raises(UsageError, match=r"too long for the file system.*\n.*\n.*`--overlays`"):
        list_jobs([folder], tmp_path / "out", overlays=True)


def test_an_image_is_never_overwritten(tmp_path):
    folder = files(tmp_path / "in", "a.png")
    with pytest.raises(UsageError, match=r"a\.png` is an image that would be overwritten"):
        list_jobs([folder / "a.png"], folder, overlays=False)


def test_missing_paths_and_folders_without_images_are_errors(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        list_jobs([tmp_path / "absent"], tmp_path / "out", overlays=False)
    with pytest.raises(UsageError, match="No images were found in"):
        list_jobs([files(tmp_path, "a.txt")], tmp_path / "out", overlays=False)
    volumes = files(tmp_path / "volumes", "a.nii.gz")
    for path in (volumes, volumes / "a.nii.gz"):
        with pytest.raises(UsageError, match=r"a\.nii\.gz` is a volume(?s:.*)slices as PNG"):
            list_jobs([path], tmp_path / "out", overlays=False)


def test_leftovers_are_no_images_and_are_counted(tmp_path):
    folder = files(tmp_path / "in", "a.jpg", "._a.jpg", "__MACOSX/a.jpg", "@eaDir/a.jpg/b.jpg")
    messages: list[str] = []
    jobs = list_jobs([folder], tmp_path / "out", overlays=False, say=messages.append)
    assert [job.image.path.name for job in jobs] == ["a.jpg"]
    assert "3 files with suffixes of images" in messages[0]

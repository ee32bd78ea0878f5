"""Which images get a mask, and under which name."""

from pathlib import Path

import pytest

from robustcli.core.errors import UsageError
from robustcli.evaluation.predict_files import list_jobs


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
    assert masks([folder], out, overlays=True) == [
        "a/c.png", "a/c_overlay.png", "b.png", "b_overlay.png"
    ]  # fmt: skip


def test_true_masks_and_earlier_outputs_are_no_images(tmp_path):
    folder = files(tmp_path, "p/x_1.tif", "p/x_1_mask.tif", "p/lone_mask.tif", "masks/y.png")
    assert masks([folder], tmp_path / "masks") == ["p/lone_mask.png", "p/x_1.png"]
    paired = files(tmp_path / "paired", "images/a.png", "masks/a.png")
    assert masks([paired], tmp_path / "out") == ["images/a.png"]


@pytest.mark.parametrize(
    ("names", "overlays"),
    [(("a.png", "a.jpg"), False), (("a.png", "a_overlay.png"), True)],
)
def test_two_images_with_one_mask_are_refused(tmp_path, names, overlays):
    folder = files(tmp_path / "in", *names)
    with pytest.raises(UsageError, match=r"1 files would be written for more than one image"):
        list_jobs([folder], tmp_path / "out", overlays=overlays)


def test_an_image_is_never_overwritten(tmp_path):
    folder = files(tmp_path / "in", "a.png")
    with pytest.raises(UsageError, match=r"a\.png` is an image that would be overwritten"):
        list_jobs([folder / "a.png"], folder, overlays=False)


def test_nothing_there_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="There is nothing at"):
        list_jobs([tmp_path / "absent"], tmp_path / "out", overlays=False)
    with pytest.raises(UsageError, match="There are no images in"):
        list_jobs([files(tmp_path, "a.txt")], tmp_path / "out", overlays=False)


def test_leftovers_are_no_images_and_are_counted(tmp_path):
    folder = files(tmp_path / "in", "a.jpg", "._a.jpg", "__MACOSX/a.jpg", "@eaDir/a.jpg/b.jpg")
    heard: list[str] = []
    jobs = list_jobs([folder], tmp_path / "out", overlays=False, say=heard.append)
    assert [job.image.name for job in jobs] == ["a.jpg"]
    assert "3 files named like images" in heard[0]

"""The learning-rate study: the next rate, and the images of each part."""

from __future__ import annotations

import importlib.util
import io
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

RECIPE = Path(__file__).parents[2] / "recipes" / "fair_learning_rates.py"


@pytest.fixture(scope="module")
def study() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fair_learning_rates", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("scores", "following"),
    [
        ({3e-4: 0.1, 1e-3: 0.3, 3e-3: 0.2}, None),
        ({3e-4: 0.1, 1e-3: 0.2, 3e-3: 0.3}, 1e-2),
        ({3e-4: 0.3, 1e-3: 0.2, 3e-3: 0.1}, 1e-4),
        ({3e-2: 0.1, 1e-1: 0.3}, None),  # the last rate of the ladder
    ],
)
def test_the_grid_is_extended_where_the_best_is_at_its_edge(
    study: ModuleType, scores: dict[float, float], following: float | None
) -> None:
    assert study.next_rate(scores) == following


def test_no_image_is_in_two_parts(
    study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "PER_CLASS", {"train": 2, "val": 1, "test": 1})
    archive = tmp_path / "photos.tar"
    with tarfile.open(archive, "w") as tar:
        for label in ("cat", "dog"):
            for number in (4, 0, 3, 1, 2):
                content = f"{label}{number}".encode()
                member = tarfile.TarInfo(f"train/{label}/{number}.jpg")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    for _ in range(2):  # the second time all results exist
        study.extract_parts(archive, tmp_path / "data")
        files = {
            path.relative_to(tmp_path / "data").as_posix(): path.read_text()
            for path in (tmp_path / "data").rglob("*.jpg")
        }
        assert files == {
            f"{part}/{label}/{number}.jpg": f"{label}{number}"
            for label in ("cat", "dog")
            for part, number in (("train", 0), ("train", 1), ("val", 2), ("test", 3))
        }

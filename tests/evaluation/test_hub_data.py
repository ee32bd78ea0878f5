"""Evaluations of a Hugging Face data set, served by a hub on the loopback interface."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
import pytest

from robustcli.core.errors import RunError
from robustcli.evaluation.evaluate import run_evaluation
from robustcli.evaluation.record import read_record
from robustcli.evaluation.store import Store
from robustcli.transforms.base import CLEAN, Cell
from tests.data.hub_server import REPO, Hub, hub_here, parquet, png
from tests.evaluation.photos import CLASSES, config

pytest.importorskip("datasets", reason="needs the extra `hf`: pip install 'robustcli[hf]'")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
]
ROWS = 23  # in two files with seven row groups; not a multiple of any batch or block
NUMBERS = range(ROWS)
GREYSCALE = Cell("grayscale", 0)


def pictures(first: int, last: int) -> bytes:
    features = {"img": {"_type": "Image"}, "label": {"names": list(CLASSES), "_type": "ClassLabel"}}
    images = [{"bytes": png(n), "path": None} for n in range(first, last)]
    labels = [n % len(CLASSES) for n in range(first, last)]
    return parquet({"img": images, "label": labels}, features, group=4)


FILES = {"data/test-0.parquet": pictures(0, 9), "data/test-1.parquet": pictures(9, ROWS)}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with hub_here(tmp_path_factory.mktemp("cache")) as server:
        yield server


@pytest.fixture(autouse=True)
def _home(hub, monkeypatch, tmp_path):
    hub.torn = 0
    hub.push(FILES)
    monkeypatch.setenv("ROBUST_HOME", str(tmp_path / "home"))


def rows(run, cell: Cell = CLEAN) -> pd.DataFrame:
    return Store(run).rows("vmamba-pico", cell, "cls").sort_values("image_id", ignore_index=True)


@pytest.fixture(scope="module")
def expected(hub, tmp_path_factory) -> pd.DataFrame:
    """Returns the rows of the same images in folders."""
    folder = tmp_path_factory.mktemp("folders")
    for n in NUMBERS:
        file = folder / CLASSES[n % len(CLASSES)] / f"{n:02d}.png"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(png(n))
    frame = rows(run_evaluation(config(folder, folder.parent / "folders-run", workers=0)))
    frame["image_id"] = [f"test/{name.partition('/')[2][:2]}" for name in frame["image_id"]]
    return frame.sort_values("image_id", ignore_index=True)


@pytest.mark.parametrize(("workers", "start_method"), [
    (0, "fork"), (1, "fork"), pytest.param(2, "spawn", marks=pytest.mark.slow), (4, "fork"),
])  # fmt: skip
def test_no_number_of_workers_loses_or_doubles_a_row(
    hub, tmp_path, expected, workers, start_method, monkeypatch
) -> None:
    monkeypatch.setattr("robustcli.core.machine.start_method", lambda: start_method)
    run = run_evaluation(
        config(f"hf:{REPO}", tmp_path / "run", "grayscale", workers=workers, batch_size=5)
    )
    for cell in (CLEAN, GREYSCALE):
        assert list(rows(run, cell)["image_id"]) == [f"test/{n:02d}" for n in NUMBERS]
    pd.testing.assert_frame_equal(rows(run), expected, check_exact=False, atol=1e-6)
    record = read_record(run)
    assert record.status == "complete"
    assert record.dataset.location.startswith(f"hf:{REPO}@")
    assert record.dataset.images == ROWS


@pytest.mark.parametrize("workers", [0, 2])
def test_a_torn_connection_ends_the_run_and_the_same_command_goes_on(
    hub, tmp_path, expected, workers
) -> None:
    hub_config = config(f"hf:{REPO}", tmp_path / "run", workers=workers, batch_size=5)
    run_evaluation(config(f"hf:{REPO}", tmp_path / "first", limit=1))  # caches the labels
    hub.torn = 10_000
    with pytest.raises(RunError, match=r"could not be read from the hub[\s\S]*repeat the command"):
        run_evaluation(hub_config)
    hub.torn = 0
    pd.testing.assert_frame_equal(rows(run_evaluation(hub_config)), expected, atol=1e-6)

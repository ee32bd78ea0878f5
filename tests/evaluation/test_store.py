"""Rows are read as they were written, and equal rows give equal bytes."""

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from robustcli.core.errors import RunError
from robustcli.evaluation.store import Store, rows_in, write_rows
from robustcli.metrics.columns import MASK_SCHEMA, PREDICTION_SCHEMA, mask_schema
from robustcli.transforms.base import Cell

CELL = Cell("affine", 2)


def row(number: int) -> dict[str, object]:
    return {
        "image_id": f"cat/{number}.png",
        "target": number,
        "prediction": 1,
        "top5": [1, 2, 3, 4, 5],
        "probability": 0.5,
        "target_probability": 0.25,
    }


def test_blocks_come_back_in_order_and_half_written_files_are_not_read(tmp_path):
    store = Store(tmp_path)
    for block in (2, 0, 1):
        write_rows(store.prediction_path("m", CELL, block), [row(block)], PREDICTION_SCHEMA)
    path = store.prediction_path("m", CELL, 3)
    path.with_name(f".{path.name}.123-4.tmp").write_bytes(b"PAR1")
    rows = store.rows("m", CELL, "cls")
    assert rows["target"].tolist() == [0, 1, 2]
    assert list(rows.columns) == PREDICTION_SCHEMA.names


@pytest.mark.parametrize(
    ("model", "folder"),
    [("vmamba-b", "vmamba-b"), ("hf-hub:timm/resnet18", "hf-hub-timm-resnet18")],
)
def test_the_layout_is_the_documented_one_on_every_system(tmp_path, model, folder):
    path = Store(tmp_path).prediction_path(model, CELL, 123)
    parts = ("predictions", f"model={folder}", "transform=affine", "severity=2")
    assert path == tmp_path.joinpath(*parts, "block-000123.parquet")


def test_an_empty_cell_has_columns_and_no_rows(tmp_path):
    rows = Store(tmp_path).inputs("original", CELL)
    assert isinstance(rows, pd.DataFrame)
    assert len(rows) == 0
    assert "psnr_db" in rows.columns


def test_the_same_rows_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_rows(tmp_path / name, [row(0), row(1)], PREDICTION_SCHEMA)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_rows_of_data_without_a_tolerance_are_written_and_read_as_ever(tmp_path):
    counts = {"tp": 1, "fp": 2, "fn": 3, "tn": 4, "hd95": None, "boundary_dice": None}
    path = Store(tmp_path).prediction_path("m", CELL, 0)
    write_rows(path, [{"image_id": "a", "group": "g", **counts}], mask_schema(None))
    assert pq.read_schema(path).names == ["image_id", "group", *counts]
    rows = Store(tmp_path).rows("m", CELL, "seg")
    assert list(rows.columns) == MASK_SCHEMA.names
    assert rows[["predicted_near", "true_near"]].isna().all(axis=None)
    assert rows[["tp", "fp", "fn", "tn"]].iloc[0].tolist() == [1, 2, 3, 4]


def test_rows_of_data_with_a_tolerance_keep_their_counts(tmp_path):
    row = dict.fromkeys(MASK_SCHEMA.names, 0) | {"image_id": "a", "group": "g"}
    row |= {"predicted_near": 7, "true_near": 8}
    write_rows(Store(tmp_path).prediction_path("m", CELL, 0), [row], mask_schema(3))
    rows = Store(tmp_path).rows("m", CELL, "seg")
    assert rows[["predicted_near", "true_near"]].iloc[0].tolist() == [7, 8]


def test_a_run_that_was_started_with_a_colon_keeps_it(tmp_path):
    store, model_folder = Store(tmp_path), tmp_path / "predictions" / "model=hf-hub:timm-resnet18"
    model_folder.mkdir(parents=True)
    assert model_folder in store.prediction_path("hf-hub:timm/resnet18", CELL, 0).parents


def test_a_flipped_bit_anywhere_is_seen(tmp_path):
    store = Store(tmp_path)
    path = store.prediction_path("m", CELL, 0)
    write_rows(path, [row(n) for n in range(3)], PREDICTION_SCHEMA)
    content, key = path.read_bytes(), b"robust_crc32"
    expected = store.rows("m", CELL, "cls")
    digest_range = range(content.rindex(key), content.rindex(key) + len(key))
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(bytes(flipped))
        if position not in digest_range:
            assert rows_in(path) is None, f"byte {position}"
            with pytest.raises(RunError, match="is damaged"):
                store.rows("m", CELL, "cls")
        elif rows_in(path) is not None:  # the checksum does not cover this name
            pd.testing.assert_frame_equal(store.rows("m", CELL, "cls"), expected)


def test_files_of_older_versions_have_no_checksum(tmp_path):
    store = Store(tmp_path)
    path = store.prediction_path("m", CELL, 0)
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([row(0)], schema=PREDICTION_SCHEMA), path)
    assert rows_in(path) == 1
    assert store.rows("m", CELL, "cls")["target"].tolist() == [0]

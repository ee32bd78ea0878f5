"""Rows go in and come out; the same rows give the same bytes."""

import pandas as pd

from robustcli.evaluation.store import PREDICTION_SCHEMA, Cell, Store, write_rows

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


def test_blocks_come_back_in_order(tmp_path):
    store = Store(tmp_path)
    for block in (2, 0, 1):
        write_rows(store.prediction_path("m", CELL, block), [row(block)], PREDICTION_SCHEMA)
    rows = store.predictions("m", CELL)
    assert rows["target"].tolist() == [0, 1, 2]
    assert list(rows.columns) == PREDICTION_SCHEMA.names


def test_the_layout_is_the_documented_one(tmp_path):
    path = Store(tmp_path).prediction_path("vmamba-b", CELL, 123)
    assert path == tmp_path.joinpath(
        "predictions", "model=vmamba-b", "transform=affine", "severity=2", "block-000123.parquet"
    )


def test_an_empty_cell_has_columns_and_no_rows(tmp_path):
    rows = Store(tmp_path).inputs("original", CELL)
    assert isinstance(rows, pd.DataFrame)
    assert len(rows) == 0
    assert "psnr_db" in rows.columns


def test_half_written_files_are_not_read(tmp_path):
    store = Store(tmp_path)
    path = store.prediction_path("m", CELL, 0)
    write_rows(path, [row(0)], PREDICTION_SCHEMA)
    path.with_name(".block-000001.parquet.123-4.tmp").write_bytes(b"PAR1")
    assert len(store.predictions("m", CELL)) == 1


def test_the_same_rows_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_rows(tmp_path / name, [row(0), row(1)], PREDICTION_SCHEMA)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

"""Computation of the missing work from the files of a run."""

from collections import Counter
from pathlib import Path

import pytest

from robustcli.data.dataset import FileRef, Sample
from robustcli.evaluation.plan import EvaluationPlan, batches, parts_of, share_of, shared
from robustcli.evaluation.store import (
    INPUT_SCHEMA,
    SKIPPED_SCHEMA,
    Store,
    rows_in,
    write_rows,
)
from robustcli.transforms.base import Cell

CELLS = (Cell("identity", 0), Cell("affine", 3))


def make_plan(run: Path, images: int = 10) -> EvaluationPlan:
    samples = tuple(
        Sample(FileRef(f"{i}.png", Path(f"{i}.png")), 0, f"{i}.png") for i in range(images)
    )
    return EvaluationPlan(Store(run), samples, CELLS, ("a", "b"), ("original",), 4)


def write_rows_of(path: Path, rows: int = 4) -> None:
    row = {"image_id": "a", "digest": "", "psnr_db": 1.0, "changed": True}
    write_rows(path, [row] * rows, INPUT_SCHEMA)


def test_at_first_everything_is_missing(tmp_path):
    plan = make_plan(tmp_path)
    blocks = plan.missing()
    assert [b.block for b in blocks] == [0, 1, 2]
    assert [len(b.images) for b in blocks] == [4, 4, 2]
    assert sum(b.forwards for b in blocks) == plan.forwards == 10 * 2 * 2


def test_files_that_are_there_are_not_missing(tmp_path):
    plan = make_plan(tmp_path)
    for model in plan.models:
        write_rows_of(plan.store.prediction_path(model, CELLS[1], 1))
    write_rows_of(plan.store.prediction_path("a", CELLS[0], 1))
    write_rows_of(plan.store.input_path("original", CELLS[1], 1))
    piece = plan.missing()[1]
    assert piece.models == {CELLS[0]: ("b",)}
    assert piece.cells == (CELLS[0],)
    assert piece.forwards == 4


def test_planning_reads_each_file_once(tmp_path, monkeypatch):
    """Each start of a command, and each restart by torchrun, plans anew."""
    plan, opened = make_plan(tmp_path), Counter[Path]()
    for cell in CELLS:
        for block in range(3):
            write_rows_of(plan.store.input_path("original", cell, block))
            write_rows_of(plan.store.prediction_path("a", cell, block))
    real = rows_in

    def counted(path: Path) -> int | None:
        opened[path] += 1
        return real(path)

    monkeypatch.setattr("robustcli.evaluation.plan.rows_in", counted)
    plan.missing()
    files = [path for path in tmp_path.rglob("*.parquet") if path.is_file()]
    assert set(files) <= opened.keys()
    assert set(opened.values()) == {1}


def test_a_finished_block_is_passed_over_until_a_file_lacks_rows_or_is_damaged(tmp_path):
    plan = make_plan(tmp_path)
    for cell in CELLS:
        write_rows_of(plan.store.input_path("original", cell, 0))
        for model in plan.models:
            write_rows_of(plan.store.prediction_path(model, cell, 0))
    assert [b.block for b in plan.missing()] == [1, 2]
    short_file, torn_file = (plan.store.prediction_path("a", cell, 0) for cell in CELLS)
    write_rows_of(short_file, rows=3)
    torn_file.write_bytes(torn_file.read_bytes()[:-9])
    missing = plan.missing()
    assert missing[0].models == dict.fromkeys(CELLS, ("a",))
    assert plan.damaged(missing) == [torn_file]
    row = {"image_id": "3.png", "reason": "no picture"}
    write_rows(plan.store.skipped_path(0), [row], SKIPPED_SCHEMA)
    assert CELLS[0] in plan.missing()[0].models, (
        "with one unreadable image, three rows are complete"
    )
    assert plan.missing()[0].models[CELLS[0]] == ("b",)


def work_items(pieces):
    """Lists every (block, cell, model, image) of `pieces`, with repetitions."""
    return sorted(
        (piece.block, cell.transform, model, part.images[position].image_id)
        for part in parts_of(pieces, 3)
        for piece in [part.piece]
        for cell in piece.cells
        for model in piece.models[cell]
        for position in range(len(part.images))
    )


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 40])
@pytest.mark.parametrize("images", [1, 4, 10, 50])
def test_every_row_belongs_to_exactly_one_rank(tmp_path, ranks, images):
    all_pieces = make_plan(tmp_path, images).missing()
    pieces_by_rank = shared(all_pieces, ranks)
    shares = [share_of(pieces_by_rank, rank, ranks) for rank in range(ranks)]
    assert sorted(row for share in shares for row in work_items(share)) == work_items(all_pieces)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_few_blocks_are_dealt_by_their_cells(tmp_path):
    (only,) = make_plan(tmp_path, 3).missing()
    assert shared([only], 1) == (only,)
    assert [piece.cells for piece in shared([only], 2)] == [(CELLS[0],), (CELLS[1],)]


def test_batches_keep_order_and_end_short():
    refs = make_plan(Path(), 5).images
    assert [list(b) for b in batches(refs, 2)] == [list(refs[:2]), list(refs[2:4]), [refs[4]]]

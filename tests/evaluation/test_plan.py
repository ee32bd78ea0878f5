"""What is missing, read from the files that are there."""

from pathlib import Path

import pytest

from robustcli.data.index import ImageRef
from robustcli.evaluation.plan import Plan, batches, starting_block
from robustcli.evaluation.store import Cell, Store

CELLS = (Cell("identity", 0), Cell("affine", 3))


def make_plan(run: Path, images: int = 10) -> Plan:
    refs = tuple(ImageRef(f"{i}.png", 0, Path(f"{i}.png")) for i in range(images))
    return Plan(Store(run), refs, CELLS, ("a", "b"), ("original",), 4)


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_at_first_everything_is_missing(tmp_path):
    plan = make_plan(tmp_path)
    blocks = list(plan.missing())
    assert [b.block for b in blocks] == [0, 1, 2]
    assert [len(b.images) for b in blocks] == [4, 4, 2]
    assert sum(b.forwards for b in blocks) == plan.forwards == 10 * 2 * 2


def test_files_that_are_there_are_not_missing(tmp_path):
    plan = make_plan(tmp_path)
    for model in plan.models:
        touch(plan.store.prediction_path(model, CELLS[1], 1))
    touch(plan.store.prediction_path("a", CELLS[0], 1))
    touch(plan.store.input_path("original", CELLS[1], 1))
    block = plan.block(1)
    assert block.models == {CELLS[0]: ("b",), CELLS[1]: ()}
    assert block.cells == (CELLS[0],)
    assert block.forwards == 4


def test_a_finished_block_is_passed_over(tmp_path):
    plan = make_plan(tmp_path)
    for cell in CELLS:
        touch(plan.store.input_path("original", cell, 0))
        for model in plan.models:
            touch(plan.store.prediction_path(model, cell, 0))
    assert [b.block for b in plan.missing()] == [1, 2]


def test_starting_elsewhere_still_covers_every_block(tmp_path):
    assert [b.block for b in make_plan(tmp_path).missing(2)] == [2, 0, 1]


@pytest.mark.parametrize(
    ("slot", "fraction"), [(0, 0), (1, 1 / 2), (2, 1 / 4), (3, 3 / 4), (5, 5 / 8)]
)
def test_processes_start_far_apart(slot, fraction):
    assert starting_block(slot, 1000) == 1000 * fraction


def test_batches_keep_order_and_end_short():
    refs = make_plan(Path(), 5).images
    assert [list(b) for b in batches(refs, 2)] == [list(refs[:2]), list(refs[2:4]), [refs[4]]]

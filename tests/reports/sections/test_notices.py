from robustcli.evaluation.record import DatasetRecord
from robustcli.reports.document import Mono, Strong
from robustcli.reports.sections.notices import demonstration, subset

DATASET = DatasetRecord(
    name="roads", location="roads", label_space="foreground", classes=2, images=1500,
    images_available=1500, subset=None, demonstration=False, digest="",
)  # fmt: skip


def test_a_whole_set_of_its_own_needs_no_notice() -> None:
    assert demonstration(DATASET) == subset(DATASET) == []


def test_a_part_is_named_and_counted() -> None:
    part = DATASET.model_copy(update={"images_available": 2000, "subset": "part of `x`"})
    assert subset(part, "Part.") == [
        (Strong("Part."), " 1,500 of 2,000 images (part of ", Mono("x"), ").")
    ]
    unnamed = part.model_copy(update={"subset": None})
    assert subset(unnamed) == [(Strong("Subset."), " 1,500 of 2,000 images.")]

import pytest

from robustcli.reports.published import other_experiment, published, table_one
from tests.reports.train_runs import TrainPlan, training_record

# Table I of "Mamba-Based Tumor Segmentation" as printed, and the counted parameters.
TABLE_I = {
    "umambabot_pp": (10_076_356, 0.8867),
    "umambabot": (9_813_700, 0.8799),
    "resnet18_seg": (13_930_497, 0.8648),
    "resnet50_seg": (42_909_633, 0.8672),
    "segformer": (17_782_913, 0.8454),
    "unet": (7_765_985, 0.8929),
    "ulvm": (49_457, 0.79955),
    "ulvm_v1": (217_165, 0.8409),
    "ulvm_v2": (42_737, 0.8243),
    "ulvm_v3": (176_453, 0.8109),
    "ulvm_v4": (1_135_309, 0.8548),
    "ulvm_v5": (703_885, 0.8633),
    "ulvm_v6": (769_677, 0.8628),
}


def test_all_thirteen_are_there_the_best_first() -> None:
    lines = table_one()
    assert {line.model: (line.parameters, line.dice) for line in lines} == TABLE_I
    assert [line.dice for line in lines] == sorted((d for _, d in TABLE_I.values()), reverse=True)


def test_a_network_that_is_not_in_the_paper_has_no_line() -> None:
    line = published("unet")
    assert line is not None
    assert line.iou == 0.8071
    assert published("vmunet") is None
    assert published("otsu") is None


@pytest.mark.parametrize(
    ("plan", "differences"),
    [
        (TrainPlan(protocol="paper", epochs=100), []),
        (TrainPlan(epochs=100), ["protocol patient instead of paper"]),
        (TrainPlan(protocol="paper", epochs=5), ["5 epochs instead of 100"]),
        (
            TrainPlan(protocol="paper", epochs=100, dataset={"name": "roads", "images": 60}),
            ["60 images of roads instead of the 3,929 slices of LGG"],
        ),
    ],
)
def test_what_makes_it_another_experiment_is_named(plan: TrainPlan, differences: list[str]) -> None:
    assert other_experiment(training_record(plan)) == differences

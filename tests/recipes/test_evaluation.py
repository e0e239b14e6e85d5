"""Two networks held against each other where there is nothing to find, and where a metric has no better side."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from segdpo.metrics.masks import mean_over_classes, measure_masks
from segdpo.recipes.compare import compare_overlaps
from segdpo.recipes.evaluation import Evaluation, classes_csv, pictures_of, summarise
from segdpo.recipes.measure import Measured
from segdpo.reports.tables import evaluation_table

METRICS = ("iou", "dice", "hd95", "recall", "components")
MEASUREMENT = SimpleNamespace(
    source=SimpleNamespace(classes=("ground", "object")), background=False, measured_at="image", tolerance=2.0
)


def measured(masks, gold, metrics=METRICS):
    found = measure_masks(masks, gold, 2, names=metrics)
    return Measured(
        [f"image {k}" for k in range(len(gold))],
        list(range(len(gold))),
        {name: mean_over_classes(values).double().numpy() for name, values in found.items()},
        {name: values.double().numpy() for name, values in found.items()},
        measure_masks(masks, gold, 2, names=("iou",))["iou"].isnan().numpy(),
        {},
        [],
    )


@pytest.fixture
def inventing():
    """Two images with an 8 × 8 square, two with nothing. The reference is 2 off and finds nothing where nothing is.

    The policy is right about the squares, and invents one on image 3.
    """
    gold = torch.zeros(4, 16, 16, dtype=torch.uint8)
    gold[:2, 4:12, 4:12] = 1
    policy = gold.clone()
    policy[3, 4:8, 4:8] = 1
    return Evaluation(measured(policy, gold), measured(gold.roll(2, 1), gold))


def test_an_object_that_is_invented_counts_as_a_loss(inventing):
    summary = summarise(inventing, MEASUREMENT)
    # IoU of squares 2 rows apart: 48 of 80. Image 2 has nothing under both and does not count.
    assert summary["difference"]["iou"]["mean"] == pytest.approx((0.4 + 0.4 - 1) / 3)
    assert summary["difference"]["iou"]["n"] == 3
    assert (summary["better"], summary["worse"]) == (2, 1)
    assert summary["win_rate"]["iou"]["rate"] == pytest.approx(2 / 3)
    assert summary["worst"] == [["image 3", -1.0]]
    # Alone, what is not there does not count: .6 and .6; 1, 1 and 0.
    assert (summary["reference"]["iou"]["mean"], summary["reference"]["iou"]["n"]) == (pytest.approx(0.6), 2)
    assert summary["policy"]["iou"]["mean"] == pytest.approx(2 / 3)
    # The diagonal of the image against a right 0, and twice 0 against 2.
    assert summary["difference"]["hd95"]["mean"] == pytest.approx((np.hypot(16, 16) - 2 - 2) / 3)
    assert summary["difference"]["hd95"]["worse"] == 1


def test_mending_an_invented_object_is_a_gain_and_both_are_drawn(inventing):
    corrected = Evaluation(inventing.reference, inventing.policy)
    assert summarise(corrected, MEASUREMENT)["better"] == 1
    last = pictures_of(inventing)[-1]
    assert (last.name, last.values) == ("worse_1", {"policy": "0.000", "reference": "nothing found"})


def test_classes_and_the_runs_own_summary_say_the_same(inventing):
    networks = inventing.networks
    lines = classes_csv(networks, ["ground", "object"]).splitlines()
    row = next(line.split(",") for line in lines if line.startswith("object,iou,difference"))
    assert (float(row[3]), int(row[6])) == (pytest.approx((0.4 + 0.4 - 1) / 3), 3)
    compared = compare_overlaps(networks["policy"].values, networks["reference"].values)
    assert compared["difference"]["iou"] == summarise(inventing, MEASUREMENT)["difference"]["iou"]
    assert compared["difference"]["dice"]["mean"] == pytest.approx((0.25 + 0.25 - 1) / 3)


def test_a_count_of_parts_names_no_winner():
    """A mask that is nearly right has two specks too many; one that finds nothing has a part too few."""
    gold = torch.zeros(3, 16, 16, dtype=torch.uint8)
    gold[:, 4:12, 4:12] = 1
    specks = gold.clone()
    specks[:, 0, 0] = specks[:, 15, 15] = 1
    both = Evaluation(measured(torch.zeros_like(gold), gold), measured(specks, gold))
    summary = summarise(both, MEASUREMENT)
    assert summary["difference"]["components"]["mean"] == -3
    assert not {"better", "worse"} & set(summary["difference"]["components"])
    assert "components" not in summary["win_rate"]
    assert "components" not in summary["wilcoxon"]
    assert summary["worse"] == 3
    cells = [str(cell) for column in evaluation_table(summary).columns for cell in column.cells]
    assert cells.count("–") == 2  # in the row of parts: better/worse, and p


def test_the_first_metric_with_a_better_side_decides():
    gold = torch.ones(1, 8, 8, dtype=torch.uint8)
    alone = measured(gold, gold, ("components", "recall"))
    assert Evaluation(alone).main == "recall"

"""Measuring a network on images with gold masks: each metric by image and by class."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segdpo.checks import check_choice
from segdpo.data import DescribesRecords, Image, Numbers, Record, RecordSource, RecordViews
from segdpo.masks import Mask
from segdpo.metrics import HIGHER_IS_BETTER, MASK_METRICS, Calibration, mean_over_classes, measure_masks
from segdpo.preferences import Logits, Network, masks_of, to_image
from segdpo.progress import Bars
from segdpo.recipes.config import Plain
from segdpo.recipes.run import MEASURED_AT

Doubles = np.ndarray[Any, np.dtype[np.float64]]
Values = dict[str, Doubles]
Flags = np.ndarray[Any, np.dtype[np.bool_]]

# Distances between contours take longer than all other metrics together.
DISTANCES = ("hd95", "surface_dice")
WITHOUT_DISTANCES = tuple(name for name in MASK_METRICS if name not in DISTANCES)
# Metrics by which one of two masks is better; the count of components has no better direction.
DIRECTED = tuple(name for name in MASK_METRICS if HIGHER_IS_BETTER[name] is not None)
# The values of a prediction that is rightly empty.
BEST: Mapping[str, float] = dict.fromkeys(MASK_METRICS, 1.0) | dict.fromkeys(("hd95", "components"), 0.0)


@dataclass(frozen=True, eq=False)
class Measurement:
    """Which images are measured, and how.

    Attributes:
        source: the records.
        numbers: the images' numbers in the source.
        metrics: names of `MASK_METRICS`.
        background: whether class 0 counts.
        seed: of the views, with measured_at="view".
        tolerance: that of surface Dice, in pixels.
        measured_at: "image": logits are resampled to the image's own size and compared with gold there; "view": at the
            size that the network received, with gold cut and resized as the image was.
    """

    source: RecordSource
    numbers: Numbers
    metrics: tuple[str, ...] = WITHOUT_DISTANCES
    background: bool = False
    seed: int = 0
    tolerance: float = 2.0
    measured_at: str = "image"

    def __post_init__(self) -> None:
        """Refuse another place to measure at."""
        check_choice("measured_at", self.measured_at, MEASURED_AT)


@dataclass(frozen=True, eq=False)
class Measured:
    """The values of one network; NaN does not count.

    Attributes:
        ids: the images, in order.
        numbers: their numbers in the source.
        values: of each metric [images], the mean over the classes.
        of_classes: of each metric [images, classes].
        nothing: bool [images, classes]: the class is neither in the gold mask nor predicted, so that it does not count.
        calibration: over all pixels.
        without_gold: ids of the images that could not be measured.
    """

    ids: list[str]
    numbers: list[int]
    values: Values
    of_classes: Values
    nothing: Flags
    calibration: Plain
    without_gold: list[str]


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a network says of one image that has gold, at the size at which it is measured.

    Attributes:
        id: the image's.
        number: its number in the source.
        image: uint8 [H, W, C].
        logits: float32 [1, channels, H, W].
        mask: the predicted classes uint8 [H, W].
        gold: uint8 [H, W], 255 where nothing counts.
    """

    id: str
    number: int
    image: Image
    logits: Tensor
    mask: Mask
    gold: Mask


class Predictions:
    """Predictions of the images of a measurement that have gold, one at a time, in order.

    A prediction then does not depend, in its last bits, on the images beside it, and is that of `segdpo predict`.
    `without_gold` holds the ids of the images that were left out, as far as the iteration has come.
    """

    def __init__(self, network: Network, measurement: Measurement) -> None:
        self.network, self.measurement = network, measurement
        self.without_gold: list[str] = []

    def __iter__(self) -> Iterator[Prediction]:
        measurement, views = self.measurement, self.network.preparation.views
        records = RecordViews(measurement.source, views, measurement.numbers, views=1, seed=measurement.seed)
        self.without_gold = []
        for place, number in enumerate(records.indices):
            if self._says_no_gold(int(number)):
                continue
            record, _ = records.read(place)
            if record.gold is None:
                self.without_gold.append(record.id)
                continue
            at_image = measurement.measured_at == "image"
            image, logits, gold = self._at_image(record) if at_image else self._at_view(records, record)
            yield Prediction(record.id, int(number), image, torch.from_numpy(logits), masks_of(logits)[0], gold)

    def _says_no_gold(self, number: int) -> bool:
        """Return whether the source says, without decoding the image, that it has no gold; note its id."""
        source = self.measurement.source
        if not isinstance(source, DescribesRecords) or (info := source.describe(number)).gold is not False:
            return False
        self.without_gold.append(info.id)
        return True

    def _at_image(self, record: Record) -> tuple[Image, Logits, Mask]:
        assert record.gold is not None
        return record.image, self.network.predict(record.image[None], record.id), record.gold

    def _at_view(self, records: RecordViews, record: Record) -> tuple[Image, Logits, Mask]:
        shown, gold = records.show(record, 0, record.masks[:0])
        assert gold is not None
        logits = self.network.logits(torch.from_numpy(shown.image)[None], record.id)
        return to_image(shown.image, records.pipeline.mean, records.pipeline.std), logits.numpy(), gold


def measure_network(network: Network, measurement: Measurement, description: str) -> Measured | None:
    """Measure a network on all images that have gold; None if none has.

    Args:
        network: the network.
        measurement: the images and metrics.
        description: stands before the progress bar.
    """
    ids: list[str] = []
    numbers: list[int] = []
    names = tuple(dict.fromkeys((*measurement.metrics, "iou")))  # IoU is NaN where there is nothing
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    # One process measures all images.
    calibration = Calibration(sync_on_compute=False)
    predictions = Predictions(network, measurement)
    with Bars(transient=True) as bars:
        for one in predictions:
            mask, gold = (torch.from_numpy(np.array(part))[None] for part in (one.mask, one.gold))
            for name, values in _measure_masks(mask, gold, measurement, names).items():
                found[name].append(values)
            calibration.update(one.logits, gold)
            ids.append(one.id)
            numbers.append(one.number)
            bars.update(description, len(ids) + len(predictions.without_gold), len(measurement.numbers))
    if not ids:
        return None
    joined = {name: torch.cat(values) for name, values in found.items()}
    nothing = joined["iou"].isnan().numpy()
    joined = {name: joined[name] for name in measurement.metrics}
    return Measured(
        ids,
        numbers,
        {name: mean_over_classes(values).double().numpy() for name, values in joined.items()},
        {name: values.double().numpy() for name, values in joined.items()},
        nothing,
        {name: value.tolist() for name, value in calibration.compute().items()},
        predictions.without_gold,
    )


def values_to_compare(
    name: str, policy: Doubles, reference: Doubles, *, nothing: Flags, reference_nothing: Flags
) -> tuple[Doubles, Doubles]:
    """Return the values of a metric under two networks as they are compared.

    Where there is nothing and a network predicts nothing, it has no value of its own (NaN). If the other network
    predicts something there, it gets the best value: otherwise a false positive would cost nothing.

    >>> nothing = np.array([True, True]), np.array([False, True])
    >>> policy, reference = np.array([np.nan, np.nan]), np.array([0.0, np.nan])
    >>> values_to_compare("iou", policy, reference, nothing=nothing[0], reference_nothing=nothing[1])
    (array([ 1., nan]), array([ 0., nan]))
    """
    ours = np.where(nothing & ~reference_nothing, BEST[name], policy)
    theirs = np.where(reference_nothing & ~nothing, BEST[name], reference)
    return ours, theirs


def compare_images(name: str, policy: Measured, reference: Measured) -> tuple[Doubles, Doubles]:
    """Return a metric of each image under both networks, as they are compared."""
    return values_to_compare(
        name,
        policy.values[name],
        reference.values[name],
        nothing=np.all(policy.nothing, axis=1),
        reference_nothing=np.all(reference.nothing, axis=1),
    )


def compare_class(name: str, number: int, policy: Measured, reference: Measured) -> tuple[Doubles, Doubles]:
    """Return a metric of one class in each image under both networks, as they are compared."""
    return values_to_compare(
        name,
        policy.of_classes[name][:, number],
        reference.of_classes[name][:, number],
        nothing=policy.nothing[:, number],
        reference_nothing=reference.nothing[:, number],
    )


def higher_is_better(name: str, values: Doubles) -> Doubles:
    """Return the values of a directed metric, negated if lower ones are better.

    >>> higher_is_better("hd95", np.array([2.0, 1.0]))
    array([-2., -1.])
    """
    return values if HIGHER_IS_BETTER[name] else -values


def _measure_masks(mask: Tensor, gold: Tensor, measurement: Measurement, names: tuple[str, ...]) -> dict[str, Tensor]:
    return measure_masks(
        mask,
        gold,
        len(measurement.source.classes),
        background=measurement.background,
        tolerance=measurement.tolerance,
        names=names,
    )

"""Measuring a network on images with gold masks: each metric by image and by class."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from segdpo.checks import IGNORE
from segdpo.data import GoldBatch, GoldBatches, Numbers, Pipeline, RecordSource
from segdpo.metrics import HIGHER_IS_BETTER, MASK_METRICS, Calibration, mean_over_classes, measure_masks
from segdpo.progress import Bars
from segdpo.recipes.config import Plain
from segdpo.scores import predicted_classes

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
class EvaluatedNetwork:
    """A network, the pipeline that makes its input, and the mean and standard deviation that this normalises with."""

    module: nn.Module
    pipeline: Pipeline
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Measurement:
    """Which images are measured, and how.

    Attributes:
        source: the records.
        numbers: the images' numbers in the source.
        metrics: names of `MASK_METRICS`.
        background: whether class 0 counts.
        batch_size: images in a forward pass.
        seed: of the views.
        tolerance: that of surface Dice, in pixels.
        native: resample the logits to the image's own size and compare with the gold mask there, instead of at the size
            that the network received.
    """

    source: RecordSource
    numbers: Numbers
    metrics: tuple[str, ...] = WITHOUT_DISTANCES
    background: bool = False
    batch_size: int = 8
    seed: int = 0
    tolerance: float = 2.0
    native: bool = False


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


@torch.no_grad()
def measure_network(
    network: EvaluatedNetwork, measurement: Measurement, device: torch.device | str, description: str
) -> Measured | None:
    """Measure a network on all images that have gold; None if none has.

    Args:
        network: the network.
        measurement: the images and metrics.
        device: where the network runs.
        description: stands before the progress bar.
    """
    ids: list[str] = []
    numbers: list[int] = []
    names = tuple(dict.fromkeys((*measurement.metrics, "iou")))  # IoU is NaN where there is nothing
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    # One process measures all images.
    calibration = Calibration(sync_on_compute=False)
    data = batches_of(network, measurement)
    with Bars(transient=True) as bars:
        for batch in data:
            for logits, gold in _logits_and_gold(network, batch, device, native=measurement.native):
                for name, values in _measure_masks(logits, gold, measurement, names).items():
                    found[name].append(values)
                calibration.update(logits, gold)
            ids += batch.batch.ids
            numbers += batch.numbers
            bars.update(description, len(numbers), len(measurement.numbers))
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
        data.without_gold,
    )


def batches_of(network: EvaluatedNetwork, measurement: Measurement) -> GoldBatches:
    """Return the images as the network receives them."""
    return GoldBatches(
        measurement.source,
        network.pipeline,
        measurement.numbers,
        batch_size=measurement.batch_size,
        seed=measurement.seed,
        native=measurement.native,
    )


def logits_of(network: nn.Module, image: Tensor, device: torch.device | str, ids: list[str]) -> Tensor:
    """Return the logits of a network in eval mode as float32 on the CPU.

    Raises:
        ValueError: some are NaN or infinite; the message names the image.
    """
    network.to(device).eval()
    logits: Tensor = network(in_weight_type(network, image, device)).float().cpu()
    broken = ~logits.flatten(1).isfinite().all(1)
    if broken.any():
        # NaN > 0 is false: without this check a broken network would count as one that predicts background.
        name = ids[int(broken.int().argmax())]
        raise ValueError(
            f"Expected finite logits for image {name!r} but the network gives NaN or infinity; its weights are "
            "broken: use those of an earlier step, or train with a lower learning rate."
        )
    return logits


def in_weight_type(network: nn.Module, image: Tensor, device: torch.device | str) -> Tensor:
    """Return images on the device in the type of the network's weights, which is bfloat16 after precision=bf16-true."""
    return image.to(device, next(network.parameters()).dtype)


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


def _logits_and_gold(
    network: EvaluatedNetwork, batch: GoldBatch, device: torch.device | str, *, native: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield float32 logits on the CPU with gold masks of their size, 255 where nothing counts."""
    images = batch.batch
    logits = logits_of(network.module, images.image, device, images.ids)
    if not native:
        yield logits, images.target.masked_fill(~images.valid, IGNORE)
        return
    for one, box, mask in zip(logits, batch.boxes, batch.golds, strict=True):
        yield _resampled(one[:, box[0], box[1]], mask.shape), torch.from_numpy(mask)[None]


def _resampled(logits: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return logits [classes, height, width] as [1, classes, *size], interpolated."""
    if logits.shape[1:] == torch.Size(size):
        return logits[None]
    return interpolate(logits[None], size=size, mode="bilinear", align_corners=False, antialias=True)


def _measure_masks(logits: Tensor, gold: Tensor, measurement: Measurement, names: tuple[str, ...]) -> dict[str, Tensor]:
    return measure_masks(
        predicted_classes(logits),
        gold,
        len(measurement.source.classes),
        background=measurement.background,
        tolerance=measurement.tolerance,
        names=names,
    )
